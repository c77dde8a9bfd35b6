"""The card's lines load each file in a process that cannot import this repository."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_models import FILES, OWN, arrays, call_export, loaded_model, train_model
from PIL import Image

from base.errors import UsageError
from base.system.places import PROJECT

SECTION = re.compile(r"^### `(.+?)`\n.*?```python\n(.*?)```", re.MULTILINE | re.DOTALL)
CHECK = """
import sys
ours = [path for path in sys.path if path.startswith(PROJECT) and "site-packages" not in path]
assert not ours, ours
try:
    import base
except ImportError:
    pass
else:
    raise SystemExit("this process can import the engine")
import numpy
"""
AFTER = {
    ".pt2": "import numpy; numpy.save('found.npy', outputs.detach().numpy())",
    ".onnx": "import numpy; numpy.save('found.npy', outputs[0])",
    ".safetensors": "import numpy; numpy.save('found.npy', weights['head.weight'].numpy())",
    ".pt": "import numpy; numpy.save('found.npy', weights['head.weight'].numpy())",
}


def run_lines(code: str, folder: Path) -> None:
    """Run Python in a process of its own, without this repository or the user's site."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "suffix", [pytest.param(".pt2"), ".safetensors", ".pt",
               pytest.param(".onnx", marks=pytest.mark.slow)],
)  # fmt: skip
def test_the_lines_of_the_card_load_the_file(suffix, project, monkeypatch, tmp_path) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    run = train_model(project(FILES), monkeypatch)
    away = tmp_path / "a colleague's machine"
    away.mkdir()
    assert call_export("-r", run, "-o", away / f"nét{suffix}") == 0
    ((name, lines),) = SECTION.findall((away / "MODEL_CARD.md").read_text("utf-8"))
    assert name == f"nét{suffix}"
    assert len(lines.strip().splitlines()) <= 5
    about = "assert about['task']['name'] == 'classification', about"
    code = CHECK.replace("PROJECT", repr(str(PROJECT)))
    run_lines(f"{code}\n{lines}\n{about}\n{AFTER[suffix]}", away)
    found = torch.from_numpy(np.load(away / "found.npy"))
    model = loaded_model(run)
    if suffix in (".pt2", ".onnx"):
        with torch.no_grad():
            torch.testing.assert_close(found, model(torch.zeros(1, 1, 8, 8)), rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(found, model.state_dict()["head.weight"])


def test_a_card_describes_data_results_and_both_files(project, monkeypatch) -> None:
    run = train_model(project(FILES), monkeypatch, metrics=["accuracy"])
    assert call_export("-r", run, "-o", "a.pt") == 0
    assert call_export("-r", run, "-o", "b.safetensors") == 0
    card = Path("MODEL_CARD.md").read_text("utf-8")
    for text in ("18 train, 6 valid", "valid/accuracy", "images.npz", "SGD", "licence | TODO",
                 "`images`: float32 (batch, 1, 8, 8)", "softmax", "### `a.pt`"):  # fmt: skip
        assert text in card, text
    assert card.index("### `b.safetensors`") < card.index("### `a.pt`")
    Path("a.pt").unlink()
    assert call_export("-r", run, "-o", "b.safetensors", "--overwrite") == 0
    assert "a.pt" not in Path("MODEL_CARD.md").read_text("utf-8")


def test_a_card_that_was_edited_or_is_of_another_run_is_kept(project, monkeypatch) -> None:
    folder = project(FILES)
    run = train_model(folder, monkeypatch)
    other = train_model(folder, monkeypatch, seed=1)
    assert call_export("-r", run, "-o", "a.pt") == 0
    with pytest.raises(UsageError, match="describes another run"):
        call_export("-r", other, "-o", "b.pt")
    card = Path("MODEL_CARD.md")
    edited = card.read_text("utf-8").replace("licence | TODO", "licence | MIT TODO")
    card.write_text(edited, encoding="utf-8")
    with pytest.raises(UsageError, match="was edited"):
        call_export("-r", run, "-o", "b.pt")
    assert not Path("b.pt").exists()
    assert card.read_text("utf-8") == edited
    assert call_export("-r", run, "-o", "b.pt", "--overwrite") == 0
    assert "MIT" not in card.read_text("utf-8")


@pytest.mark.parametrize("name", ["a|b", "naïve 模型", "quote`d", 'say "x"'])
def test_names_do_not_break_the_card(name, project, monkeypatch) -> None:
    run = train_model(project(FILES), monkeypatch, data_loader=arrays(normalize=None))
    out = Path("out")
    out.mkdir()
    assert call_export("-r", run, "-o", out / f"{name}.pt") == 0
    ((_, lines),) = SECTION.findall((out / "MODEL_CARD.md").read_text("utf-8")) or [("", "")]
    run_lines(f"{lines}\nassert weights", out)


FLAT = """
    import torch
    from torch import nn


    class Flat(nn.Module):
        def __init__(self, n_inputs, n_outputs=1):
            super().__init__()
            self.head = nn.Linear(n_inputs, n_outputs)

        def forward(self, inputs):
            return self.head(inputs)
"""
ROWS = """kind,picked,width,price
red,1970-01-03,2.5,10
blue,1970-01-01,3,20
,1970-01-05,3.5,30
green=x,1970-02-01,,40
"""


def metadata(file: str) -> dict:
    """Return the facts in a .safetensors file."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["kindling"])


def table(**args) -> dict:
    """Return the section of a loader of table.csv."""
    given = {"file": "table.csv", "target": "price", "task": "regression", "dates": ["picked"],
             "categories": ["kind"], **args}  # fmt: skip
    dataset = {"type": "CsvDataset", "args": given}
    return {"type": "DatasetLoader", "args": {"dataset": dataset, "batch_size": 4,
                                              "normalize": "auto", "num_workers": 0}}  # fmt: skip


def test_the_card_of_a_table_says_how_its_cells_are_coded(project, monkeypatch) -> None:
    pytest.importorskip("safetensors")
    folder = project({**FILES, "model/flat.py": FLAT})
    (folder / "table.csv").write_text(ROWS, encoding="utf-8")
    fills = {"kind": "unknown kind", "width": "mean"}
    run = train_model(folder, monkeypatch, model={"type": "Flat", "args": {"n_inputs": 6}},
                      data_loader=table(missing=fills), loss="mse_loss")  # fmt: skip
    assert call_export("-r", run, "-o", "net.safetensors") == 0
    card = Path("MODEL_CARD.md").read_text("utf-8")
    for text in (
        "4. `picked` as days since 1970-01-01 (a time of day is a fraction, in UTC), minus 9.25",
        "- `kind`: an empty cell counts as `unknown kind`\n",
        "- an empty cell is not allowed, as no training sample has it: `picked`\n",
        "- `width`: an empty cell counts as 3\n",
        "1. 1 if `kind` is `green=x`, else 0",
        "Values beyond those of training",
    ):
        assert text in card, text
    for word in ("camera", "pixel", "image", "EXIF", "white"):
        assert word not in card, word
    kind, picked, width = metadata("net.safetensors")["columns"]
    assert kind["codes"] == {"blue": 1, "green=x": 2, "red": 3, "unknown kind": 4}
    assert kind["missing"] == "unknown kind"
    assert (picked["kind"], picked["mean"], picked["missing"]) == ("date", 9.25, None)
    assert (width["kind"], width["missing"]) == ("number", 3)


@pytest.mark.parametrize("mode", ["RGB", "grey"])
def test_the_card_of_images_says_how_files_become_inputs(mode, project, monkeypatch) -> None:
    pytest.importorskip("safetensors")
    folder = project({**FILES, "model/flat.py": FLAT.replace("inputs)\n", "inputs.flatten(1))\n")})
    for number, name in enumerate(("a", "b")):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(4):
            image = Image.new("RGB", (9, 12), (20 * index, 90, 90 * number))
            image.save(folder / "photos" / name / f"{index}.png")
    files = {"root": "photos", "resize": [4, 6], "mode": mode}
    dataset = {"type": "ImageFolderDataset", "args": files}
    loader = {"type": "DatasetLoader", "args": {"dataset": dataset, "batch_size": 4, "split": 0.25,
                                                "normalize": "auto", "num_workers": 0}}  # fmt: skip
    n_inputs = 24 * (3 if mode == "RGB" else 1)
    model = {"type": "Flat", "args": {"n_inputs": n_inputs, "n_outputs": 2}}
    run = train_model(folder, monkeypatch, model=model, data_loader=loader)
    assert call_export("-r", run, "-o", "net.safetensors") == 0
    card = Path("MODEL_CARD.md").read_text("utf-8")
    colours = ["red", "green", "blue"] if mode == "RGB" else ["grey"]
    for text in (
        f"1. decode image files to pixels, uint8 (channel, height, width): {', '.join(colours)}\n",
        "2. the image is turned as the EXIF orientation says",
        "3. resize to height 4 and width 6, if it has another size: bilinear, antialiased",
        "4. divide integers by 255: values from 0 to 1\n",
        "Other cameras",
    ):
        assert text in card, text
    found = metadata("net.safetensors")["preprocessing"]
    assert found["channels"] == colours
    assert found["orientation"] == "turned as the EXIF orientation says"
    assert (found["resize"], found["resize_filter"]) == ([4, 6], "bilinear, antialiased")
    assert found["white_of_files"] == 255
    assert found["value_range"] == "0 to 1, then normalized"


def test_the_card_of_weights_says_how_to_build_the_model(project, monkeypatch) -> None:
    model = {"type": "Net", "args": {"n_outputs": "${data_loader.batch_size}"}}
    run = train_model(project(FILES), monkeypatch, model=model)
    for suffix in (".pt", ".safetensors"):
        assert call_export("-r", run, "-o", f"net{suffix}") == 0
    card = Path("MODEL_CARD.md").read_text("utf-8")
    assert card.count('model: {"type": "Net", "args": {"n_outputs": 8}}') == 2
    assert card.count("take the folder `base/` along") == 2
    saved = torch.load("net.pt", weights_only=True)
    built = saved["metadata"]["model_config"]
    assert built == metadata("net.safetensors")["model_config"]
    assert built == {"type": "Net", "args": {"n_outputs": 8}, "code": "model.model.Net"}
    module, _, name = built["code"].rpartition(".")
    network = getattr(importlib.import_module(module), name)(**built["args"])
    network.load_state_dict(saved["state_dict"])


def test_the_card_of_other_inputs_has_no_words_of_images_or_tables(project, monkeypatch) -> None:
    run = train_model(project(FILES), monkeypatch, model={"type": "Words"},
                      data_loader=OWN["texts"])  # fmt: skip
    assert call_export("-r", run, "-o", "net.pt") == 0
    card = Path("MODEL_CARD.md").read_text("utf-8")
    for word in ("camera", "pixel", "image", "EXIF", "white", "column", "table"):
        assert word not in card, word
    assert "as its loader gives them" in card
