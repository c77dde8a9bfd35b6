"""docs/predicting.md: its commands run in order, and print what the page shows."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import predict
import train
from base.errors import UsageError
from base.names.registry import project_root, set_project_root

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "predicting.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ((?:config|data_loader)/\S+|make_\w+\.py)\n")
NUMBER = re.compile(r"\d+\.\d+(e-\d+)?")


@pytest.fixture
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    former, threads = project_root(), torch.get_num_threads()
    for part in ("model", "data_loader", "trainer", "config"):
        shutil.copytree(ROOT / part, tmp_path / part)
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    for _, body in BLOCK.findall(PAGE):
        if file := FILE.match(body):
            Path(file[1]).write_text(body, encoding="utf-8")
    set_project_root(tmp_path)
    torch.set_num_threads(1)
    yield
    set_project_root(former)
    torch.set_num_threads(threads)


def plain(text: str) -> list[list[str]]:
    """Return the words of each line, without numbers that depend on the machine."""
    return [NUMBER.sub("#", line).replace(",", " ").split() for line in text.splitlines()]


def run(command: str) -> int:
    """Run a line of the page as the command line would."""
    program, script, *words = shlex.split(command)
    assert (program, script) == ("python", "predict.py")
    try:
        return predict.main(words)
    except UsageError as error:
        print(error)
        return error.exit_code


@pytest.mark.slow
@pytest.mark.usefixtures("_project")
def test_the_commands_print_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    for script in sorted(Path().glob("make_*.py")):
        runpy.run_path(str(script))
    for name in re.findall(r"# config/(\w+)\.yaml\n", PAGE):
        assert train.main(["-c", f"config/{name}.yaml", "-d", "cpu"]) == 0
    assert train.main(["-c", "config/digits.yaml", "-d", "cpu", "--epochs", "1"]) == 0
    capsys.readouterr()
    found = BLOCK.findall(PAGE)
    shown: list[str] = []
    for number, (kind, body) in enumerate(found):
        texts = [text for each, text in found[number + 1 : number + 3] if each == "text"]
        if kind == "sh":
            codes = {run(line) for line in body.splitlines()}
            assert codes <= {0, 1}
            shown.append(body)
        elif kind == "py":
            exec(compile(body, "docs/predicting.md", "exec"), {})
        else:
            continue
        printed = "".join(capsys.readouterr())
        if kind == "sh" and "-o" not in body:  # the page shows a terminal's table, or CSV
            wanted = [row for row in plain(texts[0]) if row[:1] != ["1"]]
            assert [row[0] for row in plain(printed)][: len(wanted) - 1] == [
                row[0] for row in wanted[:-1]
            ]
        elif texts and "digits" not in body:
            assert plain(printed) == plain(texts[0])
        for file in re.findall(r"-o (\w+\.csv)", body):
            if len(texts) > 1:
                assert plain(Path(file).read_text()) == plain(texts[1])
    assert len(shown) == body_count("sh")
    assert sorted(path.name for path in Path("masks").iterdir())[:2] == [
        "classes.csv", "narrow_22.png",
    ]  # fmt: skip


def body_count(kind: str) -> int:
    return sum(each == kind for each, _ in BLOCK.findall(PAGE))


@pytest.mark.parametrize("link", re.findall(r"\]\(#([\w-]+)\)", PAGE))
def test_links_lead_to_sections(link: str) -> None:
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert link in [each.lower().replace(" ", "-") for each in headings]
