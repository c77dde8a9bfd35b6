"""The card's lines load each file in a process that cannot import this repository."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exported_models import FILES, arrays, call_export, loaded_model, train_model

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
