"""A model that is divided over processes trains as a whole one does, and loads its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sharded_programs import in_processes, load, save, train
from stores import same

from base.distributed.group import ALONE


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


@pytest.mark.parametrize("saved_by", [1, 2, 3])
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
