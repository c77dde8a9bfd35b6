"""The commands of docs/exporting.md run in their order, and its lines of Python load the files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from processes import ROOT, Script

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TRAINED_ELSEWHERE = ("digits_dcgan", "digits_distillation")


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    for name in ("config", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    blocks = BLOCK.findall((ROOT / "docs/exporting.md").read_text("utf-8"))
    commands = [line for kind, text in blocks if kind == "sh" for line in text.splitlines()]
    for line in commands:
        words = shlex.split(line)
        if words[0] == "mkdir":
            (tmp_path / words[1]).mkdir()
        elif not any(name in line for name in TRAINED_ELSEWHERE):
            done = Script(words[1:], tmp_path).wait(300)
            assert done.returncode == 0, f"{line}: {done.stderr}"
    for kind, text in blocks:
        if kind == "python":
            done = Script(["-c", f"{text}\nassert about['task']['name']"], tmp_path).wait()
            assert done.returncode == 0, f"{text}: {done.stderr}"
