"""Checkpoints of several processes: each writes its rows, and any number of them reads these."""

import errno
import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from stores import (
    divide,
    flip,
    in_threads,
    make_state,
    names,
    same,
    save,
    save_divided,
    write_manifest,
)

from base.checkpoint import store
from base.checkpoint.__main__ import main
from base.checkpoint.background import Snapshot
from base.checkpoint.store import CheckpointStore, read, read_from, read_manifest
from base.checkpoint.weights import read_weights
from base.distributed.shard import Division, Rows
from base.errors import CheckpointError, DiskFullError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def state_of(n_rows: int) -> dict:
    """Return a state like a trainer's, with tensors of several numbers of rows and dtypes."""
    numbers = torch.randn(n_rows, 3, 2, generator=torch.Generator().manual_seed(n_rows))
    weights = OrderedDict(a=numbers, b=numbers[:, 0, 0].clone(), c=torch.ones(1))
    weights["half"] = numbers.bfloat16()
    kept = {"step": torch.tensor(4.0), "exp_avg": numbers * 2}
    return {
        "model": weights,
        "optimizer.main": {"state": {0: kept}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
        "empty": [torch.zeros(0, 4), torch.zeros(n_rows, 0)],
        "progress": {"step": 7},
    }


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("n_rows", [1, 2, 5, 8])
def test_what_several_processes_saved_is_read_whole(folder, size, n_rows):
    path = save_divided(folder, size, 7, state_of(n_rows))
    assert same(read(path), state_of(n_rows))
    assert same(read(folder), state_of(n_rows))


@pytest.mark.parametrize("saved_by", [1, 2, 3, 4])
@pytest.mark.parametrize("read_by", [1, 2, 3, 5])
def test_any_number_of_processes_reads_the_rows_that_each_needs(folder, saved_by, read_by):
    path = save_divided(folder, saved_by, 7, state_of(5))
    for rank in range(read_by):
        division = Division(rank, read_by)
        assert same_rows(read_from(path, division)[1], divide(state_of(5), division))


def same_rows(one, other) -> bool:
    """Tell whether two states with rows are equal."""
    if isinstance(one, Rows):
        is_same_place = (one.first, one.shape) == (other.first, other.shape)
        return is_same_place and same(one.tensor, other.tensor)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same_rows(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return all(same_rows(a, b) for a, b in zip(one, other, strict=True))
    return same(one, other)


def test_shared_weights_are_written_once_and_shared_again(folder):
    weight = torch.randn(6, 50)
    state = {"model": OrderedDict({"in": weight, "out": weight})}
    path = save_divided(folder, 4, 1, state)
    loaded = read(path)["model"]
    assert loaded["in"] is loaded["out"]
    assert same(loaded["in"], weight)
    n_bytes = sum(file.stat().st_size for file in path.glob("shard-*"))
    assert n_bytes < weight.nbytes + 4 * 3000


def test_a_file_holds_the_rows_of_its_process_alone(folder):
    """A slice of a large tensor is a view, which torch.save writes with all of the tensor."""
    path = save_divided(folder, 2, 1, {"model": {"w": torch.zeros(1000, 100)}})
    for file in path.glob("shard-*"):
        assert file.stat().st_size < 1000 * 100 * 4 / 2 + 3000


def test_manifest_tells_where_the_rows_are(folder):
    path = save_divided(folder, 2, 1, {"model": {"w": torch.zeros(5, 3)}})
    manifest = read_manifest(path)
    files = ["shard-00001-of-00002.pt", "shard-00002-of-00002.pt"]
    about = {"shape": [5, 3], "dtype": "float32", "starts": [0, 3]}
    assert manifest["shards"] == {"files": files, "tensors": {"model/w": about}}
    assert [*manifest["files"]] == ["state.pt", *files]
    assert {file.name for file in path.iterdir()} == {"manifest.json", "state.pt", *files}
    assert manifest["format"] == 2


def test_a_checkpoint_of_one_process_has_the_format_that_earlier_versions_read(folder):
    store = CheckpointStore(folder)
    assert read_manifest(save(store, 1))["format"] == 1


@pytest.mark.parametrize("fault", ["flip", "cut", "remove"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_damaged_file_of_rows_falls_back_to_the_older_checkpoint(folder, fault, number, caplog):
    save_divided(folder, 3, 1, state_of(5))
    path = save_divided(folder, 3, 2, state_of(6))
    file = path / f"shard-{number:05d}-of-00003.pt"
    if fault == "flip":
        flip(file)
    elif fault == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match=f"{path}.*{file.name}"):
        read(path)
    for division in (None, Division(0, 1), Division(0, 3)):  # process 0 verifies the files of all
        caplog.clear()
        _, _, manifest = read_from(folder, division)
        assert manifest["step"] == 1
        assert f"{file.name}" in caplog.text
        assert "falling back to" in caplog.text
    assert same(read(folder), state_of(5))
    older = path.with_name("step-00000001")
    assert CheckpointStore(folder).newest() == older


def test_a_process_opens_only_the_files_with_its_rows(folder):
    path = save_divided(folder, 2, 1, {"model": {"w": torch.arange(4)}})
    flip(path / "shard-00001-of-00002.pt")
    rows = read_from(path, Division(1, 2))[1]["model"]["w"]
    assert rows.tensor.tolist() == [2, 3]


def test_a_full_disk_of_one_process_leaves_the_older_checkpoint(folder, monkeypatch):
    save_divided(folder, 2, 1, state_of(4))

    def write(_, division, __):
        if division.rank == 1:
            raise OSError(errno.ENOSPC, "no space")
        return {}

    def act(world):
        return save(CheckpointStore(folder, world=world), 2, divide(state_of(4), Division(0, 2)))

    monkeypatch.setattr(store, "write_rows", write)
    errors = in_threads(2, act)
    assert isinstance(errors[1], DiskFullError)
    assert isinstance(errors[0], Exception)
    assert names(CheckpointStore(folder)) == {"step-00000001"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda shards: shards["files"].__setitem__(0, "../state.pt"), "not the name of a file"),
        (lambda shards: shards["tensors"]["model/w"].update(shape=[2**40]), "need more than"),
        (
            lambda shards: shards["tensors"]["model/w"].update(dtype="int32"),
            "model/w has the shape",
        ),
        (lambda shards: shards["tensors"]["model/w"].update(dtype="load"), "unknown dtype"),
        (
            lambda shards: shards["tensors"]["model/w"].update(starts=[0, 1]),
            "model/w has the shape",
        ),
        (lambda shards: shards["tensors"]["model/w"].update(starts=[4, 4]), "rows of model/w"),
        (lambda shards: shards["tensors"]["model/w"].update(starts=[0, 5]), "rows of model/w"),
        (lambda shards: shards["tensors"]["model/w"].update(starts=[0]), "rows of model/w"),
        (lambda shards: shards["tensors"]["model/w"].update(shape=[-4]), "no shape"),
        (lambda shards: shards["files"].extend(shards["files"] * 9), "more than once"),
    ],
)
def test_a_forged_table_is_refused(folder, change, text):
    path = save_divided(folder, 2, 1, {"model": {"w": torch.arange(4)}})
    shards = json.loads((path / "manifest.json").read_text())["shards"]
    change(shards)
    write_manifest(path, shards=shards)
    with pytest.raises(CheckpointError, match=text):
        read(path)


def test_a_file_elsewhere_is_not_read_to_choose_a_checkpoint(folder, tmp_path, monkeypatch):
    path = save_divided(folder, 2, 1, {"model": {"w": torch.arange(4)}})
    (tmp_path / "secret").write_bytes(b"secret")
    files = json.loads((path / "manifest.json").read_text())["files"]
    outside = os.path.relpath(tmp_path / "secret", path)
    write_manifest(path, files={**files, outside: {"bytes": 6, "sha256": "0" * 64}})
    opened: list[Path] = []
    monkeypatch.setattr(store, "verify_file", lambda file, _: opened.append(file))
    assert CheckpointStore(folder).newest() == path
    assert len(files) == 3
    assert {file.name for file in opened} == {*files}


@pytest.mark.parametrize("name", ["../state.pt", "/dev/zero"])
def test_a_checkpoint_with_a_forged_table_is_not_chosen(folder, name):
    kept = save_divided(folder, 2, 1, {"model": {"w": torch.arange(4)}})
    path = save_divided(folder, 2, 2, {"model": {"w": torch.arange(4)}})
    shards = json.loads((path / "manifest.json").read_text())["shards"]
    shards["files"][0] = name
    write_manifest(path, shards=shards)
    assert CheckpointStore(folder).newest() == kept


def test_incomplete_rows_are_not_saved(folder):
    def act(world):
        rows = Rows(torch.zeros(1 + world.rank), world.rank, (4,))
        return save(CheckpointStore(folder, world=world), 1, {"model": {"w": rows}})

    error = in_threads(2, act)[0]
    assert isinstance(error, CheckpointError)
    assert "model/w: the processes have 3 of its 4 rows" in str(error)


def test_weights_of_several_processes_are_loaded_as_those_of_one(folder, tmp_path):
    path = save_divided(folder, 3, 1, state_of(5), is_best=True)
    for name in (path, path / "state.pt", tmp_path):
        assert same(dict(read_weights(name)), dict(state_of(5)["model"]))


def test_a_snapshot_copies_the_rows(folder):
    state = divide(state_of(5), Division(1, 2))
    copied = Snapshot().take(state)
    assert same_rows(copied, state)
    state["model"]["a"].tensor.zero_()
    assert copied["model"]["a"].tensor.any()


def test_a_plain_save_and_one_by_a_single_process_read_alike(folder):
    plain = save(CheckpointStore(folder), 1, make_state(5))
    divided = save_divided(folder, 1, 2, make_state(5))
    assert same(read(plain), read(divided))


def test_a_checkpoint_of_several_processes_is_joined_into_one_file(folder, tmp_path, capsys):
    path = save_divided(folder, 3, 7, state_of(5), metrics={"valid/loss": 0.5}, is_best=True)
    out = tmp_path / "joined"
    assert main(["join", str(path), str(out)]) == 0
    assert {file.name for file in out.iterdir()} == {"state.pt", "manifest.json"}
    assert same(read(out), state_of(5))
    plain = save(CheckpointStore(tmp_path / "plain"), 7, state_of(5))
    assert (out / "state.pt").read_bytes() == (plain / "state.pt").read_bytes()
    ours, theirs = read_manifest(out), read_manifest(path)
    assert ours["format"] == 1
    kept = ("step", "metrics", "is_best", "facts")
    assert [ours[key] for key in kept] == [theirs[key] for key in kept]
    with pytest.raises(UsageError, match="already exists"):
        main(["join", str(path), str(out)])

    assert main(["diff", str(path), str(out)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(path)]) == 0
    n_bytes = sum(f.stat().st_size for f in path.iterdir() if f.suffix == ".pt")
    assert f"{n_bytes:,} bytes in 4 files" in capsys.readouterr().out
