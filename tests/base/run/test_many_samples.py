"""The start of a run takes no Python object and few bytes for each sample of data in memory."""

from __future__ import annotations

import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data_changes import experiment

from base.data import splits
from base.data.splits import Division, divide, draw_weighted, permutation
from base.datasets.array_files import ArrayFileDataset
from base.datasets.composed import SubsetDataset
from base.datasets.dataset_loader import DatasetLoader
from base.run.data_changes import write_data_record
from base.run.label_checks import refuse_labels_out_of_range

N = 150_000  # more than split.csv lists, and many chunks


@pytest.fixture
def arrays(tmp_path: Path) -> dict[int, tuple[str, str]]:
    made = {}
    for n in (N, 2 * N):
        made[n] = str(tmp_path / f"x{n}.npy"), str(tmp_path / f"y{n}.npy")
        np.save(made[n][0], np.arange(8 * n, dtype=np.uint8).reshape(n, 8))
        np.save(made[n][1], np.arange(n) % 10)
    return made


def start(files: tuple[str, str], folder: Path, **args: Any) -> Any:
    """Do what a run does with its data until the first step."""
    loader = DatasetLoader(ArrayFileDataset(*files), 128, **{"split": 0.1, **args})
    loader.set_seed(3)
    made = experiment(loader, loader.split_validation())
    for each in (made.valid_loader, loader):
        next(each.batches(0, 1))
        refuse_labels_out_of_range(each.dataset, 10)
    write_data_record(made, Path(tempfile.mkdtemp(dir=folder)), {})
    return next(loader.batches(0, 1))


def n_calls(work: Any) -> int:
    """Return the number of calls of functions, of Python and of C."""
    count = 0

    def note(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


KINDS = {
    "share": {"normalize": "auto"},
    "stratified, balanced": {"split": {"valid": 0.1, "stratify": True}, "sampling": "balanced"},
    "folds": {"split": {"folds": 5, "fold": 1}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_calls_nothing_for_each_sample(kind, arrays, tmp_path):
    start(arrays[N], tmp_path, **KINDS[kind])  # imports
    one, two = (n_calls(lambda n=n: start(arrays[n], tmp_path, **KINDS[kind])) for n in (N, 2 * N))
    assert two <= 2.2 * one
    assert (two - one) / N < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_makes_no_python_object_for_each_sample(kind, arrays, tmp_path):
    start(arrays[N], tmp_path, **KINDS[kind])
    tracemalloc.start()
    try:
        start(arrays[N], tmp_path, **KINDS[kind])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * N  # numpy's arrays count: a list of numbers takes 36 bytes each, of ids 60


def test_the_samples_are_permuted_twice_before_the_first_step(arrays, tmp_path, monkeypatch):
    lengths = []
    monkeypatch.setattr(
        "base.base_data_loader.permutation",
        lambda n, generator: lengths.append(n) or permutation(n, generator),
    )
    monkeypatch.setattr(
        splits, "permutation", lambda n, generator: lengths.append(n) or permutation(n, generator)
    )
    start(arrays[N], tmp_path, normalize="auto")
    assert lengths == [N, N * 9 // 10]


def test_a_subset_of_the_first_samples_is_no_list(arrays, tmp_path):
    def choose(n: int) -> None:
        SubsetDataset(ArrayFileDataset(*arrays[n]), first=n // 2)

    choose(N)
    assert n_calls(lambda: choose(2 * N)) == n_calls(lambda: choose(N))


SPLITS = [
    0.1, 7, None, {"valid": 0.3}, {"folds": 4, "fold": 3}, {"valid": 11, "stratify": True},
    {"folds": 5, "fold": 0, "stratify": True},
]  # fmt: skip


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("seed", [0, 8])
def test_a_division_gives_what_divide_gives_and_knows_its_size_before(split, seed):
    targets = torch.arange(103) % 4
    division = Division(split, 103, seed, targets)
    n_train = division.n_train
    train, valid = divide(split, 103, seed, targets)
    assert torch.equal(division.train, train)
    assert torch.equal(division.valid, valid)
    assert n_train == len(train)
    assert torch.equal(torch.cat([train, valid]).sort().values, torch.arange(103))


def test_draws_and_orders_are_those_of_the_plain_formulas():
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(4)

    for n in (1, 2, 500, 70_001):
        order = permutation(n, generator())
        assert torch.equal(order.long(), torch.randperm(n, generator=generator()))
        weights = torch.rand(n, dtype=torch.float64, generator=generator()) + 0.1
        sums = weights.cumsum(0)
        points = torch.rand(n, dtype=torch.float64, generator=generator()) * sums[-1]
        expected = torch.searchsorted(sums, points, right=True).clamp_(max=n - 1)
        assert torch.equal(draw_weighted(weights, n, generator()), expected)
