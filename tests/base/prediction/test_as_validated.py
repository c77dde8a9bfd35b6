"""Predictions of the validation samples, written to files, equal those of the trainer's loop."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predicted_project import Project, validation
from torch import Tensor

import predict
from base.datasets import images as image_files
from base.prediction import Predictions, load_trained, open_samples

CPU = torch.device("cpu")
Words = Callable[[Path, list[int], list[str]], Sequence[str]]

SMALL = "model: {type: SmallCNN, args: {n_classes: 3, width: 4, n_stages: 1}}"
COMMON = "optimizer: {type: SGD, args: {lr: 0.01}}\nloss: cross_entropy\nmetrics: [accuracy]"


def images(args: str, dataset: str, more: str = COMMON, model: str = SMALL) -> str:
    """Return a config of a DatasetLoader."""
    return f"""
{model}
data_loader:
  type: DatasetLoader
  args: {{dataset: {dataset}, batch_size: 5, split: 0.3, num_workers: 0{args}}}
{more}
"""


def folder_of(kind: str, args: str = "") -> str:
    return f"{{type: ImageFolderDataset, args: {{root: images/{kind}{args}}}}}"


def scores_of(run: Path, words: Sequence[str | Path], **how: Any) -> Tensor:
    """Return the predictions as they are before any activation, and check their order."""
    loaded = load_trained(run, CPU)
    samples = open_samples(loaded, words)
    found = list(loaded.predictions(samples.loader))
    assert torch.cat([ids for ids, _ in found]).tolist() == list(range(len(samples.names)))
    return torch.cat([outputs.float() for _, outputs in found])


def assert_as_validated(run: Path, words: Words) -> None:
    indices, ids, expected = validation(run)
    assert len(expected) > 1
    found = scores_of(run, words(run, indices, ids))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def files_in(folder: str) -> Words:
    """Return the words for the validation files of an image folder."""
    return lambda run, indices, ids: [f"images/{folder}/{each}" for each in ids]


CROPPED = (
    ", valid_transforms: [{type: Resize, args: {size: 16}}, {type: CenterCrop, args: {size: 14}}],"
    " transforms: [{type: Resize, args: {size: 16}}, {type: CenterCrop, args: {size: 14}},"
    " RandomFlip]"
)
FOLDERS = {
    "resized, statistics computed": (folder_of("any", ", resize: [12, 14]"), ", normalize: auto"),
    "cropped, statistics computed": (folder_of("any"), f"{CROPPED}, normalize: auto"),
    "cropped, imagenet": (folder_of("any"), f"{CROPPED}, normalize: imagenet"),
    "the shorter side": (folder_of("equal", ", resize: 8"), ""),
    "no resizing": (folder_of("equal"), ", normalize: auto"),
    "cached on disk": (folder_of("equal"), ", cache: memory"),
    "grey": (folder_of("grey", ", mode: grey"), ", normalize: auto"),
    "given numbers": (folder_of("equal"), ", normalize: {mean: [0.4], std: [0.2]}"),
    "two joined": (
        f"{{type: ConcatenatedDataset, args: {{datasets: [{folder_of('equal')}]}}}}",
        ", normalize: auto",
    ),
    "a part": (
        f"{{type: SubsetDataset, args: {{first: 20, dataset: {folder_of('equal')}}}}}",
        ", normalize: auto",
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_image_folders(kind: str, trained: Project) -> None:
    dataset, args = FOLDERS[kind]
    model = GREY if kind == "grey" else SMALL
    run = trained.train(images(args, dataset, model=model))
    place = dataset.partition("images/")[2].split(",")[0].split("}")[0]
    assert_as_validated(run, files_in(place))


GREY = "model: {type: Flat}"
WAYS = {
    "bf16": "memory.precision=bf16",
    "averaged": "trainer.ema={decay: 0.5}",
    "channels_last": "memory.channels_last=true",
    "LBFGS": "optimizer={type: LBFGS, args: {lr: 0.1}}",
    "own forward": "trainer.type=TwiceTrainer",
    "compiled": "memory.compile=true",
    "ids": "batch={ids: true}",
    "weights": "batch={weight: sizes}",
}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.slow if way == "compiled" else ()) for way in WAYS]
)
def test_ways_of_training(way: str, trained: Project) -> None:
    text = images(", normalize: auto", folder_of("equal"))
    if way == "weights":
        text = text.replace("ImageFolderDataset", "WeighedFolder")
    run = trained.train(text, "--set", WAYS[way])
    assert_as_validated(run, files_in("equal"))


def test_a_validation_loader_of_its_own(trained: Project) -> None:
    section = (
        "valid_data_loader: {type: DatasetLoader, args: {batch_size: 4, shuffle: false,"
        f" dataset: {folder_of('any')}, transforms: [{{type: Resize, args: {{size: [12, 10]}}}}],"
        " normalize: auto}}"
    )
    text = images(", normalize: auto", folder_of("equal")).replace(", split: 0.3", "")
    run = trained.train(f"{text}\n{section}")
    assert_as_validated(run, files_in("any"))


@pytest.fixture
def inverting(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """While the context lasts, the fastest decoder of JPEG files is one that inverts them."""
    invert = lambda data, mode: 255 - image_files.DECODERS["PIL"]()(data, mode)  # noqa: E731
    with monkeypatch.context() as fastest:
        fastest.setitem(image_files.DECODERS, "inverting", lambda: invert)
        fastest.setattr(image_files, "_fastest", lambda: "inverting")
        yield fastest
    image_files.use_decoder(None)
    image_files._installed.cache_clear()


JPEGS = {
    "files": (folder_of("any", ", resize: [12, 14]"), "", files_in("any")),
    "a function of its own": (
        "{type: OwnImages, args: {root: images/any, resize: [12, 14]}}", "", files_in("any")
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_files_are_decoded_as_in_training(
    kind: str, trained: Project, inverting: pytest.MonkeyPatch
) -> None:
    """A faster decoder may have been installed since, and another run used in this process."""
    dataset, args, words = JPEGS[kind]
    run = trained.train(f"# {kind}, inverted\n" + images(args, dataset))
    indices, ids, expected = validation(run)
    assert any(each.endswith(".jpg") for each in ids)
    inverting.setattr(image_files, "_fastest", lambda: "PIL")
    other = trained.train(f"# {kind}, by PIL\n" + images(args, dataset))
    loaded, _ = load_trained(run, CPU), load_trained(other, CPU)
    assert image_files.decoder_name() == "PIL"
    samples = open_samples(loaded, words(run, indices, ids))
    open_samples(load_trained(other, CPU), words(run, indices, ids))
    found = torch.cat([outputs for _, outputs in loaded.predictions(samples.loader)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_decoder_that_is_gone_is_reported_once(
    trained: Project, inverting: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained.train("# gone\n" + images("", folder_of("any", ", resize: [12, 14]")))
    image_files._installed.cache_clear()
    inverting.undo()
    capsys.readouterr()
    assert predict.main(["-r", str(run), "-d", "cpu", "images/any"]) == 0
    text = "JPEG files were decoded by inverting, which is not installed, and now by"
    assert capsys.readouterr().err.count(text) == 1


def test_a_list_and_a_table_of_images(trained: Project) -> None:
    rows = [
        (f"equal/{label}/{n}.png", label, n / 8)
        for label in ("a", "b with space", "ü")
        for n in range(8)
    ]
    lines = [f'"{path}" "{label}"' for path, label, _ in rows]
    Path("images/list.txt").write_text("\n".join(lines), encoding="utf-8")
    with Path("images/table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("photo", "kind", "size"), *rows])
    table = "{type: ImageCsvDataset, args: {file: images/table.csv, image: photo, target: kind}}"
    numbers = table.replace("target: kind", "target: [size], task: regression")
    listed = "{type: ImageListDataset, args: {list_file: images/list.txt}}"

    def in_table(run: Path, indices: list[int], ids: list[str]) -> list[str]:
        with Path("images/new.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("photo", "other"), *((name, 1) for name in ids)])
        return ["images/new.csv"]

    def in_list(run: Path, indices: list[int], ids: list[str]) -> list[str]:
        Path("images/new.txt").write_text("\n".join(f'"{each}"' for each in ids), "utf-8")
        return ["images/new.txt"]

    one = "model: {type: SmallCNN, args: {n_classes: 1, width: 4, n_stages: 1}}"
    loss = COMMON.replace("cross_entropy", "mse_loss").replace("accuracy", "MAE")
    assert_as_validated(trained.train(images("", table)), in_table)
    assert_as_validated(trained.train(images("", numbers, loss, one)), in_table)
    assert_as_validated(trained.train(images("", listed)), in_list)


def test_shards(trained: Project) -> None:
    from base.datasets.shards import main

    Path("shards").mkdir()
    assert main(["write", "images/equal", "shards/equal"]) == 0
    dataset = "{type: ShardDataset, args: {shards: 'shards/equal-*.tar'}}"
    run = trained.train(images(", normalize: auto", dataset))
    indices, _, expected = validation(run)
    found = scores_of(run, sorted(Path("shards").glob("*.tar")))
    torch.testing.assert_close(found[indices], expected, rtol=1e-5, atol=1e-5)


def test_digits_from_arrays_in_each_form(trained: Project) -> None:
    text = f"""
