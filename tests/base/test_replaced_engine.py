"""``base/`` or ``logger/`` of another template, copied over Kindling's: one line, no traceback."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPLACED = {
    "base/__init__.py": "from .base_trainer import *",
    "logger/__init__.py": "from utils import read_json",
    "base/base_model.py": "class BaseModel: ...",
}


@pytest.mark.parametrize("file", REPLACED)
@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_a_replaced_file_of_the_engine_is_one_line(tmp_path: Path, script: str, file: str) -> None:
    for folder in ("base", "logger", "model", "data_loader", "trainer", "config"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / script, tmp_path)
    (tmp_path / file).write_text(REPLACED[file])
    (tmp_path / "base" / "base_trainer.py").write_text("from logger import TensorboardWriter")
    run = tmp_path / "saved" / "x" / "20260131-235959"
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    shutil.copy(ROOT / "config" / "synthetic.yaml", run / "config.yaml")
    options = ["-c", "config/synthetic.yaml"] if script == "train.py" else ["-r", str(run)]
    command = [sys.executable, script, *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (1, 2)
    (line,) = done.stderr.splitlines()
    assert "Kindling's own base/ and logger/" in line
