"""A split too large to list is recorded whole, in little space, and differences are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_data_changes import (
    INPUTS,
    KINDS,
    LABELS,
    NAMES,
    csv_file,
    experiment,
    list_file,
    loaders_of,
    place,
)

from base.data.fingerprint import Samples
from base.datasets.dataset_loader import DatasetLoader
from base.datasets.in_memory import InMemoryDataset
from base.errors import DataError
from base.run import data_changes, large_split
from base.run.data_changes import write_data_record


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 24 samples be many, in three blocks."""
    monkeypatch.setattr(data_changes, "MAX_LISTED", 8)
    monkeypatch.setattr(large_split, "BLOCK", 8)


def recorded(made, folder: Path) -> dict:
    return json.loads(json.dumps(write_data_record(made, folder, {})))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_data_are_accepted_and_changed_labels_are_refused(kind, tmp_path):
    folder, build = place(tmp_path), KINDS[kind]
    then = recorded(loaders_of(build(tmp_path, INPUTS, LABELS, NAMES)), folder)
    kept = (folder / "split.npz").read_bytes()
    assert not (folder / "split.csv").exists()
    now = write_data_record(loaders_of(build(tmp_path, INPUTS, LABELS, NAMES)), folder, then)
    assert now == then
    edited = LABELS.clone()
    edited[[7, 13]] = (edited[[7, 13]] + 1) % 3
    with pytest.raises(DataError, match="the data changed since the run began") as raised:
        write_data_record(loaders_of(build(tmp_path, INPUTS, edited, NAMES)), folder, then)
    if kind not in ("folder", "shards"):  # there another label is another place or name
        assert "targets differ (" in str(raised.value)
    assert (folder / "split.npz").read_bytes() == kept, "nothing is written where it is refused"


@pytest.mark.parametrize(
    "split", [0.25, {"valid": 0.25, "stratify": True}, {"folds": 4, "fold": 1}]
)
def test_the_file_lists_the_split_by_one_line_of_numpy(split, tmp_path):
    made = loaders_of(InMemoryDataset(INPUTS, LABELS, NAMES), split=split)
    write_data_record(made, tmp_path, {})
    for part in ("train", "valid"):
        listed = np.load(tmp_path / "split.npz")[part].cumsum()
        assert listed.tolist() == getattr(made, f"{part}_loader").sample_indices().tolist()


def test_a_sample_that_changed_alone_in_its_block_is_named(tmp_path):
    folder = place(tmp_path)
    then = recorded(loaders_of(csv_file(tmp_path, INPUTS, LABELS, NAMES)), folder)
    inputs, labels = INPUTS.clone(), LABELS.clone()
    inputs[9, 2] += 1e-6
    labels[[3, 17, 18]] = (labels[[3, 17, 18]] + 1) % 3
    with pytest.raises(DataError) as raised:
        write_data_record(loaders_of(csv_file(tmp_path, inputs, labels, NAMES)), folder, then)
    file = tmp_path / "t.csv"
    assert f"targets differ ({file}:5, {file}:18 to {file}:25)" in str(raised.value)
    assert f"inputs differ ({file}:11)" in str(raised.value)


def test_samples_that_moved_came_or_went_are_named(tmp_path):
    folder = place(tmp_path)
    dataset = InMemoryDataset(INPUTS, LABELS, NAMES, source="x.npy")
    then = recorded(loaders_of(dataset), folder)
    made = loaders_of(dataset)
    trains = made.train_loader.sample_indices().clone()
    validates = made.valid_loader.sample_indices().clone()
    moved, back = int(trains[2]), int(validates[1])
    trains[2], validates[1] = back, moved
    made.train_loader._train_indices = trains.sort().values
    made.valid_loader._train_indices = validates.sort().values
    with pytest.raises(DataError) as raised:
        write_data_record(made, folder, then)
    for part, lost, gained in (("training", moved, back), ("validation", back, moved)):
        assert f"1 {part} samples are missing (x.npy: sample {lost})" in str(raised.value)
        assert f"1 {part} samples are new (x.npy: sample {gained})" in str(raised.value)

    fewer = InMemoryDataset(INPUTS[1:], LABELS[1:], NAMES, source="x.npy")
    with pytest.raises(DataError, match="24 samples then, 23 now") as raised:
        write_data_record(loaders_of(fewer), folder, then)
    assert "differ from x.npy: sample 0 to x.npy: sample 7 on" in str(raised.value)


@pytest.mark.parametrize("kind", ["csv", "npz", "list", "own, ids"])
@pytest.mark.parametrize("changes", ["training", "validation", "split"])
@pytest.mark.parametrize(("n_then", "n_now"), [(24, 19), (19, 24), (24, 5), (5, 24), (6, 5)])
def test_data_that_grew_or_shrank_are_refused_with_both_sizes(
    kind, changes, n_then, n_now, tmp_path, monkeypatch
):
    """Also where the samples that are missing have no name any more, or fill no block."""
    monkeypatch.setattr(data_changes, "MAX_LISTED", 0)
    folder = place(tmp_path)

    def made(n_samples):
        changed = KINDS[kind](tmp_path, INPUTS[:n_samples], LABELS[:n_samples], NAMES)
        other = InMemoryDataset(INPUTS, LABELS, NAMES)
        if changes == "split":
            return loaders_of(changed)
        first, second = (changed, other) if changes == "training" else (other, changed)
        return loaders_of(first, split=None, valid_dataset=second)

    then = recorded(made(n_then), folder)
    with pytest.raises(DataError, match=f"{n_then} samples then, {n_now} now") as raised:
        write_data_record(made(n_now), folder, then)
    if changes == "split":  # another size gives another split: its samples tell nothing
        assert " new (" not in str(raised.value)
        assert " missing (" not in str(raised.value)
    else:
        state = "new" if n_now > n_then else "missing"
        assert f"{abs(n_now - n_then)} {changes} samples are {state} (" in str(raised.value)