model: {{type: DigitsNet, args: {{width: 4}}}}
data_loader: {{type: DigitsDataLoader, args: {{batch_size: 64, validation_split: 100}}}}
{COMMON}
"""
    run = trained.train(text)
    indices, _, expected = validation(run)
    whole = np.load("data/digits.npz")
    is_test = np.isin(np.arange(len(whole["labels"])), whole["test_ids"])
    raw = whole["images"][~is_test][indices]
    np.savez("one.npz", anything=raw)
    np.savez("several.npz", other=raw[:3], images=raw)
    np.savez("nchw.npz", inputs=raw[:, None])
    np.savez("nhwc.npz", inputs=raw[..., None], labels=np.zeros(len(raw)))
    np.save("plain.npy", raw)
    names = ["one.npz", "several.npz", "several.npz:images", "nchw.npz", "nhwc.npz", "plain.npy"]
    for name in names:
        torch.testing.assert_close(scores_of(run, [name]), expected, rtol=1e-5, atol=1e-5)


def test_images_of_a_loader_like_mnists(trained: Project) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    place = Path("mnist/MNIST/raw")
    place.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        head = [0, 0, 8, 3, *(byte for n in raw.shape for byte in n.to_bytes(4, "big"))]
        (place / f"{part}-images-idx3-ubyte").write_bytes(bytes(head) + raw.tobytes())
        labels = bytes([0, 0, 8, 1, 0, 0, 0, 60, *(n % 10 for n in range(60))])
        (place / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    text = """
