"""What a resume notices of its data: labels, classes, order, contents, of any kind of data set."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler, TensorDataset
from toy import make, run, train_in

from base.base_data_loader import BaseDataLoader, as_batches
from base.checkpoint.store import read
from base.data.fingerprint import hash_rows, samples_of
from base.datasets.array_files import ArrayFileDataset, IdxDataset
from base.datasets.composed import ConcatenatedDataset, SubsetDataset
from base.datasets.dataset_loader import DatasetLoader
from base.datasets.image_files import ImageFolderDataset, ImageListDataset
from base.datasets.in_memory import InMemoryDataset
from base.datasets.shards.reader import ShardDataset
from base.datasets.shards.writer import main as write_shards
from base.datasets.tables import CsvDataset
from base.errors import DataError
from base.run.data_changes import refuse_changed_data, refuse_overlap, write_data_record
from base.run.testing import build_tested_experiment

INPUTS = torch.rand(24, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3
NAMES = ["ant", "bee", "cat"]

Make = Callable[[Path, Tensor, Tensor, list[str]], Any]


class Own(Dataset):
    """A data set of the user's own that knows its targets and nothing else."""

    def __init__(self, inputs: Tensor, targets: Any, **more: Any) -> None:
        self.inputs, self.targets = inputs, targets
        vars(self).update(more)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.inputs[index], int(LABELS[index])


def csv_file(folder: Path, inputs: Tensor, labels: Tensor, names: list[str]) -> CsvDataset:
    rows = [
        ",".join([*map(str, x), names[y]]) for x, y in zip(inputs.tolist(), labels, strict=True)
    ]
    (folder / "t.csv").write_text("\n".join(["a,b,c,kind", *rows, ""]))
    return CsvDataset(str(folder / "t.csv"), "kind")


def npz_file(folder: Path, inputs: Tensor, labels: Tensor, names: list[str]) -> ArrayFileDataset:
    np.savez(folder / "t.npz", x=inputs.numpy(), y=labels.numpy())
    return ArrayFileDataset("x", "y", str(folder / "t.npz"), classes=names)


def idx_files(folder: Path, inputs: Tensor, labels: Tensor, names: list[str]) -> IdxDataset:
    pixels = (inputs * 255).to(torch.uint8)[:, None, :]
    for name, values in (("images", pixels), ("labels", labels.to(torch.uint8))):
        shape = b"".join(size.to_bytes(4, "big") for size in values.shape)
        content = b"\0\0\x08" + bytes([values.dim()]) + shape + values.numpy().tobytes()
        (folder / name).write_bytes(content)
    return IdxDataset(str(folder / "images"), str(folder / "labels"), names)


def list_file(folder: Path, inputs: Tensor, labels: Tensor, names: list[str]) -> ImageListDataset:
    for number, values in enumerate(inputs):
        pixels = (values.view(1, 1, 3) * 255).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    lines = [f"{number:02}.png {names[label]}" for number, label in enumerate(labels)]
    (folder / "list.txt").write_text("\n".join([*lines, ""]))
    return ImageListDataset(str(folder / "list.txt"))


def folder_of_classes(folder: Path, inputs: Tensor, labels: Tensor, names: list[str]) -> Any:
    shutil.rmtree(folder / "images", ignore_errors=True)
    for number, (values, label) in enumerate(zip(inputs, labels.tolist(), strict=True)):
        path = folder / "images" / names[label] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((values.view(1, 1, 3) * 255).to(torch.uint8).numpy()).save(path)
    return ImageFolderDataset(str(folder / "images"))


def shards(folder: Path, inputs: Tensor, labels: Tensor, names: list[str]) -> ShardDataset:
    shutil.rmtree(folder / "shards", ignore_errors=True)
    folder_of_classes(folder, inputs, labels, names)
    write_shards(["write", str(folder / "images"), str(folder / "shards" / "t"), "--count", "9"])
    return ShardDataset(str(folder / "shards" / "t-*.tar"))


