"""docs/sweeps.md: each command of the page runs, and its tables name what the code has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from processes import ROOT, Script

from base.config import load_config, parse_train
from base.sweeps.checks import overrides_of
from base.sweeps.plan import plan_of, search_of, settings_of_plan
from base.sweeps.record import DONE
from base.sweeps.space import parse_space

PAGE = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [shlex.split(line, comments=True)[1:] for line in SHELL.splitlines() if line]
CONFIG = re.search(r"^```yaml\n# (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def project(folder: Path, *, is_short: bool) -> Path:
    assert CONFIG is not None
    (folder / "config").mkdir()
    (folder / "data").symlink_to(ROOT / "data")
    (folder / "config" / "digits.yaml").symlink_to(ROOT / "config" / "digits.yaml")
    text = CONFIG[2].replace("epochs: 3", "epochs: 1") if is_short else CONFIG[2]
    (folder / CONFIG[1]).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_trials_of_a_command_are_valid(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "--sampler" in command or "--pruner" in command:
        pytest.importorskip("optuna")
    monkeypatch.chdir(project(tmp_path, is_short=False))
    plan = plan_of(parse_train(command[1:]))
    config = load_config(Path(plan.config), plan.overrides)
    space = parse_space(plan.sweep, plan.overrides)
    search_of(plan, space, config)
    trials = settings_of_plan(plan, space, config["seed"])
    assert len(trials) > 1
    for settings in trials:
        load_config(Path(plan.config), overrides_of(plan.overrides, settings))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_runs(command: list[str], tmp_path: Path) -> None:
    if "--sampler" in command or "--pruner" in command:
        pytest.importorskip("optuna")
    done = Script(command, project(tmp_path, is_short=True)).wait(300)
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = tmp_path.glob("saved/swept/sweeps/*/")
    for name in re.findall(r"^\| `(\S+)` \|", PAGE, re.MULTILINE):
        assert name == "trial-N.err" or (sweep / name).is_file()


def test_the_states_of_the_page_are_those_of_the_record() -> None:
    for state in (*DONE, "interrupted"):
        assert re.search(rf"^\| {state}\b", PAGE, re.MULTILINE), state
