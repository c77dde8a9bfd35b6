"""Rows, masks and arrays of trained runs: every task, and files that cannot be read."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predicted_project import Project, validation

from base.errors import UsageError
from base.prediction import Predictions, load_trained, open_delivery, open_samples
from base.prediction.output import OutputFile

CPU = torch.device("cpu")
FOLDER = "{type: ImageFolderDataset, args: {root: images/equal}}"
SGD = "optimizer: {type: SGD, args: {lr: 0.01}}"


def text(dataset: str, model: str, loss: str, args: str = "", more: str = "") -> str:
    return f"""
model: {model}
data_loader:
  type: DatasetLoader
  args: {{dataset: {dataset}, batch_size: 5, split: 0.3, num_workers: 2{args}}}
{SGD}
loss: {loss}
{more}
"""


def cnn(n: int) -> str:
    return f"{{type: SmallCNN, args: {{n_classes: {n}, width: 4, n_stages: 1}}}}"


@pytest.fixture
def flowers(trained: Project) -> Any:
    return load_trained(trained.train(text(FOLDER, cnn(3), "cross_entropy")), CPU)


@pytest.fixture(autouse=True)
def _silent(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    capsys.readouterr()


# --- Files ----------------------------------------------------------------------------------------


def test_unreadable_files_are_listed_and_the_rest_is_done(flowers: Any, tmp_path: Path) -> None:
    good = flowers.predict("images/equal").rows
    mixed = tmp_path / "mixed"
    shutil.copytree("images/equal", mixed)
    (mixed / "a" / "00.png").write_bytes(b"not an image")
    (mixed / "ü" / "cut.jpg").write_bytes(Path("images/any/a/0.jpg").read_bytes()[:300])
    (mixed / "zero.png").touch()
    for batch_size in (1, 4, 100):
        found = flowers.predict(mixed, batch_size=batch_size)
        assert {Path(name).name for name, _ in found.unreadable} == {
            "00.png", "cut.jpg", "zero.png",
        }  # fmt: skip
        assert all("\n" not in reason and reason for _, reason in found.unreadable)
        assert [Path(row["file"]).relative_to(mixed) for row in found.rows] == [
            Path(row["file"]).relative_to("images/equal") for row in good
        ]
        for row, other in zip(found.rows, good, strict=True):
            assert row["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_files_of_a_list_that_do_not_exist_are_unreadable(flowers: Any, tmp_path: Path) -> None:
    source = Path("images/equal/a/0.png").absolute()
    (tmp_path / "list.txt").write_text(f"{source}\nmissing.png  # a comment\n")
    found = flowers.predict(tmp_path / "list.txt")
    assert [row["file"] for row in found.rows] == [str(source)]
    ((name, reason),) = found.unreadable
    assert (name, reason) == (str(tmp_path / "missing.png"), "no such file")


def test_nothing_readable_is_an_error(flowers: Any, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no")
    (tmp_path / "2.png").write_bytes(b"no")
    with pytest.raises(UsageError, match=r"^.*1\.png: not an image"):
        flowers.predict(tmp_path / "1.png")
    with pytest.raises(UsageError, match=r"none of the 2 files can be read; the first: .*1\.png"):
        flowers.predict(tmp_path)


def test_other_sizes_are_resized_to_the_size_of_training(flowers: Any) -> None:
    rows = flowers.predict(["images/any/a/7.png", "images/equal/a/0.png"]).rows
    assert len(rows) == 2


def test_results_as_csv(flowers: Any, tmp_path: Path) -> None:
    found = flowers.predict("images/equal", top_k=2)
    found.to_csv(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [row["file"] for row in found.rows]
    assert [float(row["probability_2"]) for row in rows] == pytest.approx(
        [row["probability_2"] for row in found.rows], abs=1e-6
    )
    with pytest.raises(UsageError, match="exists already"):
        found.to_csv(tmp_path / "out.csv")


@pytest.mark.parametrize("tta", ["flip", "five_crop", "multi_crop"])
def test_views_are_averaged_as_probabilities(tta: str, flowers: Any) -> None:
    from base.prediction.views import views_named

    samples = open_samples(flowers, ["images/equal"])
    expected = []
    for _, (images, *rest) in flowers.batches(samples.loader):
        views = [
            flowers.predict_batch([view.change(images), *rest]).softmax(1)
            for view in views_named(tta)
        ]
        expected.append(torch.stack(views).mean(dim=0))
    found = Predictions(flowers, open_samples(flowers, ["images/equal"]), tta=tta)
    scores = torch.cat([scores for _, scores in found.scores()])
    torch.testing.assert_close(scores, torch.cat(expected), rtol=1e-6, atol=1e-6)


# --- Tasks ----------------------------------------------------------------------------------------


def image_table(target: str) -> str:
    """Return a data set of images in a table, with numbers to predict."""
    path = Path("images/tasks.csv")
    rows = [
        (f"equal/{label}/{n}.png", n % 2, n / 8, label, "red|round" if n % 2 else "red")
        for label in ("a", "ü")
        for n in range(8)
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        names = ("path", "warm", "size", "kind", "marks")
        csv.writer(file).writerows([names, *rows])
    return f"{{type: ImageCsvDataset, args: {{file: {path}, image: path, {target}}}}}"


def test_a_binary_run(trained: Project) -> None:
    dataset = image_table("target: kind")
    run = trained.train(text(dataset, "OneScore", "bce_of_class"))
    _, ids, expected = validation(run)
    rows = load_trained(run, CPU).predict([f"images/{each}" for each in ids]).rows
    for row, score in zip(rows, expected.sigmoid().tolist(), strict=True):
        assert row["class"] == ("ü" if score >= 0.5 else "a")
        assert row["probability"] == pytest.approx(max(score, 1 - score), abs=1e-6)


def test_a_multilabel_run(trained: Project) -> None:
    dataset = image_table('target: marks, task: multilabel, separator: "|"')
    run = trained.train(text(dataset, cnn(2), "binary_cross_entropy_with_logits"))
    _, ids, expected = validation(run)
    rows = load_trained(run, CPU).predict([f"images/{each}" for each in ids]).rows
    for row, scores in zip(rows, expected.sigmoid().tolist(), strict=True):
        assert [row["red"], row["round"]] == pytest.approx(scores, abs=1e-6)
        names = [n for n, p in zip(("red", "round"), scores, strict=True) if p >= 0.5]
        assert row["labels"] == "|".join(names)


def test_a_regression_of_images(trained: Project) -> None:
    dataset = image_table("target: [size, warm], task: regression")
    run = trained.train(text(dataset, cnn(2), "mse_loss"))
    _, ids, expected = validation(run)
    rows = load_trained(run, CPU).predict([f"images/{each}" for each in ids]).rows
    assert [[row["size"], row["warm"]] for row in rows] == pytest.approx(expected.numpy(), abs=1e-6)


SCENES = text(
    "{type: MaskFolderDataset, args: {root: images/scenes, classes: [ground, sky],"
    " resize: [16, 16]}}",
    "{type: UNet, args: {in_channels: 3, out_channels: 2, width: 4, depth: 2}}",
    "cross_entropy",
)


def test_masks_are_the_likeliest_class_of_each_pixel(trained: Project, tmp_path: Path) -> None:
    run = trained.train(SCENES)
    _, ids, expected = validation(run)
    loaded = load_trained(run, CPU)
    words = [f"images/scenes/images/{each}" for each in ids]
    found = loaded.predict(words, masks=tmp_path / "masks")
    for word, row, scores in zip(words, found.rows, expected, strict=True):
        classes = scores.argmax(dim=0)
        assert row["ground"] == pytest.approx(float((classes == 0).float().mean()))
        with Image.open(tmp_path / "masks" / Path(word).name) as mask, Image.open(word) as image:
            assert mask.size == image.size
            small = mask.resize((16, 16), Image.Resampling.NEAREST)
            share = float((np.array(small) == 0).mean())
        assert share == pytest.approx(row["ground"], abs=0.15)
    mirrored = Predictions(loaded, open_samples(loaded, words), tta="flip")
    scores = torch.cat([each for _, each in mirrored.scores()])
    assert scores.shape == expected.shape
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(len(words), 16, 16))


def test_a_pipe_gets_the_rows_alone(
    trained: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_trained(trained.train(SCENES), CPU)
    capsys.readouterr()
    samples = open_samples(run, ["images/scenes/images"])
    with open_delivery(None, tmp_path / "masks") as delivery:
        assert delivery.deliver(Predictions(run, samples, masks=delivery.masks)) == 0
    printed = capsys.readouterr()
    rows = list(csv.reader(printed.out.splitlines()))
    assert rows[0] == ["file", "ground", "sky"]
    assert [len(row) for row in rows] == [3] * 9
    assert printed.err == f"8 predictions in {tmp_path / 'masks'}\n"
    assert len(list((tmp_path / "masks" / "deep").iterdir())) == 8


def test_masks_of_a_classification_are_refused_and_leave_nothing(
    flowers: Any, tmp_path: Path
) -> None:
    samples = open_samples(flowers, ["images/equal"])
    masks = tmp_path / "out"
    refused = pytest.raises(UsageError, match="masks are for segmentation")
    with refused, open_delivery(masks, None) as delivery:
        delivery.deliver(Predictions(flowers, samples, masks=masks))
    assert list(tmp_path.iterdir()) == []


def test_several_outputs_are_arrays(trained: Project, tmp_path: Path) -> None:
    run = load_trained(trained.train(text(FOLDER, "TwoHeads", "kind_loss")), CPU)
    with pytest.raises(UsageError, match=r"several outputs.*-o predictions.npz"):
        run.predict("images/equal")
    with OutputFile(tmp_path / "out.npz") as file:
        found = Predictions(run, open_samples(run, ["images/equal"]))
        assert found.to_npz(file) == 24
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["kind"].shape == (24, 3)
        assert arrays["size"].shape == (24,)
        assert len(arrays["names"]) == 24


def test_arrays_have_probabilities_and_names(flowers: Any, tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out.npz") as file:
        Predictions(flowers, open_samples(flowers, ["images/equal"])).to_npz(file)
    rows = flowers.predict("images/equal").rows
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["classes"].tolist() == ["a", "b with space", "ü"]
        assert arrays["names"].tolist() == [row["file"] for row in rows]
        shares = arrays["predictions"].max(axis=1)
    assert shares == pytest.approx([row["probability"] for row in rows])


def test_networks_that_generate_make_no_predictions(trained: Project) -> None:
    config = Path(__file__).resolve().parents[3] / "config" / "digits_dcgan.yaml"
    run = trained.train(f"inherit: {config}", "--set", "trainer.steps=2", "trainer.epochs=null")
    with pytest.raises(UsageError, match="GANTrainer makes no predictions for files"):
        load_trained(run, CPU).predict("images/grey")


# --- Tables and arrays ----------------------------------------------------------------------------

ROWS = (
    "{type: CsvDataset, args: {file: cars.csv, target: price, task: regression,"
    " inputs: [maker, fuel, sold, mileage, doors], categories: [maker, fuel], dates: sold,"
    " missing: {mileage: median, fuel: unknown}}}"
)
MLP = "{type: MLP, args: {n_inputs: null, hidden: [4], n_outputs: 1}}"


@pytest.fixture
def cars(trained: Project) -> Any:
    return load_trained(trained.train(text(ROWS, MLP, "mse_loss", ", normalize: auto")), CPU)


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["note,maker,fuel,sold,mileage,doors", *rows, ""]), "utf-8")
    return path


def test_rows_that_cannot_be_read_are_left_out(cars: Any, tmp_path: Path) -> None:
    good, other = "x,BMW,petrol,2024-01-01,100,4", "y,Fiat,,2024-02-01,,2"
    alone = cars.predict(write(tmp_path / "good.csv", good, other)).rows
    bad = ("a,BMW,petrol,soon,100,4", "b,BMW,petrol,2024-01-01,many,4", "c,BMW,,2024-01-01,1,")
    table = write(tmp_path / "mixed.csv", good, bad[0], other, *bad[1:])
    found = cars.predict(table)
    assert [row["line"] for row in found.rows] == ["2", "4"]
    assert [row["note"] for row in found.rows] == ["x", "y"]
    assert [row["price"] for row in found.rows] == [row["price"] for row in alone]
    assert [name for name, _ in found.unreadable] == ["line 3", "line 5", "line 6"]
    reasons = [reason for _, reason in found.unreadable]
    for reason, name in zip(reasons, ("sold", "mileage", "doors"), strict=True):
        assert reason.startswith(f"{name}: ")


def test_an_unknown_category_is_predicted_and_named(
    cars: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = write(tmp_path / "new.csv", "x,Tesla,petrol,2024-01-01,100,4")
    import logging

    logger = logging.getLogger("kindling")
    logger.addHandler(caplog.handler)
    try:
        assert len(cars.predict(table).rows) == 1
    finally:
        logger.removeHandler(caplog.handler)
    assert "maker 'Tesla', unknown in training" in caplog.text


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("maker,fuel,sold,milage,doors", "BMW,petrol,2024-01-01,1,4",
         "it lacks the column 'mileage'; did you mean 'milage'"),
        ("maker,doors", "BMW,4", "it lacks the columns 'fuel', 'sold', 'mileage'"),
        ("maker,fuel,sold,mileage,doors", "BMW,petrol,2024-01-01,many,4",
         "mileage: expected a number, found 'many'"),
        ("maker,fuel,sold,mileage,doors", "", "no rows"),
        ("1,2,3", "4,5,6", "found only numbers"),
        ("maker;fuel;sold;mileage;doors", "BMW;petrol;2024-01-01;100;4",
         "; the first line holds ';': `delimiter: \";\"`, or --set 'data_loader.args.dataset.args."
         "delimiter=\";\"'"),
        ("maker,fuel,sold,mileage,doors", 'BMW,petrol,2024-01-01,"100,5",4',
         "a decimal comma: `decimal: \",\"`, or --set "
         "'data_loader.args.dataset.args.decimal=\",\"'"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_one_clear_line(
    header: str, row: str, message: str, cars: Any, tmp_path: Path
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"{header}\n{row}\n" if row else f"{header}\n")
    with pytest.raises(UsageError) as caught:
        cars.predict(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_for_images_and_images_for_a_table(flowers: Any, cars: Any) -> None:
    with pytest.raises(UsageError, match="no column 'file' or"):
        flowers.predict("cars.csv")
    with pytest.raises(UsageError, match="trained on a table: give a CSV file"):
        cars.predict("images")
    with pytest.raises(UsageError, match="2 files: give one table"):
        cars.predict(["cars.csv", "cars.csv"])


def test_arrays_that_do_not_fit_are_one_clear_line(flowers: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", first=np.zeros((2, 3, 5, 5), np.uint8), second=np.zeros(2))
    np.savez(tmp_path / "y.npz", images=np.zeros((2, 3, 5, 5), np.uint8))
    np.save(tmp_path / "z.npy", np.array(["a"]))
    (tmp_path / "broken.npz").write_bytes(b"no")
    for name, message in {
        "x.npz": "which array has the inputs? It has first, second",
        "x.npz:frist": "no array 'frist'; did you mean 'first'",
        "y.npz": "samples of shape (3, 5, 5), but the run's are (3, 12, 10)",
        "z.npy": "numbers are expected",
        "broken.npz": "not a readable npz file",
        "none.npz": "no such file",
    }.items():
        with pytest.raises(UsageError) as caught:
            flowers.predict(f"{tmp_path}/{name}")
        assert message in str(caught.value), name
        assert "\n" not in str(caught.value)


def test_a_loader_of_your_own_without_a_function_for_files(trained: Project) -> None:
    config = f"model: Flat\ndata_loader: {{type: VectorsLoader}}\n{SGD}\nloss: cross_entropy"
    run = load_trained(trained.train(config), CPU)
    with pytest.raises(UsageError, match=r"VectorsLoader .* static method `prepare_file\(path\)`"):
        run.predict("images/equal")
