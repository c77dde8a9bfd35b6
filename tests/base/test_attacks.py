"""No file and no config can run code, ask for memory, or take long: an attack is refused."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attack_corpus import HARMLESS, ROOT, config_attacks, corpus
from faults.table import Trials
from processes import Script

SCRIPT = Path(__file__).with_name("attack_corpus.py")


def meet(folder: Path, kind: str, *names: str) -> list[dict[str, Any]]:
    """Meet attacks in a process of their own; return what happened to each."""
    printed = folder.with_name(f"{folder.name}-printed")
    printed.mkdir()
    done = Script([SCRIPT, folder, kind, *names], printed).wait()
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_harmless(met: dict[str, Any]) -> None:
    assert met["events"] == [], met
    assert met["grown"] <= 2 * met["size"] + (64 << 20), met
    assert met["seconds"] < 5, met


@pytest.mark.fault("F20")
@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_an_attack_in_a_file_is_refused_and_does_nothing(
    tmp_path: Path, kind: str, trials: Trials
) -> None:
    all_met = meet(tmp_path, kind)
    trials.tried = len(all_met)
    assert [met["name"] for met in all_met] == list(corpus(tmp_path))
    for met in all_met:
        is_text = kind == "checkpoint" and met["name"] in HARMLESS
        assert met["end"].startswith("read" if is_text else "refused: "), met
        assert_harmless(met)
        assert not met["sentinel"], met
    assert not list(tmp_path.rglob("sentinel*"))


@pytest.mark.fault("F21")
def test_an_attack_in_a_config_is_refused_and_does_nothing(tmp_path: Path, trials: Trials) -> None:
    all_met = meet(tmp_path, "config")
    trials.tried = len(all_met)
    assert len(all_met) == len(config_attacks())
    for met in all_met:
        assert met["end"].startswith("refused: "), met
        assert_harmless(met)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("os.system('true')", "os.system"),
        ("subprocess.run(['true'])", "subprocess.Popen"),
        ("exec(compile('1', '<theirs>', 'exec'))", "exec of <theirs>"),
        ("pickle.loads(pickle.dumps(os.getcwd))", "pickle.find_class"),
    ],
)
def test_the_hook_sees_what_an_attack_would_do(tmp_path: Path, code: str, seen: str) -> None:
    program = f"import os, pickle, subprocess, sys; sys.path[:0] = [{str(SCRIPT.parent)!r}]\n"
    program += f"from attack_corpus import watched\nprint(watched(lambda: {code})['events'])"
    done = Script(["-c", program], tmp_path).wait()
    assert seen in done.stdout, done.stderr


def test_growth_of_memory_is_seen(tmp_path: Path) -> None:
    program = f"import sys; sys.path[:0] = [{str(SCRIPT.parent)!r}]\n"
    program += "from attack_corpus import watched\n"
    program += "print(watched(lambda: len(b'x' * (200 << 20)))['grown'] >> 20)"
    done = Script(["-c", program], tmp_path).wait()
    assert int(done.stdout) > 150, done.stderr


# --- Read from the syntax trees: nothing in the project loads in an unsafe way --------------------


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call in a file, by the dotted name that is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def project_files(*left_out: str) -> list[Path]:
    inside = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    hidden = (".", "saved", "build", *left_out)
    return [ROOT / path for path in sorted(inside) if not path.parts[0].startswith(hidden)]


def has(call: ast.Call, name: str, value: Any) -> bool:
    given = [word.value for word in call.keywords if word.arg == name]
    return [getattr(each, "value", None) for each in given] == [value]


def test_every_load_of_torch_says_weights_only() -> None:
    loads = [
        (f"{path.relative_to(ROOT)}:{call.lineno}", has(call, "weights_only", True))
        for path in project_files()
        for name, call in calls(path)
        if name == "torch.load"
    ]
    assert len(loads) > 5
    wrong = [place for place, is_safe in loads if not is_safe]
    assert wrong == []


def test_nothing_outside_the_tests_unpickles_or_evaluates() -> None:
    forbidden = {
        "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler",
        "torch.jit.load", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load", "os.system",
        "torch.serialization.add_safe_globals", "dill.load", "joblib.load", "marshal.loads",
    }  # fmt: skip
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {name}"
        for path in project_files("tests", "benchmarks", "examples")
        for name, call in calls(path)
        if name in forbidden or (name == "np.load" and not has(call, "allow_pickle", False))
    ]
    assert found == []


def test_no_import_hides_a_loader_under_another_name() -> None:
    for path in project_files("tests", "benchmarks"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in ("torch", "pickle", "numpy"):
                assert "load" not in {alias.name for alias in node.names}, path
            if isinstance(node, ast.Import):
                assert "pickle" not in {alias.name for alias in node.names}, path