model: {type: MnistModel}
data_loader: {type: MnistDataLoader, args: {data_dir: mnist, batch_size: 16, validation_split: 0.5}}
optimizer: {type: SGD, args: {lr: 0.01}}
loss: nll_loss
"""
    run = trained.train(text)
    indices, _, expected = validation(run)
    for n in indices:
        Image.fromarray(raw[n]).convert("RGB").save(f"mnist/{n}.png")
    found = scores_of(run, [f"mnist/{n}.png" for n in indices])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found = scores_of(run, ["mnist/MNIST/raw/t10k-images-idx3-ubyte"])
    torch.testing.assert_close(found[indices], expected, rtol=1e-5, atol=1e-5)
    # A larger image is resized to the size of the training data.
    Image.fromarray(raw[0]).resize((56, 56), Image.Resampling.NEAREST).save("mnist/large.png")
    assert scores_of(run, ["mnist/large.png"]).shape == (1, 10)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
def test_arrays_of_each_layout(layout: str, trained: Project) -> None:
    shape = {"NHWC": (40, 7, 5, 3), "NCHW": (40, 3, 7, 5), "NHW": (40, 7, 5)}[layout]
    raw = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    np.savez(f"{layout}.npz", x=raw, y=np.arange(40) % 3)
    dataset = (
        f"{{type: ArrayFileDataset, args: {{file: {layout}.npz, inputs: x, targets: y,"
        f" layout: {layout}}}}}"
    )
    run = trained.train(images(", normalize: auto", dataset, model="model: {type: Flat}"))

    def chosen(_: Path, indices: list[int], __: list[str]) -> list[str]:
        np.savez(f"new_{layout}.npz", x=raw[indices], z=raw)
        return [f"new_{layout}.npz"]

    assert_as_validated(run, chosen)


def test_float_arrays_and_those_without_a_layout(trained: Project) -> None:
    raw = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    np.save("x.npy", raw)
    np.save("y.npy", np.arange(40) % 3)
    dataset = "{type: ArrayFileDataset, args: {inputs: x.npy, targets: y.npy}}"
    run = trained.train(images(", normalize: auto", dataset, model="model: {type: Flat}"))

    def chosen(_: Path, indices: list[int], __: list[str]) -> list[str]:
        np.save("new.npy", raw[indices])
        return ["new.npy"]

    assert_as_validated(run, chosen)


def test_masks(trained: Project) -> None:
    dataset = (
        "{type: MaskFolderDataset, args: {root: images/scenes, classes: [ground, sky],"
        " resize: [16, 16]}}"
    )
    model = "model: {type: UNet, args: {in_channels: 3, out_channels: 2, width: 4, depth: 2}}"
    run = trained.train(images(", normalize: auto", dataset, model=model))
    assert_as_validated(run, files_in("scenes/images"))


CARS = "{type: CsvDataset, args: {file: cars.csv, %s}}"
INPUTS = "inputs: [maker, fuel, sold, mileage, doors], dates: sold, "
GAPS = "missing: {mileage: median, fuel: unknown}"
TEXTS = "categories: [maker, fuel]"
TABLES = {
    "one hot": (f"{INPUTS}target: kind, {GAPS}, {TEXTS}", "cross_entropy", 2),
    "columns found": (
        f"ignore: [id, price, age, warm], dates: sold, target: kind, {GAPS}, categories: auto",
        "cross_entropy",
        2,
    ),
    "rows dropped": (f"{INPUTS}target: kind, missing: drop, {TEXTS}", "cross_entropy", 2),
    "numbers": (
        "inputs: [mileage, doors], target: price, task: regression, missing: 0", "mse_loss", 1,
    ),
    "several": (
        f"{INPUTS}target: [price, age], task: regression, {GAPS}, {TEXTS}", "mse_loss", 2,
    ),
}  # fmt: skip


def table_text(args: str, loss: str, model: str, normalize: str = "auto") -> str:
    more = f"optimizer: {{type: SGD, args: {{lr: 0.001}}}}\nloss: {loss}"
    return images(f", normalize: {normalize}", CARS % args, more, model)


def some_rows(_: Path, indices: list[int], __: list[str]) -> list[str]:
    return [written(indices)]


def written(indices: list[int], drop: bool = False) -> str:
    """Write the rows of the table without its targets, in another order of columns."""
    with Path("cars.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if drop:
        rows = [row for row in rows if row["mileage"] and row["fuel"]]
    names = ["extra", "doors", "mileage", "sold", "fuel", "maker", "id"]
    with Path("new_cars.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", restval="?")
        writer.writeheader()
        writer.writerows(rows[n] for n in indices)
    return "new_cars.csv"


@pytest.mark.parametrize(
    ("kind", "normalize"),
    [*((kind, "auto") for kind in TABLES), ("several", "inputs"), ("one hot", "null")],
)
def test_tables(kind: str, normalize: str, trained: Project) -> None:
    args, loss, n_outputs = TABLES[kind]
    model = f"model: {{type: MLP, args: {{n_inputs: null, hidden: [4], n_outputs: {n_outputs}}}}}"
    run = trained.train(table_text(args, loss, model, normalize))
    assert_as_validated(run, lambda _, indices, __: [written(indices, drop=kind == "rows dropped")])


def test_a_table_of_codes(trained: Project) -> None:
    args = f"{INPUTS}target: kind, {GAPS}, categories: [maker, fuel], encode: codes"
    model = "model: {type: TableNet, args: {n_numbers: 3, n_codes: [4, 4], n_outputs: 2}}"
    run = trained.train(table_text(args, "cross_entropy", model))
    assert_as_validated(run, some_rows)


def test_joined_tables(trained: Project) -> None:
    one = CARS % f"{INPUTS}target: price, task: regression, {GAPS}, categories: [maker, fuel]"
    dataset = f"{{type: ConcatenatedDataset, args: {{datasets: [{one}]}}}}"
    model = "model: {type: MLP, args: {n_inputs: null, hidden: [4], n_outputs: 1}}"
    more = "optimizer: {type: SGD, args: {lr: 0.001}}\nloss: mse_loss"
    run = trained.train(images(", normalize: auto", dataset, more, model))
    assert_as_validated(run, some_rows)


def own(loader: str, model: str, more: str = COMMON) -> str:
    return f"model: {model}\ndata_loader: {{type: {loader}, args: {{}}}}\n{more}"


def vectors() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 6, generator=generator)


def test_inputs_of_a_loader_of_your_own_with_references_and_lazy_layers(trained: Project) -> None:
    run = trained.train(
        own("VectorsLoader", "{type: Flat, args: {n_outputs: '${data_loader.n_classes}'}}")
    )

    def chosen(_: Path, indices: list[int], __: list[str]) -> list[str]:
        np.savez("vectors.npz", x=vectors()[indices].numpy())
        return ["vectors.npz"]

    assert_as_validated(run, chosen)


def test_a_loaders_own_function_reads_files(trained: Project) -> None:
    text = own("FilesLoader", "{type: Flat, args: {n_outputs: 2}}")
    run = trained.train(text.replace("args: {}}", "args: {scale: 1.0}}"))

    def chosen(_: Path, indices: list[int], __: list[str]) -> list[str]:
        Path("numbers").mkdir(exist_ok=True)
        for place, index in enumerate(indices):
            text = " ".join(map(repr, vectors()[index].tolist()))
            Path(f"numbers/{place:02}.txt").write_text(text)
        return ["numbers"]

    assert_as_validated(run, chosen)


def test_a_data_sets_own_function_reads_images(trained: Project) -> None:
    dataset = "{type: NumpyImages, args: {root: images/arrays}}"
    model = "model: {type: Flat, args: {n_outputs: 2}}"
    run = trained.train(images(", normalize: auto", dataset, model=model))
    assert_as_validated(run, lambda _, indices, __: [f"images/arrays/{n:02}.npy" for n in indices])


@pytest.mark.parametrize("rules", ["{target: kind}", "{inputs: [left, right], target: kind}"])
def test_inputs_by_name(rules: str, trained: Project) -> None:
    text = f"batch: {rules}\n" + own("PairsLoader", "{type: PairNet}")
    run = trained.train(text)

    def chosen(_: Path, indices: list[int], __: list[str]) -> list[str]:
        found = vectors()[indices].numpy()
        np.savez("pairs.npz", right=found[:, 4:], left=found[:, :4])
        return ["pairs.npz"]

    assert_as_validated(run, chosen)


def test_tokens(trained: Project) -> None:
    run = trained.train(own("TextLoader", "{type: TokenNet}"))

    def chosen(_: Path, indices: list[int], __: list[str]) -> list[str]:
        generator = torch.Generator().manual_seed(2)
        tokens = torch.randint(9, (40, 5), generator=generator)[indices]
        np.save("tokens.npy", tokens.numpy().astype(np.uint8))
        return ["tokens.npy"]

    assert_as_validated(run, chosen)


def test_the_student_of_a_distillation_without_its_teachers_file(trained: Project) -> None:
    teacher = trained.train(images("", folder_of("equal")))
    weights = Path("teacher_copy")
    if not weights.exists():
        import shutil

        shutil.copytree(teacher, weights)
    small = "{type: SmallCNN, args: {n_classes: 3, width: %d, n_stages: 1}}"
    model = (
        f"model: {{type: Networks, args: {{student: {small % 2}, teacher: {{type: SmallCNN,"
        " args: {n_classes: 3, width: 4, n_stages: 1}, weights: teacher_copy}}}\n"
        'freeze: ["teacher.*"]'
    )
    text = images("", folder_of("equal"), COMMON, model)
    run = trained.train(text, "--set", "trainer.type=DistillationTrainer",
                        "optimizer.params=student.*")  # fmt: skip
    weights.rename("gone")
    try:
        assert_as_validated(run, files_in("equal"))
    finally:
        Path("gone").rename("teacher_copy")


@pytest.fixture(autouse=True)
def _silent(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capsys.readouterr()


def test_rows_are_those_of_the_scores(trained: Project) -> None:
    run = trained.train(images(", normalize: auto", folder_of("equal")))
    _, ids, expected = validation(run)
    loaded = load_trained(run, CPU)
    words = [f"images/equal/{each}" for each in ids]
    rows = Predictions(loaded, open_samples(loaded, words), top_k=2).rows
    shares, order = expected.softmax(dim=1).sort(dim=1, descending=True)
    names = ["a", "b with space", "ü"]
    for row, file, share, place in zip(rows, words, shares, order, strict=True):
        assert list(row) == ["file", "class", "probability", "class_2", "probability_2"]
        assert (row["file"], row["class"]) == (file, names[place[0]])
        assert row["class_2"] == names[place[1]]
        assert row["probability"] == pytest.approx(float(share[0]), abs=1e-6)
        assert row["probability_2"] == pytest.approx(float(share[1]), abs=1e-6)
    assert loaded.predict(words, top_k=2).rows == rows
