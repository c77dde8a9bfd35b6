"""A graph with its preprocessing predicts what `predict.py` does for the same files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exported_models import FILES, arrays, call_export, train_model
from PIL import Image

from base.errors import UsageError
from base.prediction import image_loader, load_trained

SMALLER = [{"type": "Resize", "args": {"size": 12}}, {"type": "CenterCrop", "args": {"size": 8}}]


def smooth_pixels(n_images: int, height: int, width: int, n_channels: int = 1) -> np.ndarray:
    """Return uint8 images (image, height, width[, channel]) without noise, as photographs are."""
    draws = np.random.default_rng(1)
    coarse = torch.from_numpy(draws.uniform(0, 255, (n_images, n_channels, 4, 4)))
    wide = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    pixels = wide.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels[..., 0] if n_channels == 1 else pixels


def write_folder(folder: Path, n_channels: int = 3) -> None:
    """Write an image folder of three classes, with images of several sizes."""
    for number, name in enumerate(("a", "b", "ü c")):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(8):
            pixels = smooth_pixels(1, 16 + index, 20 + number, n_channels)[0]
            Image.fromarray(pixels).save(folder / "photos" / name / f"{index}.png")


def image_folder(**args) -> dict:
    dataset = {"type": "ImageFolderDataset", "args": {"root": "photos", **args.pop("dataset", {})}}
    settings = {"batch_size": 8, "split": 0.25, "normalize": "auto", "num_workers": 0}
    return {"type": "DatasetLoader", "args": {"dataset": dataset, **settings, **args}}


KINDS = {
    "pixels of an array": ({}, 1, (8, 8)),
    "resized files": (
        {"data_loader": image_folder(dataset={"resize": [8, 8], "mode": "grey"})}, 1, (21, 30)),
    "transforms": (
        {"data_loader": image_folder(transforms=SMALLER, valid_transforms=SMALLER,
                                     dataset={"mode": "grey"})}, 1, (21, 30)),
    "masks": ({"model": {"type": "Mask"}, "data_loader": arrays("masks")}, 1, (8, 8)),
    "one score for two classes": (
        {"model": {"type": "Net", "args": {"n_outputs": 1}}, "data_loader": arrays("yes"),
         "loss": "binary_cross_entropy_with_logits"}, 1, (8, 8)),
    "two numbers": (
        {"model": {"type": "Net", "args": {"n_outputs": 2}}, "data_loader": arrays("pairs"),
         "loss": "mse_loss"}, 1, (8, 8)),
    "not normalized": ({"data_loader": arrays(normalize=None)}, 1, (8, 8)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("kind", KINDS)
def test_raw_pixels_give_the_predictions_for_the_file(kind, suffix, project, monkeypatch) -> None:
    sections, n_channels, size = KINDS[kind]
    folder = project(FILES)
    write_folder(folder)
    run = train_model(folder, monkeypatch, **sections)
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    assert call_export("-r", run, "-o", f"net{suffix}", "--preprocessing") == 0
    pixels = smooth_pixels(3, *size, n_channels)
    paths = [folder / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    trained = load_trained(run, torch.device("cpu"))
    ((_, predictions),) = trained.predictions(image_loader(trained, paths, 3))
    wanted = trained.task(predictions).probabilities(predictions)
    if kind not in ("two numbers",):
        assert wanted.min() >= 0
        assert wanted.max() <= 1
    raw = torch.from_numpy(pixels.reshape(3, n_channels, *size))
    if suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(folder / "net.onnx")
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: raw.numpy()})[0])
    else:
        found = torch.export.load(folder / "net.pt2").module()(raw)
    tolerance = 0.01 if kind in ("resized files", "transforms") else 1e-4
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


TABLE = """kind,size,weight,price,level
red,1,2.5,10,low
blue,2,,20,high
red,3,3.5,30,low
green,4,4,40,high
blue,5,1,55,low
red,6,2,61,high
green,7,8,70,low
blue,8,,82,high
"""


class Wide:
    """The source of a model that takes numbers and codes."""

    text = """
        import torch
        from torch import nn
        from base import BaseModel


        class Coded(BaseModel):
            def __init__(self, n_numbers=2, n_codes=4):
                super().__init__()
                self.codes = nn.Embedding(n_codes, 3)
                self.head = nn.Linear(n_numbers + 3, 1)

            def forward(self, numbers, codes):
                return self.head(torch.cat([numbers, self.codes(codes[:, 0])], dim=1))


        class Flat(BaseModel):
            def __init__(self, n_inputs=5, n_outputs=1):
                super().__init__()
                self.head = nn.Linear(n_inputs, n_outputs)

            def forward(self, inputs):
                return self.head(inputs)
    """


def table(target="price", task="regression", **args) -> dict:
    given = {"file": "table.csv", "target": target, "task": task, "categories": ["kind"],
             "missing": {"weight": "mean"}, "ignore": ["level", "price"], **args}  # fmt: skip
    given["ignore"] = [name for name in given["ignore"] if name != target]
    dataset = {"type": "CsvDataset", "args": given}
    return {"type": "DatasetLoader", "args": {"dataset": dataset, "batch_size": 4,
                                              "normalize": "auto", "num_workers": 0}}  # fmt: skip


TABLES = {
    "a number": {"model": {"type": "Flat"}, "data_loader": table(), "loss": "mse_loss"},
    "codes": {"model": {"type": "Coded"}, "data_loader": table(encode="codes"), "loss": "mse_loss"},
    "a class": {
        "model": {"type": "Flat", "args": {"n_outputs": 2}},
        "data_loader": table("level", "classification"),
    },
}


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        pytest.param(k, s, marks=pytest.mark.slow if (k, s) != ("a number", ".pt2") else ())
        for k in TABLES
        for s in (".pt2", ".onnx")
    ],
)
def test_raw_columns_give_the_predictions_for_the_table(kind, suffix, project, monkeypatch) -> None:
    folder = project({**FILES, "model/tables.py": Wide.text})
    (folder / "table.csv").write_text(TABLE, encoding="utf-8")
    run = train_model(folder, monkeypatch, **TABLES[kind])
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    assert call_export("-r", run, "-o", f"net{suffix}", "--preprocessing") == 0
    (folder / "new.csv").write_text(
        "kind,size,weight\nred,2.5,\nblue,9,3\ngreen,1,2\nviolet,3,4\n", encoding="utf-8"
    )
    rows = load_trained(run, torch.device("cpu")).predict("new.csv").rows
    # The codes are those of the sorted values: 1 blue, 2 green, 3 red; 0 is unknown.
    raw = np.array([[3, 2.5, np.nan], [1, 9, 3], [2, 1, 2], [0, 3, 4]], dtype=np.float64)
    if suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(folder / "net.onnx")
        found = session.run(None, {session.get_inputs()[0].name: raw})[0]
    else:
        found = torch.export.load(folder / "net.pt2").module()(torch.from_numpy(raw)).numpy()
    if kind == "a class":
        names = [("high", "low")[each] for each in found.argmax(axis=1)]
        assert [row["class"] for row in rows] == names
        np.testing.assert_allclose([r["probability"] for r in rows], found.max(axis=1), atol=1e-4)
    else:
        np.testing.assert_allclose([row["price"] for row in rows], found[:, 0], rtol=1e-4)
        assert abs(found.mean()) > 5, "in the unit of the targets"


GAPS = """kind,picked,weight,price
red,1970-01-03,2.5,10
blue,1970-01-01,,20
,1970-01-05,3.5,30
green,1970-02-01,4,40
,1971-01-01,1,55
red,1970-01-09,2,61
green,1970-01-02T12:00,7,70
blue,1970-01-08,,82
"""
FILLS = {  # rule: code of an empty cell (values are sorted), or None if it is not allowed
    "a value of its own": ({"kind": "unbekannt", "weight": "mean"}, 4, {}),
    "a known value": ({"kind": "green", "weight": "mean"}, 2, {}),
    "the category of empty cells": ("median", 1, {}),
    "codes": ({"kind": "unbekannt", "weight": 2}, 4, {"encode": "codes"}),
    "an unknown value": ({"kind": "unbekannt", "weight": "mean"}, 0, {}),
}


@pytest.mark.parametrize("suffix", [".pt2", pytest.param(".onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FILLS)
def test_empty_cells_of_a_category_are_coded_as_in_training(
    kind, suffix, project, monkeypatch
) -> None:
    rule, code, args = FILLS[kind]
    folder = project({**FILES, "model/tables.py": Wide.text})
    rows = GAPS if code else GAPS.replace("\n,", "\nred,")  # no gap in the training data
    (folder / "table.csv").write_text(rows, encoding="utf-8")
    n_values = 3 + (code in (1, 4))
    model = {"type": "Flat", "args": {"n_inputs": n_values + 2}}
    if args:
        model = {"type": "Coded", "args": {"n_numbers": 2, "n_codes": n_values + 1}}
    loader = table(missing=rule, dates="picked", ignore=[], **args)
    run = train_model(folder, monkeypatch, model=model, loss="mse_loss", data_loader=loader)
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    assert call_export("-r", run, "-o", f"net{suffix}", "--preprocessing") == 0
    (folder / "new.csv").write_text(
        "kind,picked,weight\n,1970-01-03,\nred,1970-01-04,3\nviolet,1970-01-05,4\n", "utf-8"
    )
    wanted = [
        row["price"] for row in load_trained(run, torch.device("cpu")).predict("new.csv").rows
    ]
    red = {1: 4}.get(code, 3)
    raw = np.array([[np.nan, 2, np.nan], [red, 3, 3], [0, 4, 4]])
    if suffix == ".onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(folder / "net.onnx")
        found = session.run(None, {session.get_inputs()[0].name: raw})[0]
    else:
        found = torch.export.load(folder / "net.pt2").module()(torch.from_numpy(raw)).numpy()
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-4)
    card = Path("MODEL_CARD.md").read_text("utf-8")
    value = {1: "empty", 2: "`green`", 4: "`unbekannt`"}.get(code, "an unknown value")
    assert f"- `kind`: NaN, an empty cell, counts as {value}, code {code}\n" in card
    assert "- `weight`: NaN, an empty cell, counts as " in card
    refused = "- NaN, an empty cell, is not allowed, as no training sample has it: `picked`\n"
    assert (refused in card) == (rule != "median")
    assert "`picked`, a date, as days since 1970-01-01" in card


def test_a_transform_that_a_graph_cannot_hold_is_left_to_the_caller(project, monkeypatch) -> None:
    own = """
        class Brighter:
            def __call__(self, image):
                return (image.float() * 1.1).clamp(0, 255).to(image.dtype)
    """
    folder = project({**FILES, "data_loader/transforms.py": own})
    run = train_model(folder, monkeypatch,
                      data_loader=arrays(valid_transforms=[{"type": "Brighter"}]))  # fmt: skip
    assert call_export("-r", run, "-o", "net.pt2", "--preprocessing") == 0
    card = Path("MODEL_CARD.md").read_text("utf-8")
    assert "Before the graph, apply: Brighter" in card


def test_data_of_an_own_loader_have_no_preprocessing_to_export(project, monkeypatch) -> None:
    from exported_models import OWN

    run = train_model(project(FILES), monkeypatch, model={"type": "TwoInputs"},
                      data_loader=OWN["ages"])  # fmt: skip
    with pytest.raises(UsageError, match="prepares its samples in code of its own"):
        call_export("-r", run, "-o", "net.pt2", "--preprocessing")
    with pytest.raises(UsageError, match="not for a --module"):
        call_export("-r", run, "-o", "net.pt2", "--preprocessing", "--module", "head")