KINDS: dict[str, Make] = {
    "csv": csv_file,
    "npz": npz_file,
    "idx": idx_files,
    "list": list_file,
    "folder": folder_of_classes,
    "shards": shards,
    "lmdb": lambda *given: lmdb(*given),
    "subset": lambda *given: SubsetDataset(csv_file(*given), first=20),
    "joined": lambda *given: ConcatenatedDataset([csv_file(*given), npz_file(*given)]),
    "torch subset": lambda *given: Subset(csv_file(*given), list(range(4, 24))),
    "own": lambda _, x, y, names: Own(x, y.tolist(), classes=names),
    "own, ids": lambda _, x, y, names: Own(
        x, [names[label] for label in y], ids=[f"s{i}" for i in range(len(x))], classes=names
    ),
    "own, like MNIST": lambda _, x, y, names: Own(x, y, data=x, classes=names),
}


def lmdb(folder: Path, inputs: Tensor, labels: Tensor, names: list[str]) -> Any:
    library = pytest.importorskip("lmdb")
    from base.datasets.lmdb_images import LmdbImageDataset

    listed = list_file(folder, inputs, labels, names)
    if not (folder / "images.lmdb").exists():
        with (
            library.open(str(folder / "images.lmdb")) as database,
            database.begin(write=True) as to,
        ):
            for name in listed.ids:
                to.put(name.encode(), (folder / name).read_bytes())
    return LmdbImageDataset(str(folder / "images.lmdb"), str(folder / "list.txt"))


def loaders_of(dataset: Any, **more: Any) -> SimpleNamespace:
    """Return what `write_data_record` asks of an experiment."""
    loader = DatasetLoader(dataset, 4, **{"split": 0.25, "workers": "threads", **more})
    loader.set_seed(3)
    return experiment(loader, loader.split_validation())


def experiment(train_loader: Any, valid_loader: Any) -> SimpleNamespace:
    return SimpleNamespace(
        train_loader=train_loader,
        valid_loader=valid_loader,
        batches_per_epoch=len(train_loader),
        references=SimpleNamespace(values={}),
        example={},
    )


