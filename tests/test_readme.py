"""README.md tells the truth: its commands run, its links lead somewhere, its config is valid."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from processes import Script

from base.config import load_config
from base.names.check import check_names

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("python ")
]


def test_links_lead_to_files() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_config_shown_is_valid() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    check_names(load_config(None, text=block))


@pytest.mark.end_to_end
def test_the_commands_run_in_their_order(tmp_path: Path) -> None:
    """The first trains for two epochs, so that those after it have a run to go on with."""
    for part in ("data", "config"):
        shutil.copytree(ROOT / part, tmp_path / part)
    order = sorted(COMMANDS, key=lambda command: "test.py" in command)
    ran = [command for command in order if "new_project" not in command]
    # A sweep starts processes of its own: a tutorial's slow test runs one.
    ran = [command for command in ran if "--sweep" not in command]
    assert len(ran) > 5
    for command in ran:
        result = Script(shlex.split(command)[1:], tmp_path).wait()
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        assert "Traceback" not in result.stderr


def test_the_mistakes_shown_are_told_in_these_words(run_cli) -> None:
    shown = re.findall(r"\$ python (train\.py .*)\n(--set .*)\n", TEXT)
    assert len(shown) == 2
    for command, words in shown:
        result = run_cli(shlex.split(command))
        assert (result.returncode, result.stderr.strip()) == (2, words)
