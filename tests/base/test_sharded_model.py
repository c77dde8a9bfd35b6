"""A model that is divided over processes trains as a whole one does, and loads its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sharded_programs import (
    build,
    find_nonfinite,
    in_processes,
    keep_copy,
    load,
    refuse_others,
    save,
    share_weight,
    train,
)
from stores import same
from torch import nn

from base.checkpoint.store import read
from base.distributed.group import ALONE, World
from base.distributed.shard import Division, choose_units, class_name, shard_model
from base.errors import ConfigError
from base.network.patterns import NoMatch


def close(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Tell whether all tensors are equal to a millionth of their largest number."""
    assert ours.keys() == theirs.keys()
    return all(
        (ours[name] - theirs[name]).abs().max() <= 1e-6 * theirs[name].abs().max() for name in ours
    )


@pytest.mark.parametrize("size", [2, 4])
def test_six_steps_equal_those_of_one_process(tmp_path: Path, size: int) -> None:
    norms, weights = train(ALONE, tmp_path)
    for found in in_processes(size, train, tmp_path):
        assert found[0] == pytest.approx(norms, rel=1e-6)
        assert close(found[1], weights)


@pytest.mark.parametrize("saved_by", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_resumes_what_any_number_saved(
    tmp_path: Path, saved_by: int
) -> None:
    if saved_by == 1:
        saved, ended = save(ALONE, tmp_path)
    else:
        (saved, ended), *others = in_processes(saved_by, save, tmp_path)
        assert all(same(saved, one[0]) and same(ended, one[1]) for one in others)
    for size in (1, 2, 3):
        results = [load(ALONE, tmp_path)] if size == 1 else in_processes(size, load, tmp_path)
        for loaded, resumed in results:
            assert same(loaded, saved)  # to the bit
            assert same(resumed, ended) if size == saved_by else close(resumed, ended)


def test_a_shared_weight_is_divided_saved_and_loaded_once(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    expected = share_weight(ALONE, tmp_path / "one")
    for weights in in_processes(3, share_weight, tmp_path):
        assert close(weights, expected)
    loaded = read(tmp_path)["model"]
    assert loaded["head.weight"] is loaded["embedding.weight"]


def test_each_process_looks_for_nonfinite_values_in_its_rows(tmp_path: Path) -> None:
    assert in_processes(2, find_nonfinite, tmp_path) == [(None, None), (None, "3.linear.weight")]


def test_a_copy_of_a_divided_state_is_loaded_again(tmp_path: Path) -> None:
    for before, after in in_processes(3, keep_copy, tmp_path):
        assert same(before, after)


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    for texts in in_processes(2, refuse_others, tmp_path):
        assert len(texts) == 2
        assert "model.4.weight: shape (3, 6) in the checkpoint, shape (3, 5) here" in texts[0]
        assert "ema: not in the checkpoint" in texts[1]


# --- What is divided ------------------------------------------------------------------------------


def test_rows_are_divided_as_torch_chunks_them() -> None:
    for n_rows in range(9):
        rows = torch.arange(n_rows)
        for size in range(1, 6):
            parts = [rows[slice(*Division(rank, size).of(n_rows))] for rank in range(size)]
            expected = [*rows.chunk(size), *[rows[:0]] * size][:size]
            assert [part.tolist() for part in parts] == [part.tolist() for part in expected]


class Wrapper(nn.Module):
    """One block of attention, which holds all parameters of a layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def test_units_are_the_repeated_layers_with_the_most_parameters() -> None:
    assert choose_units(build()) == ["1", "2", "3"]
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoder(layer, 3), nn.Linear(8, 8))
    assert choose_units(model) == [f"1.layers.{number}" for number in range(3)]
    wrapped = nn.Sequential(*(Wrapper(nn.Linear(3, 3)) for _ in range(2)))
    assert choose_units(wrapped) == ["0", "1"]  # of equal ones the outermost
    nested = nn.Sequential(Wrapper(Wrapper(nn.Linear(3, 3))), Wrapper(nn.Linear(3, 3)))
    assert choose_units(nested) == ["0", "1"]
    assert choose_units(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.ReLU())) == []
    assert choose_units(nn.Linear(2, 2)) == []
    plain = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert choose_units(plain) == ["0", "2"]


def test_a_parameter_that_two_units_share_is_refused() -> None:
    model = build()
    model[2].linear.weight = model[1].linear.weight  # type: ignore[union-attr]
    text = "1.linear.weight, 2.linear.weight are one parameter, of which 1 holds a part only"
    with pytest.raises(ConfigError, match=text):
        shard_model(model, None, World(0, 2), "cpu")


def test_a_number_without_rows_is_refused() -> None:
    model = build()
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(ConfigError, match="scale has no dimension to divide"):
        shard_model(model, None, World(0, 2), "cpu")


def test_a_pattern_that_names_no_module_is_refused() -> None:
    with pytest.raises(NoMatch, match="no module matches 'blocks"):
        shard_model(build(), ["blocks.*"], World(0, 2), "cpu")


def test_a_model_keeps_the_name_of_its_class() -> None:
    class FSDPModule:
        """Stands for torch's, which comes first among the bases."""

    assert class_name(nn.Linear(1, 1)) == "Linear"
    replaced = type("FSDPLinear", (FSDPModule, nn.Linear), {})
    assert class_name(replaced(1, 1)) == "Linear"
