"""The page of a run: whole and escaped, without what is not there, readable at any size."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from base.config import load_config
from base.report.page import write_report
from base.report.pictures import palette, with_mask
from base.report.predictions import Predictions, Worst, read_rows_of, write_predictions
from base.report.settings import differing, flat, settings_of
from logger.csv_writer import CsvWriter

VOID = {"meta", "img", "br"}
ODD = '<script>alert("x")</script> & größe 日本'
CONFIG = """
name: page
model: {type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3}}
data_loader: {type: SyntheticDataLoader, args: {n_samples: 24, shape: [1, 1, 5], batch_size: 4}}
optimizer: {type: SGD, args: {lr: 0.5}}
loss: cross_entropy
trainer: {epochs: 3, monitor: min valid/loss}
"""


class Balance(HTMLParser):
    """Collects text, and checks that each element is closed in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += attributes
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += attributes

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(text: str) -> Balance:
    balance = Balance()
    balance.feed(text)
    balance.close()
    assert not balance.open
    return balance


def made(folder: Path) -> str:
    text = write_report(folder).read_text(encoding="utf-8")
    parsed(text)
    return text


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder after three epochs."""
    folder = tmp_path / "page" / "20261129-101112"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(load_config(None, text=CONFIG).to_yaml())
    writer = CsvWriter(folder / "metrics.csv")
    for epoch in (1, 2, 3):
        row = {"epoch": epoch, "step": 5 * epoch, "train/loss": 10.0**-epoch}
        row |= {"valid/loss": 0.5 + (epoch - 2) ** 2, "valid/accuracy": epoch / 4, "lr": 0.5}
        row |= {"seconds": 1.5, "samples_per_second": 10.0, "memory_mb": 300.0, "time/data": 0.5}
        writer.add_row(row)
    return folder


def classified(n_classes: int = 3, n_samples: int = 12, **more: object) -> Predictions:
    draw = np.random.default_rng(0)
    target = draw.integers(0, n_classes, n_samples)
    values = {
        "part": "valid", "task": "classification",
        "ids": [f"img {number}.png" for number in range(n_samples)],
        "names": [f"class {number}" for number in range(n_classes)],
        "target": target, "prediction": draw.integers(0, n_classes, n_samples),
        "probability": draw.random(n_samples), "target_probability": draw.random(n_samples),
        "checkpoint": "step-00000010", "epoch": 2,
    }  # fmt: skip
    return Predictions(**{**values, **more})  # type: ignore[arg-type]


def test_the_page_needs_no_other_file(run: Path) -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    write_predictions(run, classified(worst=[Worst(0, image), Worst(1, image)]))
    seen = parsed(made(run))
    links = [value for name, value in seen.attributes if name in ("src", "href")]
    assert links
    assert all(str(link).startswith(("data:image/png;base64,", "#")) for link in links)
    text = (run / "report" / "index.html").read_text()
    assert "<script" not in text
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", text)
    assert "@import" not in text


def test_what_a_run_does_not_have_is_left_out(run: Path, tmp_path: Path) -> None:
    assert headings(made(run)) == ["Curves", "Epochs", "Time and memory", "Settings"]
    (tmp_path / "empty").mkdir()
    assert headings(made(tmp_path / "empty")) == []


def test_the_best_epoch_is_marked(run: Path) -> None:
    text = made(run)
    assert "dashed: best epoch, 2" in text
    assert "epoch 2, the best by min valid/loss" in text
    assert re.search(r"<dt>best valid/loss</dt><dd>0\.5</dd>", text)


def test_names_from_outside_are_escaped_everywhere(run: Path) -> None:
    config = load_config(None, [f"name={json.dumps('a & b')}"], text=CONFIG)
    (run / "config.yaml").write_text(config.to_yaml())
    CsvWriter(run / "metrics.csv").add_row({"epoch": 4, f"valid/{ODD}": 0.5})
    image = np.zeros((4, 4), dtype=np.uint8)
    found = classified(names=[ODD, "<b>", "c"], ids=[f"{ODD}/{n}" for n in range(12)])
    found.worst = [Worst(0, image, place=f"{ODD}.csv:3", columns={ODD: ODD})]
    write_predictions(run, found)
    (run / "env.txt").write_text(f"command      {ODD}\n")
    (run / "parameters.csv").write_text(f'name,numbers,group\n"<i>",3,{ODD.replace(",", "")}\n')
    text = made(run)
    assert "<script" not in text
    assert sum(ODD in each for each in parsed(text).text) >= 6
    tabled = classified(names=[ODD, "<b>", "c"])
    tabled.worst = [Worst(0, place=ODD, columns={ODD: ODD})]
    write_predictions(run, tabled)
    assert "<script" not in made(run)


def test_a_thousand_classes_stay_readable(run: Path) -> None:
    write_predictions(run, classified(1000, 50_000))
    text = made(run)
    assert len(text) < 600_000
    assert "Most confused classes" in text
    assert "matrix" not in text.partition("</style>")[2]
    assert len((run / "report" / "predictions.csv").read_text().splitlines()) == 50_001


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"format": 1}', b'{"format": 7, "parts": {}}', b"\xff"]
)
def test_a_damaged_file_of_predictions_is_left_out(run: Path, content: bytes) -> None:
    write_predictions(run, classified())
    (run / "report" / "predictions.json").write_bytes(content)
    assert "Predictions: validation data" not in headings(made(run))


def test_values_that_are_not_finite_are_gaps(run: Path) -> None:
    writer = CsvWriter(run / "metrics.csv")
    writer.add_row({"epoch": 4, "train/loss": float("nan"), "valid/loss": float("inf")})
    assert (
        "nan" not in re.sub(r"<title>.*?</title>", "", made(run).partition("</style>")[2]).lower()
    )


def test_the_test_data_do_not_replace_the_validation_data(run: Path) -> None:
    write_predictions(run, classified(part="test", ids=[f"t{n}" for n in range(12)]))
    write_predictions(run, classified())
    write_predictions(run, classified(part="test", ids=[f"u{n}" for n in range(12)]))
    assert set(read_rows_of(run, "valid")) == {f"img {n}.png" for n in range(12)}
    assert set(read_rows_of(run, "test")) == {f"u{n}" for n in range(12)}
    lines = (run / "report" / "predictions.csv").read_text().splitlines()
    assert lines[0] == "part,id,target,prediction,probability,target_probability"
    assert [line.partition(",")[0] for line in lines[1:]] == ["valid"] * 12 + ["test"] * 12
    assert [h for h in headings(made(run)) if h.startswith("Pred")] == [
        "Predictions: validation data", "Predictions: test data",
    ]  # fmt: skip


def test_pictures_of_an_earlier_report_go(run: Path) -> None:
    image = np.zeros((4, 4), dtype=np.uint8)
    write_predictions(run, classified(worst=[Worst(n, image) for n in range(3)]))
    write_predictions(run, classified(worst=[Worst(0, image)]))
    assert [path.name for path in (run / "report" / "mistakes").iterdir()] == ["valid-01.png"]


def test_masks_are_four_pictures_and_their_pixels_are_counted(run: Path) -> None:
    image = np.full((4, 5, 3), 100, dtype=np.uint8)
    target, mask = np.zeros((4, 5), int), np.ones((4, 5), int)
    target[0] = -1
    empty = np.zeros((2, 0))
    found = Predictions(
        part="valid", task="segmentation", ids=["0", "1"], names=["paper", "ink"],
        target=empty, prediction=empty, scores={"mean_iou": np.array([0.25, np.nan])},
        pairs=[[0, 0, 7], [0, 1, 3]], worst=[Worst(1, image, target, mask)],
    )  # fmt: skip
    write_predictions(run, found)
    names = sorted(path.name for path in (run / "report" / "mistakes").iterdir())
    assert names == [f"valid-01-{k}.png" for k in ("image", "prediction", "target", "wrong")]
    with Image.open(run / "report" / "mistakes" / "valid-01-wrong.png") as picture:
        pixels = np.asarray(picture)
    assert (pixels[0] == pixels[0, 0]).all()  # not judged, so not red
    assert pixels[0, 0, 0] < pixels[1, 0, 0]
    assert "Confusion matrix, in pixels" in made(run)


def test_pictures_of_callbacks_are_shown(run: Path) -> None:
    (run / "report").mkdir()
    Image.new("L", (8, 8)).save(run / "report" / "samples.png")
    Image.new("L", (8, 8)).save(run / "report" / "curves.png")
    text = made(run)
    assert "samples.png" in text
    assert "curves.png" not in text


def test_settings_are_marked_if_they_differ_from_the_schema() -> None:
    config = yaml.safe_load(load_config(None, text=CONFIG).to_yaml())
    changed = {each.key for each in settings_of(config) if each.is_changed}
    assert {"name", "model.type", "model.args.n_inputs", "optimizer.args.lr", "loss"} <= changed
    assert {"trainer.epochs", "trainer.monitor"} <= changed
    assert not {"seed", "trainer.save_dir", "memory.precision", "metrics"} & changed
    assert flat(config)["loss"] == "[cross_entropy]"


def test_differing_settings_are_listed_with_all_values() -> None:
    one, other = {"name": "a", "seed": 1}, {"name": "a", "seed": 2, "extra": {"mine": 3}}
    assert differing([one, other]) == {"seed": ["1", "2"], "extra.mine": ["", "3"]}


def long_run(folder: Path, n_epochs: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(load_config(None, text=CONFIG).to_yaml())
    names = ["train/loss", "valid/loss", "valid/accuracy", "lr", "seconds"]
    lines = [",".join(["epoch", "step", *names])]
    for epoch in range(1, n_epochs + 1):
        values = [f"{(epoch * prime % 997 + 1) / 998:.4f}" for prime in (7, 11, 13, 17, 19)]
        lines.append(",".join([str(epoch), str(5 * epoch), *values]))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def calls_of(folder: Path) -> int:
    """Return how many functions are called to write the page of a run."""
    n_calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal n_calls
        n_calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        write_report(folder)
    finally:
        sys.setprofile(None)
    return n_calls


def test_the_work_for_a_page_grows_with_the_epochs_and_no_faster(tmp_path: Path) -> None:
    calls = [calls_of(long_run(tmp_path / str(n), n)) for n in (300, 900)]
    assert calls[1] < 4 * calls[0]


def test_the_page_of_a_very_long_run_stays_small(tmp_path: Path) -> None:
    text = made(long_run(tmp_path / "long", 3000))
    assert len(text) < 600_000
    assert text.count("<tr><td") < 250
    assert "3,000 epochs: the first, the last, the best and each multiple of 15 are shown" in text
    best = re.findall(r'<tr><td class="number best">([\d,]+)</td>', text)
    assert len(best) == 1


def regressed(**worst: object) -> Predictions:
    target = np.array([[765682.0], [839.67], [0.5]])
    return Predictions(
        "valid", "regression", list("abc"), ["price"], target, target + 1.25,
        worst=[Worst(row, **worst) for row in range(3)],  # type: ignore[arg-type]
    )  # fmt: skip


def test_numbers_of_the_worst_predictions_have_one_format(run: Path) -> None:
    write_predictions(run, regressed(columns={"year": "2015", "area": "1234.5"}))
    text = made(run)
    assert '<td class="number">765,682</td><td class="number">765,683</td>' in text
    assert '<td class="number">839.7</td>' in text
    assert '<td class="number">2015</td><td class="number">1234.5</td>' in text
    write_predictions(run, regressed(image=np.zeros((4, 4), dtype=np.uint8)))
    assert "target 765,682<br>prediction 765,683<br>a" in made(run)
    digits = classified(names=["1000", "2000", "3000"], worst=[Worst(0)])
    write_predictions(run, digits)
    assert f"<td>{[1000, 2000, 3000][digits.target[0]]}</td>" in made(run)


def test_masks_have_the_colours_of_predicted_masks(run: Path) -> None:
    from base.prediction.masks import palette as of_predicted_masks

    assert palette() == of_predicted_masks()
    mask = np.arange(4).repeat(2).reshape(2, 4)
    shown = with_mask(np.zeros((2, 4), dtype=np.uint8), mask)
    wanted = [[0.65 * channel for channel in palette()[number]] for number in (0, 1, 2, 3)]
    np.testing.assert_allclose(shown[0, ::2], [wanted[0], wanted[1]], atol=0.6)
    np.testing.assert_allclose(shown[1, ::2], [wanted[2], wanted[3]], atol=0.6)
