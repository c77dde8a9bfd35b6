"""Differences between ranks are named by key, file or part of the data, each in one line."""

from __future__ import annotations

import pytest
import torch

from base.distributed.comparison import (
    code_difference,
    config_difference,
    data_difference,
    hash_of,
    hash_of_tensor,
    name_of,
    other_rank,
)

SAMPLES = {"classes": None, "n_samples": 8, "ids": "i", "targets": "t", "contents": None}


def test_a_hash_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert hash_of({"a": 1, "b": [2]}) == hash_of({"b": [2], "a": 1})
    assert hash_of({"a": 1}) != hash_of({"a": 1.5})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3, 2, 2)])
def test_a_hash_of_a_tensor_depends_on_its_values_alone(dtype, shape) -> None:
    tensor = torch.ones(shape, dtype=dtype)
    strided = tensor.to(memory_format=torch.channels_last) if len(shape) == 4 else tensor.clone()
    assert hash_of_tensor(strided) == hash_of_tensor(tensor)
    if tensor.numel():
        other = tensor.clone()
        other.view(-1)[-1] = 0
        assert hash_of_tensor(other) != hash_of_tensor(tensor)


def test_the_first_other_rank_is_named_with_its_machine() -> None:
    rows = [{"host": "a", "code": 1}, {"host": "a", "code": 1}, {"host": "b", "code": 2}]
    assert other_rank(rows, "host") == other_rank(rows, "code") == 2
    assert other_rank(rows[:2], "code") is None
    assert (name_of(rows, 1), name_of(rows, 2)) == ("rank 1", "rank 2 (b)")


def test_keys_of_a_config_are_named_with_both_values() -> None:
    text = config_difference({"optimizer.args.lr": "0.1"}, {"optimizer.args.lr": "0.01"}, "rank 1")
    assert text.startswith(
        "config differs between ranks: optimizer.args.lr is 0.1 on rank 0 and 0.01 on rank 1: "
    )
    many = {f"key{n}": "1" for n in range(5)}
    text = config_difference(many, {}, "rank 3")
    assert "key2 is 1 on rank 0 and not set on rank 3; 2 more: start" in text
    assert "key3" not in text


def test_files_are_named_and_unknown_folders_may_differ() -> None:
    ours = {"model/a.py": "1", "model/b.py": "2", "own/lazy.py": "3"}
    assert code_difference(ours, {**ours, "model/a.py": "9"}, "rank 1", ["model"]).startswith(
        "code differs between ranks: model/a.py is another file on rank 1 than on rank 0: "
    )
    lacks = code_difference(ours, {"model/a.py": "1", "own/lazy.py": "3"}, "rank 1", ["model"])
    assert "model/b.py is on rank 0 only" in lacks
    without_lazy = {"model/a.py": "1", "model/b.py": "2"}
    assert not code_difference(ours, without_lazy, "rank 1", ["model"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"n_samples": 1234, "ids": "o"},
            "8 training samples on rank 0 and 1,234 training samples",
        ),
        ({"ids": "o"}, "the ids or the order of the training samples are not the same on rank 0"),
        ({"targets": "o", "classes": ["a"]}, "the class names and the targets of the training"),
        ({"contents": "o"}, "the inputs of the training samples are not the same"),
    ],
)
def test_what_differs_in_the_data_is_named(changes, expected) -> None:
    assert expected in data_difference(SAMPLES, {**SAMPLES, **changes}, "training", "rank 2")


def test_missing_and_endless_parts_are_named() -> None:
    text = data_difference(SAMPLES, {}, "validation", "rank 1")
    assert text.startswith("rank 0 alone has validation data")
    text = data_difference({"classes": None}, SAMPLES, "training", "rank 1")
    assert "a stream of training samples on rank 0 and 8 training samples on rank 1" in text
