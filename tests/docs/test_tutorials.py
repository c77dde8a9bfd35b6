"""Every block of a tutorial runs, in the order of the page, in a project made for it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torchvision
from processes import Script

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = [page for page in PAGES if page.name != "README.md"]
# A sweep starts three processes, with nothing preloaded; a ResNet is trained and exported to ONNX.
SLOW = ("csv", "fine-tune")
BLOCK = re.compile(r"^```(sh|python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.(?:py|yaml))\n")
NOT_RUN = ("cd", "make", "source")  # the project is made once, with what is installed here
OUTPUT = ("-o", "--output")


class Project:
    """A project as a reader has it: beside a clone of Kindling."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        (folder / "kindling").symlink_to(ROOT)

    def make(self, words: list[str]) -> None:
        command = [sys.executable, str(ROOT / words[1]), str(self.folder), *words[3:]]
        subprocess.run(command, check=True, capture_output=True)

    def run(self, line: str) -> None:
        """Run a line of a shell block; what it was to write has to be there."""
        words = shlex.split(line, comments=True)
        if not words or words[0] in NOT_RUN:
            return
        if words[0] == "cp":
            for source in words[1:-1]:
                shutil.copy(self.folder / source, self.folder / words[-1])
        elif words[:2] == ["python", "new_project.py"]:
            self.make(words)
        else:
            self.python(line, words)

    def python(self, line: str, words: list[str]) -> None:
        assert words[0] == "python", f"{line}: which command is this?"
        module = ["-m", words[2]] if words[1] == "-m" else [str(self.folder / words[1])]
        done = Script([*module, *words[len(module) + 1 :]], self.folder).wait(300)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        for option, value in pairwise(words):
            assert option not in OUTPUT or (self.folder / value).exists(), f"{line}: no {value}"


def bring_weights(folder: Path) -> None:
    """Save what a reader of the tutorial brings: weights of torchvision, here untrained."""
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18.pth")


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page.stem in SLOW else page for page in PAGES],
    ids=lambda page: page.stem,
)
def test_a_tutorial_runs_from_its_first_block_to_its_last(page: Path, tmp_path: Path) -> None:
    project = Project(tmp_path)
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert blocks[0][1].startswith("python new_project.py ../my_")
    for kind, text in blocks:
        if kind == "sh":
            for line in text.splitlines():
                project.run(line)
            if page.stem == "fine-tune" and not (project.folder / "resnet18.pth").exists():
                bring_weights(project.folder)
        else:
            (path,) = FILE.findall(text)[:1]
            assert not (project.folder / path).exists()
            (project.folder / path).write_text(text, encoding="utf-8")
    assert list(project.folder.glob("saved/*/*/checkpoints/*"))
