"""Data that change or vanish between two commands: `train.py -r` and `test.py -r` as typed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from workplace import Workplace

pytestmark = pytest.mark.end_to_end

NAMES = ["cat", "dog", "emu"]
TABLE = """
name: table
seed: 5
model: {type: MLP, args: {n_inputs: 4, hidden: [8], n_outputs: 3}}
data_loader:
  type: DatasetLoader
  args: {dataset: {type: CsvDataset, args: {file: t.csv, target: kind}}, batch_size: 30, split: 0.4}
optimizer: {type: SGD, args: {lr: 0.1}}
loss: cross_entropy
trainer: {epochs: 2}
"""
IMAGES = """
name: images
seed: 7
model: {type: Sequential, args: {layers: [Flatten, {type: LazyLinear, args: {out_features: 3}}]}}
data_loader:
  type: DatasetLoader
  args:
    dataset: {type: ImageFolderDataset, args: {root: images}}
    test_dataset: {type: ImageFolderDataset, args: {root: others}}
    batch_size: 16
    split: 0.3
    normalize: auto
optimizer: {type: SGD, args: {lr: 0.01}}
loss: cross_entropy
metrics: [accuracy]
trainer: {epochs: 2, test: true}
"""


@pytest.fixture
def table(place: Workplace) -> Path:
    """A table of 60 rows, and a run of two epochs on it."""
    values = np.random.default_rng(0).normal(size=(60, 4)).round(6)
    rows = [",".join([*map(str, row), NAMES[i % 3]]) for i, row in enumerate(values)]
    (place.folder / "t.csv").write_text("\n".join(["a,b,c,d,kind", *rows, ""]))
    (place.folder / "table.yaml").write_text(TABLE)
    assert place.run("-c", "table.yaml").returncode == 0
    return place.folder / "t.csv"


@pytest.mark.parametrize(
    ("change", "told", "advised"),
    [
        (lambda rows: [row.replace("emu", "bird") for row in rows],
         "of the 3 classes 'emu' is missing and 'bird' is new; 60 of 60 targets differ (t.csv:2: 0 "
         "then, 1 now, ", "list them in `classes`"),
        (sorted, "the samples are the same, but ", "--allow-change does not help"),
        (lambda rows: [*rows[:6], rows[6].replace("cat", "dog"), *rows[7:]],
         "1 of 60 targets differ (t.csv:8: 0 then, 1 now)", "add --allow-change"),
        (lambda rows: [*rows[:6], "9" + rows[6], *rows[7:]],
         "the inputs of 1 of 60 samples differ (t.csv:8)", "--allow-change does not help"),
        (lambda rows: rows[:-1], "60 samples then, 59 now; 1 sample is missing (59)",
         "--allow-change does not help"),
    ],
    ids=["renamed", "sorted", "edited", "inputs", "shorter"],
)  # fmt: skip
def test_a_resume_with_changed_data_is_refused(place, table, change, told, advised):
    first, *rows = table.read_text().splitlines()
    (run,) = place.runs()
    before = {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    table.write_text("\n".join([first, *change(rows), ""]))
    allow = [] if advised == "add --allow-change" else ["--allow-change"]
    done = place.run("-r", "--epochs", "3", *allow)
    assert done.returncode == 1
    assert told in done.stderr
    assert advised in done.stderr
    assert "Traceback" not in done.stderr
    after = {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before, "nothing was written"
    table.write_text("\n".join([first, *rows, ""]))
    assert place.run("-r", "--epochs", "3").returncode == 0


def test_corrected_labels_can_be_allowed(place, table):
    table.write_text(table.read_text().replace("cat\n", "dog\n", 1))
    done = place.run("-r", "--epochs", "3", "--allow-change")
    assert done.returncode == 0, done.stderr
    assert "the run continues with the new labels" in done.stderr + done.stdout
    done = place.run("-r", "--epochs", "4")
    assert done.returncode == 0, done.stderr


def test_names_can_be_renamed_where_the_config_keeps_their_order(place, table):
    table.write_text(table.read_text().replace("emu", "bird"))
    words = "data_loader.args.dataset.args.classes=[cat, dog, bird]"
    done = place.run("-r", "--epochs", "3", "--set", words)
    assert done.returncode == 1
    assert "add --allow-change" in done.stderr
    done = place.run("-r", "--epochs", "3", "--allow-change", "--set", words)
    assert done.returncode == 0, done.stderr


def test_the_test_gives_the_same_numbers_without_the_training_images(place):
    random = np.random.default_rng(0)
    for part, n_images in (("images", 20), ("others", 8)):
        for number, name in enumerate(NAMES):
            folder = place.folder / part / name
            folder.mkdir(parents=True)
            for i in range(n_images):
                pixels = random.normal(60 + 60 * number, 25, (12, 10, 3)).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02}.png")
    (place.folder / "images.yaml").write_text(IMAGES)
    assert place.run("-c", "images.yaml").returncode == 0
    (run,) = place.runs()
    report = run / "report" / "test.json"
    expected = report.read_bytes()
    shutil.rmtree(place.folder / "images")
    shutil.rmtree(place.folder / ".cache", ignore_errors=True)
    report.unlink()
    done = place.run("test.py", "-r")
    assert done.returncode == 0, done.stderr
    assert report.read_bytes() == expected
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(expected)
    again = place.run("-r", "--epochs", "3")
    assert again.returncode == 1
    assert "images: no such folder" in again.stderr
