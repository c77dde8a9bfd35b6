"""What goes to the model and what is the target, for batches of every shape that people have."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from toy import make, train_in

from base.data.batch import (
    DEFAULT_RULES,
    SampleCount,
    count_samples,
    inputs_of,
    target_of,
    to_device,
)
from base.errors import ConfigError

NO_RULES: dict[str, Any] = {"inputs": None, "target": None}
A, B, C, Y = (torch.full((4, n), float(n)) for n in (1, 2, 3, 4))
Triple = namedtuple("Triple", "first second label")
PACKED = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("batch", "rules", "inputs", "target"),
    [
        ((A, Y), {}, ([A], {}), Y),
        ([A, Y], {}, ([A], {}), Y),
        ((A, B, Y), {}, ([A, B], {}), Y),
        (Triple(A, B, Y), {}, ([A, B], {}), Y),
        (A, {}, ([A], {}), A),
        ([A], {}, ([A], {}), A),
        ({"x": A, "target": Y}, {}, ([], {"x": A}), Y),
        ({"x": A, "mask": B, "labels": Y}, {}, ([], {"x": A, "mask": B}), Y),
        ({"x": A, "answer": Y}, {"target": "answer"}, ([], {"x": A}), Y),
        ({"x": A, "id": B, "y": Y}, {"inputs": ["x"]}, ([A], {}), Y),
        ({"x": A, "z": B, "y": Y}, {"inputs": ["z", "x"], "target": "y"}, ([B, A], {}), Y),
        ((Y, A, B), {"inputs": [2, 1], "target": 0}, ([B, A], {}), Y),
        ((A, B, Y), {"inputs": [0]}, ([A], {}), Y),
        ((A, Y, B), {"target": 1, "inputs": [0, -1]}, ([A, B], {}), Y),
        ({"x": A}, {"inputs": ["x"], "target": "x"}, ([A], {}), A),
    ],
)
def test_inputs_and_target(batch: Any, rules: Any, inputs: Any, target: Any) -> None:
    args, kwargs = inputs_of(batch, {**NO_RULES, **rules})
    assert [id(arg) for arg in args] == [id(arg) for arg in inputs[0]]
    assert {k: id(v) for k, v in kwargs.items()} == {k: id(v) for k, v in inputs[1].items()}
    assert target_of(batch, {**NO_RULES, **rules}) is target


@pytest.mark.parametrize(
    ("batch", "rules", "where", "words"),
    [
        ({"x": A, "out": Y}, {}, "batch.target", ["'x', 'out'", "batch: {target"]),
        ({"x": A, "out": Y}, {"target": "ot"}, "batch.target", ["'ot'", "did you mean 'out'"]),
        ({"x": A, "y": Y}, {"inputs": ["xx"]}, "batch.inputs", ["'xx'", "it has 'x', 'y'"]),
        ((A, Y), {"inputs": [5]}, "batch.inputs", ["item 5", "sequence of 2"]),
        ((A, Y), {"inputs": ["x"]}, "batch.inputs", ["'x'", "sequence of 2"]),
        ((A, Y), {"target": 2}, "batch.target", ["item 2", "sequence of 2"]),
        (A, {"target": "y"}, "batch.target", ["'y'", "one Tensor"]),
    ],
)
def test_what_a_batch_has_not_is_told(batch: Any, rules: Any, where: str, words: list[str]) -> None:
    rules = {**NO_RULES, **rules}
    with pytest.raises(ConfigError) as caught:
        _ = inputs_of(batch, rules), target_of(batch, rules)
    assert str(caught.value).startswith(where)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("batch", "n"),
    [
        (A, 4),
        ([A, Y], 4),
        ({"x": A}, 4),
        ({"names": ["p", "q", "r", "s"], "x": A}, 4),
        ([["p", "q", "r", "s"], A], 4),
        ({"empty": [], "x": A}, 4),
        ([torch.ones(7, 4, 2), Y], 4),  # time first
        ([PACKED, torch.ones(2)], 2),
        ([PACKED, None], 2),
        ([[torch.ones(3, 8, 8)] * 5, [{"boxes": torch.ones(k, 4)} for k in range(5)]], 5),
        ([[torch.ones(3, 8, 8)] * 5, [{"label": 1}] * 5], 5),
        ({"x": torch.ones(9, 2), "edge_index": torch.ones(2, 30), "y": Y}, 4),
        ((torch.ones(9, 2), torch.ones(2, 30), torch.zeros(9), Y), 4),
        ([A, [Y, Y]], 4),  # two targets of all samples
        ([A, {"one": Y, "two": B}], 4),
        ([A, np.arange(4)], 4),
        ([torch.ones(2, 4), "text"], 2),
    ],
)
def test_samples_are_counted_by_the_targets(batch: Any, n: int) -> None:
    assert count_samples(batch) == n


@pytest.mark.parametrize(
    ("batch", "n_drawn"),
    [
        ([torch.ones(7, 4, 2), torch.ones(7, 4)], 4),  # time first in both
        ([[torch.ones(3)] * 5, [torch.ones(3)] * 5], 5),
        ([[torch.ones(3)] * 5, [torch.ones(3)] * 5], 3),
        ([torch.ones(k, 2) for k in range(1, 6)], 5),  # a list of samples without targets
        ("text", 6),
        (None, 6),
    ],
)
def test_what_was_drawn_decides_between_two_readings(batch: Any, n_drawn: int) -> None:
    assert count_samples(batch, DEFAULT_RULES, n_drawn) == n_drawn


def test_a_collation_may_give_another_number_of_samples_than_were_drawn() -> None:
    assert (
        count_samples([torch.ones(8, 2), torch.ones(8)], DEFAULT_RULES, 4) == 8
    )  # two views of each


@pytest.mark.parametrize("batch", [torch.tensor(1.0), "text", {}, None, [object(), object()]])
def test_a_batch_that_shows_no_number_of_samples_must_be_declared(batch: Any) -> None:
    with pytest.raises(ConfigError, match=r"batch\.size: .*cannot be determined"):
        count_samples(batch)


@pytest.mark.parametrize(
    ("size", "n"), [("n", 3), ("x", 7), ({"item": "x", "dim": 1}, 4), ("names", 2)]
)
def test_a_declared_size_is_taken(size: Any, n: int) -> None:
    batch = {"x": torch.ones(7, 4), "n": torch.tensor(3), "names": ["p", "q"], "y": Y}
    assert count_samples(batch, {**DEFAULT_RULES, "size": size}, 4) == n


def test_time_that_comes_first_is_seen_by_the_batch_size() -> None:
    count = SampleCount(DEFAULT_RULES, SimpleNamespace(batch_size=16))
    found = [count([torch.ones(3, n, 4), torch.ones(3, n)], 0) for n in (16, 16, 5)]
    assert found == [16, 16, 5]
    count = SampleCount(DEFAULT_RULES, SimpleNamespace(batch_size=16))
    assert [count([torch.ones(n, 3, 4), torch.ones(n, 3)], 0) for n in (16, 5)] == [16, 5]


def test_a_short_batch_of_sequences_as_long_as_the_batch_size_does_not_turn_them() -> None:
    count = SampleCount(DEFAULT_RULES, SimpleNamespace(batch_size=16))
    shapes = [(16, 16), (8, 16), (16, 16)]
    assert [count([torch.ones(*shape), torch.ones(*shape)], 0) for shape in shapes] == [16, 8, 16]
    count = SampleCount(DEFAULT_RULES, SimpleNamespace(batch_size=16))
    shapes = [(16, 16), (19, 16), (7, 16)]  # time first, of other lengths
    assert [count([torch.ones(*shape), torch.ones(*shape)], 0) for shape in shapes] == [16] * 3


def test_a_loader_may_count_itself() -> None:
    loader = SimpleNamespace(count_samples=lambda batch: 11, n_drawn=lambda position: 4)
    assert SampleCount(DEFAULT_RULES, loader)([A, Y], 0) == 11


def test_samples_of_what_torch_collates() -> None:
    samples = [{"name": str(i), "x": torch.ones(3), "y": i} for i in range(5)]
    assert count_samples(default_collate(samples)) == 5


def test_tensors_are_moved_however_nested() -> None:
    batch = {"pair": (A, [B, "text"]), "named": Triple(A, None, 3), "plain": 2.5}
    moved = to_device(batch, torch.device("meta"))
    assert moved["pair"][0].is_meta
    assert moved["pair"][1][0].is_meta
    assert moved["pair"][1][1] == "text"
    assert isinstance(moved["named"], Triple)
    assert moved["named"].first.is_meta
    assert moved["named"][1:] == (None, 3)
    assert moved["plain"] == 2.5


@pytest.mark.parametrize(("kind", "waits"), [("cuda", False), ("cpu", True), ("mps", True)])
def test_only_copies_to_cuda_are_not_waited_for(kind: str, waits: bool, monkeypatch: Any) -> None:
    """The CPU would read predictions, and MPS would read a batch, that are not there yet."""
    asked: list[bool] = []
    monkeypatch.setattr(
        torch.Tensor, "to", lambda one, device, non_blocking=False: asked.append(non_blocking)
    )
    to_device([Y, {"y": Y}], torch.device(kind))
    assert asked == [not waits] * 2


@pytest.mark.gpu
def test_predictions_have_arrived_when_the_cpu_reads_them() -> None:
    matrix = torch.eye(4096, device="cuda")
    for _ in range(20):
        matrix = matrix @ matrix  # still running when the copy begins
    assert to_device([matrix], CPU)[0].sum() == 4096


def test_a_batch_that_moves_itself_is_asked_to() -> None:
    class Graph:
        def to(self, device: torch.device) -> str:
            return f"moved to {device}"

    assert to_device([Graph()], CPU) == ["moved to cpu"]


def test_a_packed_sequence_stays_one() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])
    moved = to_device((packed, Y), CPU)
    assert isinstance(moved[0], nn.utils.rnn.PackedSequence)
    torch.testing.assert_close(moved[0].data, packed.data)
    assert nn.GRU(2, 2)(moved[0])[1].shape == (1, 2, 2)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.layer(x) * scale


@pytest.mark.parametrize(
    ("collate", "rules"),
    [
        (lambda x, s, y: {"x": x, "scale": s, "label": y}, "{}"),
        (lambda x, s, y: {"scale": s, "x": x, "label": y}, "{}"),
        (lambda x, s, y: (x, s, y), "{}"),
        (lambda x, s, y: [y, s, x], "{inputs: [2, 1], target: 0}"),
        (lambda x, s, y: {"a": x, "b": s, "c": y, "id": 1}, "{inputs: [a, b], target: c}"),
    ],
)
def test_a_model_of_two_inputs_learns_the_same_from_each_form(
    collate: Any, rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [train_two_inputs(monkeypatch, lambda x, s, y: (x, s, y), "{}")]
    results.append(train_two_inputs(monkeypatch, collate, rules))
    assert results[0] == results[1]


def train_two_inputs(monkeypatch: pytest.MonkeyPatch, collate: Any, rules: str) -> list[float]:
    from base.names.registry import DATA_LOADERS, MODELS

    generator = torch.Generator().manual_seed(0)
    x, s = torch.randn(12, 5, generator=generator), torch.rand(12, 1, generator=generator)
    y = torch.randint(3, (12,), generator=generator)

    class Parts:
        batch_size = 4

        def __iter__(self) -> Any:
            return (collate(*(part[i : i + 4] for part in (x, s, y))) for i in range(0, 12, 4))

        def __len__(self) -> int:
            return 3

    monkeypatch.setitem(MODELS.registered, "TwoInputs", TwoInputs)
    monkeypatch.setitem(DATA_LOADERS.registered, "Parts", Parts)
    trainer = make(
        "model={type: TwoInputs}",
        "data_loader={type: Parts}",
        f"batch={rules}",
        "metrics=[accuracy]",
    )
    train_in(trainer)
    return trainer.model.layer.weight.flatten().tolist()