def test_other_names_of_files_are_named(tmp_path):
    folder = place(tmp_path)
    then = recorded(loaders_of(list_file(tmp_path, INPUTS, LABELS, NAMES)), folder)
    (tmp_path / "12.png").rename(tmp_path / "twelve.png")
    path = tmp_path / "list.txt"
    path.write_text(path.read_text().replace("12.png", "twelve.png"))
    from base.datasets.image_files import ImageListDataset

    with pytest.raises(DataError, match=r"ids differ \(08.png to 15.png\)"):
        write_data_record(loaders_of(ImageListDataset(str(path))), folder, then)


def test_validation_data_of_their_own_are_compared_too(tmp_path):
    folder, other = place(tmp_path), InMemoryDataset(INPUTS[:9] + 1, LABELS[:9], NAMES)
    trained = InMemoryDataset(INPUTS, LABELS, NAMES)
    then = recorded(loaders_of(trained, split=None, valid_dataset=other), folder)
    labels = LABELS[:9].clone()
    labels[4] = 2
    other = InMemoryDataset(INPUTS[:9] + 1, labels, NAMES, source="v.npy")
    with pytest.raises(DataError, match=r"targets differ \(v.npy: sample 4\)"):
        write_data_record(loaders_of(trained, split=None, valid_dataset=other), folder, then)


def test_a_damaged_file_is_kept_aside_and_written_again(tmp_path, caplog):
    made = loaders_of(InMemoryDataset(INPUTS, LABELS, NAMES))
    then = recorded(made, tmp_path)
    content = (tmp_path / "split.npz").read_bytes()
    (tmp_path / "split.npz").write_bytes(content[:-30])
    edited = loaders_of(InMemoryDataset(INPUTS, LABELS.roll(1), NAMES))
    with pytest.raises(DataError, match=r"targets of the training samples differ; .*: damaged"):
        write_data_record(edited, tmp_path, then)
    assert write_data_record(made, tmp_path, then) == then
    assert "damaged; it is written again" in caplog.text
    assert (tmp_path / "split.npz").read_bytes() == content
    assert (tmp_path / "split.damaged-1.npz").exists()


def test_a_long_list_of_an_earlier_version_is_read_and_kept_until_labels_change(
    tmp_path, monkeypatch
):
    made = loaders_of(InMemoryDataset(INPUTS, LABELS, NAMES))
    with monkeypatch.context() as earlier:
        earlier.setattr(data_changes, "MAX_LISTED", 1000)
        then = recorded(made, tmp_path)
    assert write_data_record(made, tmp_path, then) == then
    labels = LABELS.clone()
    labels[7] = 0
    edited = loaders_of(InMemoryDataset(INPUTS, labels, NAMES))
    with pytest.raises(DataError, match="1 of 24 targets differ"):
        write_data_record(edited, tmp_path, then)
    assert [path.name for path in tmp_path.glob("split*")] == ["split.csv"]
    now = write_data_record(edited, tmp_path, then, allow_change=True)
    assert [path.name for path in tmp_path.glob("split*")] == ["split.npz"]
    assert write_data_record(edited, tmp_path, json.loads(json.dumps(now))) == now


def test_a_part_whose_samples_are_drawn_is_not_listed(tmp_path):
    class Drawn(torch.utils.data.Sampler):
        def __iter__(self):
            return iter(range(18))

        def __len__(self):
            return 18

    loader = DatasetLoader(InMemoryDataset(INPUTS, LABELS), 4, sampler=Drawn())
    then = recorded(experiment(loader, None), tmp_path)
    assert write_data_record(experiment(loader, None), tmp_path, then) == then
    assert "train" not in np.load(tmp_path / "split.npz").files


@pytest.mark.parametrize("split", [0.1, {"valid": 0.1, "stratify": True}, None])
def test_the_record_takes_less_than_a_byte_a_sample(split, tmp_path, monkeypatch):
    monkeypatch.setattr(large_split, "BLOCK", 1024)
    n = 200_000
    dataset = InMemoryDataset(torch.arange(n)[:, None] % 256, torch.arange(n) % 10)
    write_data_record(loaders_of(dataset, split=split), tmp_path, {})
    assert (tmp_path / "split.npz").stat().st_size < 0.4 * n
    assert (tmp_path / "data.json").stat().st_size < 2000


def test_a_validation_set_of_its_own_without_samples_is_recorded(tmp_path):
    whole, none = (InMemoryDataset(INPUTS[:n], LABELS[:n]) for n in (24, 0))
    samples = {
        "train": Samples(whole, torch.arange(24)),
        "valid": Samples(none, torch.arange(0)),
    }
    path = tmp_path / "split.npz"
    path.write_bytes(large_split.large_split_bytes(samples))
    assert large_split.changes_of_large_split(path, samples) == []
    fewer = {**samples, "train": Samples(whole, torch.arange(23))}
    assert any("missing" in line for line in large_split.changes_of_large_split(path, fewer))