def place(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_data_are_accepted_and_changed_labels_are_refused(kind, tmp_path):
    folder, build = place(tmp_path), KINDS[kind]
    then = write_data_record(loaders_of(build(tmp_path, INPUTS, LABELS, NAMES)), folder, {})
    kept = (folder / "split.csv").read_bytes()
    then = json.loads(json.dumps(then))  # as a manifest has it
    assert (
        write_data_record(loaders_of(build(tmp_path, INPUTS, LABELS, NAMES)), folder, then) == then
    )

    edited = LABELS.clone()
    edited[[7, 13]] = (edited[[7, 13]] + 1) % 3
    with pytest.raises(DataError, match="the data changed since the run began") as raised:
        write_data_record(loaders_of(build(tmp_path, INPUTS, edited, NAMES)), folder, then)
    if kind not in ("folder", "shards"):  # there another label is another place or name
        n_times, n_samples = (2, 48) if kind == "joined" else (1, len(samples_all(build, tmp_path)))
        assert f"{2 * n_times} of {n_samples} targets differ" in str(raised.value)
        assert "add --allow-change" in str(raised.value)
    assert (folder / "split.csv").read_bytes() == kept, "nothing is written where it is refused"


def samples_all(build: Make, folder: Path) -> Any:
    return build(folder, INPUTS, LABELS, NAMES)


class Indexer:
    """What ``series.at`` and ``series.iloc`` are in pandas: read by index, never called."""

    def __init__(self, values: list[str]) -> None:
        self.values = values

    def __getitem__(self, place: int) -> str:
        return self.values[place]


class Series(list):
    """A column of pandas, as far as it differs from a list of ids."""

    @property
    def at(self) -> Indexer:
        return Indexer(self)


@pytest.mark.parametrize("are_many", [False, True])
@pytest.mark.parametrize("composed", [False, True])
def test_ids_may_be_a_column_of_pandas(are_many, composed, tmp_path, monkeypatch):
    monkeypatch.setattr("base.run.data_changes.MAX_LISTED", 8 if are_many else 100)
    kinds = (list, Series) if not composed else (Series, Series)
    datasets = [Own(INPUTS, LABELS, ids=kind(f"s{i}" for i in range(24))) for kind in kinds]
    if composed:
        datasets = [SubsetDataset(each, list(range(23, -1, -1))) for each in datasets]
    then = write_data_record(loaders_of(datasets[0]), tmp_path, {})
    assert write_data_record(loaders_of(datasets[1]), tmp_path, then) == then


@pytest.mark.parametrize("kind", KINDS)
def test_renamed_classes_are_named(kind, tmp_path):
    folder, build = place(tmp_path), KINDS[kind]
    then = write_data_record(loaders_of(build(tmp_path, INPUTS, LABELS, NAMES)), folder, {})
    renamed = ["ant", "zebra", "cat"] if kind != "joined" else ["ant", "bee", "zebra"]
    gone = repr(next(name for name in NAMES if name not in renamed))
    with pytest.raises(DataError, match=f"of the 3 classes {gone} is missing and 'zebra' is new"):
        write_data_record(loaders_of(build(tmp_path, INPUTS, LABELS, renamed)), folder, then)


@pytest.mark.parametrize("kind", ["csv", "npz", "idx", "subset", "joined"])
@pytest.mark.parametrize("has_split", [True, False])
def test_rows_in_another_order_are_noticed(kind, has_split, tmp_path):
    folder, build = place(tmp_path), KINDS[kind]
    order = torch.arange(24)
    order[:20] = order[:20].flip(0)  # those that the subset is made of
    then = write_data_record(loaders_of(build(tmp_path, INPUTS, LABELS, NAMES)), folder, {})
    if not has_split:
        (folder / "split.csv").unlink()
    other = loaders_of(build(tmp_path, INPUTS[order], LABELS[order], NAMES))
    with pytest.raises(DataError) as raised:
        write_data_record(other, folder, then, allow_change=True)
    expected = "the samples are the same, but" if has_split else "inputs of the training samples"
    assert expected in str(raised.value)
    assert "--allow-change does not help" in str(raised.value)


def test_changed_inputs_are_noticed_where_samples_have_no_names(tmp_path):
    folder = place(tmp_path)
    then = write_data_record(loaders_of(csv_file(tmp_path, INPUTS, LABELS, NAMES)), folder, {})
    edited = INPUTS.clone()
    edited[5, 1] += 1e-6
    with pytest.raises(DataError, match=r"inputs of 1 of 24 samples differ \(.*t.csv:7\)"):
        write_data_record(loaders_of(csv_file(tmp_path, edited, LABELS, NAMES)), folder, then)


def test_an_image_that_was_repaired_is_the_same_sample(tmp_path):
    folder = place(tmp_path)
    then = write_data_record(loaders_of(list_file(tmp_path, INPUTS, LABELS, NAMES)), folder, {})
    other = loaders_of(list_file(tmp_path, INPUTS.flip(0), LABELS, NAMES))
    assert write_data_record(other, folder, then)["samples"] == then["samples"]


def test_corrected_labels_can_be_allowed_but_not_other_numbers_of_classes(tmp_path):
    folder = place(tmp_path)
    then = write_data_record(loaders_of(csv_file(tmp_path, INPUTS, LABELS, NAMES)), folder, {})
    renumbered = loaders_of(csv_file(tmp_path, INPUTS, LABELS, ["zebra", "bee", "cat"]))
    with pytest.raises(DataError, match="the outputs of the model follow the former class indices"):
        write_data_record(renumbered, folder, then, allow_change=True)

    edited = loaders_of(csv_file(tmp_path, INPUTS, (LABELS + (LABELS == 0)), NAMES[:1] + NAMES[1:]))
    with pytest.raises(DataError):  # no sample has the first class any more: others are numbered so
        write_data_record(edited, folder, then, allow_change=True)

    corrected = LABELS.clone()
    corrected[4] = 0
    now = write_data_record(
        loaders_of(csv_file(tmp_path, INPUTS, corrected, NAMES)), folder, then, allow_change=True
    )
    with (folder / "split.csv").open(newline="") as file:
        targets = {row["id"]: row["target"] for row in csv.DictReader(file)}
    assert targets == {str(i): str(label) for i, label in enumerate(corrected.tolist())}
    assert write_data_record(
        loaders_of(csv_file(tmp_path, INPUTS, corrected, NAMES)), folder, now
    ) == now  # fmt: skip


def test_validation_data_of_their_own_are_compared_too(tmp_path):
    folder = place(tmp_path)
    other = InMemoryDataset(INPUTS[:8] + 1, LABELS[:8], NAMES)
    trained = InMemoryDataset(INPUTS, LABELS, NAMES)
    more = {"split": None, "valid_dataset": other}
    then = write_data_record(loaders_of(trained, **more), folder, {})
    more["valid_dataset"] = InMemoryDataset(INPUTS[:8] + 1, LABELS[:8].flip(0), NAMES)
    with pytest.raises(DataError, match=r"\d of 32 targets differ"):
        write_data_record(loaders_of(trained, **more), folder, then)
    with pytest.raises(DataError, match="32 samples then, 24 now"):
        write_data_record(experiment(DatasetLoader(trained, 4), None), folder, then)


def test_loaders_of_torch_are_compared_too(tmp_path):
    folder = place(tmp_path)

    def loaders(targets: Tensor) -> Any:
        dataset = TensorDataset(INPUTS, targets)
        parts = (SubsetRandomSampler(list(range(18))), SubsetRandomSampler(list(range(18, 24))))
        return experiment(*(as_batches(DataLoader(dataset, 4, sampler=s), 0) for s in parts))

    then = write_data_record(loaders(LABELS), folder, {})
    assert [then["samples"][part]["n_samples"] for part in ("train", "valid")] == [18, 6]
    assert write_data_record(loaders(LABELS), folder, then) == then
    edited = LABELS.clone()
    edited[20] = 0
    with pytest.raises(DataError, match=r"contents of 1 of 24 samples differ \(20\)"):
        write_data_record(loaders(edited), folder, then)


def test_a_sampler_of_ones_own_and_a_stream_stop_nothing(tmp_path):
    class Sampled(BaseDataLoader):
        def _split_sampler(self, split: Any) -> Any:
            return SubsetRandomSampler(range(18)), list(range(18, 24))

    def loaders(targets: Tensor) -> Any:
        loader = Sampled(InMemoryDataset(INPUTS, targets, NAMES), 4, True, 0, 0)
        return experiment(loader, loader.split_validation())

    folder = place(tmp_path)
    then = write_data_record(loaders(LABELS), folder, {})
    assert write_data_record(loaders(LABELS), folder, then) == then
    with pytest.raises(DataError, match="targets differ"):
        write_data_record(loaders(LABELS.roll(1)), folder, then)
    edited = LABELS.clone()
    edited[3] = 1  # one that split.csv does not list: which samples train is drawn each epoch
    with pytest.raises(DataError, match="targets of the training samples differ"):
        write_data_record(loaders(edited), folder, then)
    stream = as_batches([(INPUTS[:4], LABELS[:4])] * 3, 0)
    assert write_data_record(experiment(stream, None), tmp_path, {})["samples"] == {}
    assert not (tmp_path / "split.csv").exists()


def test_targets_of_many_numbers_are_compared(tmp_path):
    folder, masks = place(tmp_path), torch.randint(3, (24, 5, 4))
    then = write_data_record(loaders_of(InMemoryDataset(INPUTS, masks)), folder, {})
    edited = masks.clone()
    edited[11, 4, 2] += 1
    with pytest.raises(DataError, match="1 of 24 targets differ"):
        write_data_record(loaders_of(InMemoryDataset(INPUTS, edited)), folder, then)


def test_the_hash_of_a_row_is_of_all_its_bytes():
    for rows in (
        torch.rand(50, 3),
        torch.rand(50, 7, dtype=torch.float64),
        torch.randint(256, (50, 3, 5), dtype=torch.uint8),
        torch.arange(50) % 2 == 0,
    ):
        hashes = hash_rows(rows)
        assert torch.equal(hash_rows(rows.flip(0)), hashes.flip(0))
        distinct = {bytes(row.reshape(-1).view(torch.uint8).tolist()) for row in rows.clone()}
        assert len(set(hashes.tolist())) == len(distinct)
    row = torch.randint(-(2**63), 2**63 - 1, (1, 4))
    flipped = torch.cat([row ^ (1 << bit) * torch.eye(4, dtype=torch.int64)[word]
                         for bit in range(63) for word in range(4)])  # fmt: skip
    assert len(set(hash_rows(torch.cat([row, flipped])).tolist())) == 1 + len(flipped)
    words = torch.tensor([[1, 2], [2, 1]])
    assert hash_rows(words)[0] != hash_rows(words)[1]


@pytest.mark.parametrize("n_columns", [8, 5])
def test_the_hash_of_rows_does_not_depend_on_where_they_begin_in_memory(n_columns: int) -> None:
    whole = torch.arange(3 * n_columns + 1, dtype=torch.uint8)
    rows = whole[1:].view(3, n_columns)
    assert torch.equal(hash_rows(rows), hash_rows(rows.clone()))


def test_of_more_bytes_than_the_limit_some_rows_are_hashed(monkeypatch):
    monkeypatch.setattr("base.data.fingerprint.LIMIT", 12 * 6)
    samples = samples_of(BaseDataLoader(InMemoryDataset(INPUTS, LABELS), 4, True, 0, 0))
    assert samples.contents.nonzero()[:, 0].tolist() == [0, 4, 8, 12, 16, 20]


# --- Runs ----------------------------------------------------------------------------------------

CONFIG = """
name: table
seed: 3
model: {type: MLP, args: {n_inputs: 3, hidden: [6], n_outputs: 3}}
data_loader:
  type: DatasetLoader
  args: {dataset: {type: CsvDataset, args: {file: t.csv, target: kind}}, batch_size: 6, split: 0.25}
optimizer: {type: SGD, args: {lr: 0.1}}
loss: cross_entropy
trainer: {epochs: 2, tensorboard: false, progress: false, verbosity: 0}
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    csv_file(tmp_path, INPUTS, LABELS, NAMES)
    return tmp_path


def test_each_checkpoint_and_the_run_have_the_fingerprint(table):
    run(table / "run", text=CONFIG, stop_at=2)
    data = json.loads((table / "run" / "data.json").read_text())
    (manifest,) = (table / "run").glob("checkpoints/*/manifest.json")
    assert json.loads(manifest.read_text())["facts"]["data"] == data
    assert data["record"]["classes"] == NAMES
    assert [data["samples"][part]["n_samples"] for part in ("train", "valid")] == [18, 6]


@pytest.mark.parametrize("wish", ["run", "checkpoint", "copied"])
def test_a_resume_refuses_changed_labels(wish, table):
    run(table / "run", text=CONFIG, stop_at=2)
    (saved,) = (table / "run" / "checkpoints").glob("step-*")
    path = table / "run" if wish == "run" else saved
    folder = table / "run"
    if wish == "copied":  # into the folder of a run of the new labels, whose split.csv fits
        path = folder = table / "other"
        shutil.copytree(saved, folder / "checkpoints" / saved.name)
    csv_file(table, INPUTS, LABELS.roll(5), NAMES)
    before = read(path)
    trainer = make(text=CONFIG)
    with pytest.raises(DataError, match="targets"):
        train_in(trainer, folder, path)
    assert trainer.progress.step == 0, "nothing was restored"
    csv_file(table, INPUTS, LABELS, NAMES)
    train_in(make(text=CONFIG), folder, path)
    assert read(folder)["progress"]["step"] == 6 > before["progress"]["step"]


def test_runs_of_earlier_versions_resume_and_get_a_fingerprint(table):
    run(table / "run", text=CONFIG, stop_at=2)
    (saved,) = (table / "run" / "checkpoints").glob("step-*")
    forget_data(saved)
    with (table / "run" / "split.csv").open(newline="") as file:
        ids = [(row["part"], row["id"]) for row in csv.DictReader(file)]
    old = "\n".join(["part,id", *(f"{part},{name}" for part, name in ids), ""])
    (table / "run" / "split.csv").write_text(old)

    csv_file(table, INPUTS[:20], LABELS[:20], NAMES)
    with pytest.raises(DataError, match="4 samples are missing"):
        train_in(make(text=CONFIG), table / "run", table / "run")
    csv_file(table, INPUTS, LABELS, NAMES)
    run(table / "run", text=CONFIG, resume=True)
    assert (table / "run" / "split.csv").read_text().startswith("part,id,target,content\n")
    csv_file(table, INPUTS, LABELS.roll(5), NAMES)
    with pytest.raises(DataError, match="targets differ"):
        train_in(make("trainer.epochs=3", text=CONFIG), table / "run", table / "run")


def test_a_run_of_an_earlier_version_keeps_targets_in_their_own_unit(table):
    regression = CONFIG.replace("target: kind}", "target: c, task: regression, ignore: kind}")
    regression = regression.replace(
        "n_inputs: 3, hidden: [6], n_outputs: 3", "n_inputs: 2, hidden: [6], n_outputs: 1"
    )
    regression = regression.replace("cross_entropy", "mse_loss")
    inputs, scaled = (
        regression.replace("split: 0.25", f"split: 0.25, normalize: {kind}")
        for kind in ("inputs", "auto")
    )
    run(table / "run", text=inputs, stop_at=2)
    (saved,) = (table / "run" / "checkpoints").glob("step-*")
    forget_data(saved)
    advice = "--set data_loader.args.normalize=inputs"
    for text, is_refused in ((scaled, True), (inputs, False)):
        made = make(text=text)
        loader = made.experiment.train_loader
        assert (loader.target_scale is not None) == is_refused
        for check_data in (
            lambda made=made: refuse_changed_data(made.experiment, table / "run", False),
            lambda made=made: build_tested_experiment(made.config, torch.device("cpu"), saved),
        ):
            with pytest.raises(DataError, match=advice) if is_refused else nullcontext():
                check_data()


def forget_data(checkpoint: Path) -> None:
    """Make a checkpoint one of an earlier version, which knew nothing of its data."""
    from base.checkpoint.state_file import manifest_bytes

    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["facts"]["data"]
    path.write_bytes(manifest_bytes(manifest))


def test_weights_of_a_run_with_other_classes_can_be_loaded(table):
    run(table / "run", text=CONFIG)
    csv_file(table, INPUTS, LABELS, ["dog", "eel", "fox"])
    run(table / "next", f"model.weights={table / 'run'}", text=CONFIG)


# --- split.csv ------------------------------------------------------------------------------------


def test_the_split_is_kept_by_ids_and_a_changed_one_refused(tmp_path):
    def loader(names, seed=0):
        dataset = TensorDataset(torch.arange(len(names)))
        dataset.ids = names
        return BaseDataLoader(dataset, 2, True, 0.25, 0, seed=seed)

    names, path = [f"é {i}.jpg" for i in range(12)], tmp_path / "split.csv"
    one = loader(names)
    then = write_data_record(experiment(one, one.split_validation()), tmp_path, {})
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["id"] for row in rows) == sorted(names)
    held_out = {row["id"] for row in rows if row["part"] == "valid"}
    assert held_out == {names[i] for i in one._valid_indices.tolist()}
    for before in (then, {}):
        write_data_record(experiment(one, one.split_validation()), tmp_path, before)
        for other in (loader(names, seed=1), loader([*names[:-1], "new.jpg"])):
            with pytest.raises(DataError, match="the data changed") as raised:
                write_data_record(experiment(other, other.split_validation()), tmp_path, before)
            assert "--allow-change does not help" in str(raised.value)
            assert f"`model: {{weights: {tmp_path}}}`" in str(raised.value)
            assert "é" in str(raised.value)


def test_parts_that_overlap_are_refused():
    dataset = InMemoryDataset(INPUTS, LABELS)
    train, valid = (
        SimpleNamespace(
            dataset=dataset, source_of_ids=1, sample_indices=lambda chosen=chosen: chosen
        )
        for chosen in (torch.tensor([0, 5, 7]), torch.tensor([5, 9]))
    )
    loaders = {"train": train, "valid": valid}
    samples = {part: samples_of(one) for part, one in loaders.items()}
    with pytest.raises(DataError, match="1 sample is in both training and validation, such as 5"):
        refuse_overlap(loaders, samples)
    valid.source_of_ids = 2  # another data set, whose sample 5 is another one
    refuse_overlap(loaders, samples)
