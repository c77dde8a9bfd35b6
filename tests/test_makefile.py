"""The Makefile and the requirement lists, with a stand-in for Python that only notes its calls."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

STAND_IN = """#!/bin/sh
case "$*" in
    "-V") echo "Python 3.8.10" ;;
    "-c import sys;"*) [ ! -e python_is_old ] ;;
    "-c import venv;"*) [ ! -e venv_is_missing ] ;;
    "-m venv"*) echo venv >> calls; for folder in "$@"; do :; done
        mkdir -p $folder/bin && cp "$0" $folder/bin/python && touch $folder/bin/pip ;;
    "-m ensurepip"*) exit 1 ;;
    "-m pip"*) echo pip $(cat "$PIP_CONSTRAINT" 2>/dev/null) >> calls; [ ! -e pip_fails ] ;;
    "-c "*) ;;
    *) for word in "$@"; do printf '[%s]' "$word"; done >> calls; echo >> calls ;;
esac
"""
TRAIN_DIGITS = "[train.py][-c][config/digits.yaml]"
QUICK_TESTS = "[-m][pytest][-n][auto][--dist][loadfile][--no-loadscope-reorder][-m][not slow]"


@pytest.fixture
def folder(tmp_path: Path, project_root: Path) -> Path:
    """A folder with the Makefile, the requirements and the stand-in."""
    for name in ("Makefile", "engine.mk", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(project_root / name, tmp_path)
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(folder: Path, *words: str) -> tuple[int, str, list[str]]:
    """Call make; return its exit code, what it printed as errors, and the calls of Python."""
    (folder / "calls").write_text("")
    outer = (
        "ARGS",
        "NPROC",
        "TESTS",
        "PYTHON",
        "VENV",
        "MAKEFLAGS",
        "MFLAGS",
        "MAKELEVEL",
        "MAKEOVERRIDES",
    )
    env = {name: value for name, value in os.environ.items() if name not in outer}
    command = ["make", f"PYTHON={folder}/python", "VENV=.venv", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr, (folder / "calls").read_text().splitlines()


def test_train_sets_up_once(folder: Path) -> None:
    assert make(folder, "train") == (0, "", ["venv", "pip", TRAIN_DIGITS])
    start = time.perf_counter()
    assert make(folder, "train") == (0, "", [TRAIN_DIGITS])
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("-c config/x.yaml --set trainer.epochs=3", "[-c][config/x.yaml][--set][trainer.epochs=3]"),
        ("-c 'a b.yaml' --set 'name=${model.type}'", "[-c][a b.yaml][--set][name=${model.type}]"),
        ("-r", "[-r]"),
    ],
)
def test_args_pass_through_word_for_word(folder: Path, args: str, words: str) -> None:
    assert make(folder, "train", f"ARGS={args}")[2][-1] == f"[train.py]{words}"


def test_several_processes_are_asked_of_train_py(folder: Path) -> None:
    assert make(folder, "train", "NPROC=2")[2][-1] == f"{TRAIN_DIGITS}[-d][auto:2]"


def test_test_runs_every_check_then_the_quick_tests(folder: Path) -> None:
    code, _, calls = make(folder, "test")
    assert code == 0
    assert calls[:3] == ["venv", "pip", "pip"]
    assert calls[3:] == [
        "[-m][ruff][format][--check][.]",
        "[-m][ruff][check][.]",
        "[-m][mypy]",
        QUICK_TESTS,
    ]
    assert make(folder, "test", "TESTS=-k resume")[2] == [
        *calls[3:6],
        f"{QUICK_TESTS}[-k][resume]",
    ]


def test_doctor_sets_up_and_tells_by_its_exit_code(folder: Path) -> None:
    assert make(folder, "doctor") == (0, "", ["venv", "pip", "[-m][base.doctor]"])
    script = STAND_IN.replace("*) for", '"-m base.doctor") exit 1 ;;\n    *) for')
    (folder / ".venv/bin/python").write_text(script)
    assert make(folder, "doctor")[0] == 2  # make's own, whatever the command's


def test_faults_are_tried_many_times(folder: Path) -> None:
    _, _, calls = make(folder, "faults", "TESTS=--soak 120")
    assert calls[-1] == "[-m][pytest][-m][fault][--faults][many][-q][--soak][120]"


def test_changed_requirements_are_installed(folder: Path) -> None:
    make(folder, "train")
    later = time.time() + 5
    (folder / "requirements.txt").write_text("torch\n")
    os.utime(folder / "requirements.txt", (later, later))
    assert make(folder, "train")[2] == ["pip", TRAIN_DIGITS]


def test_a_failed_installation_is_done_again(folder: Path) -> None:
    (folder / "pip_fails").touch()
    code, _, calls = make(folder, "train")
    assert (code, calls) == (2, ["venv", "pip"])
    (folder / "pip_fails").unlink()
    assert make(folder, "train")[2] == ["pip", TRAIN_DIGITS]


def test_a_venv_whose_python_is_gone_is_made_anew(folder: Path) -> None:
    make(folder, "train")
    (folder / ".venv/bin/python").unlink()
    assert make(folder, "train")[2] == ["venv", "pip", TRAIN_DIGITS]


def test_docs_are_built_with_what_the_checks_need(folder: Path) -> None:
    assert make(folder, "docs")[2] == ["venv", "pip", "pip", "[docs/site/build.py]"]


def test_another_torch_is_tested_in_a_venv_of_its_own(folder: Path) -> None:
    code, _, calls = make(folder, "test-torch", "VERSION=2.10.0", "TESTS=-k resume")
    install = "pip torch==2.10.0"
    quick = f"{QUICK_TESTS}[-k][resume]"
    assert (code, calls) == (0, ["venv", install, install, quick])
    assert not (folder / ".venv").exists()
    assert (folder / ".venv-torch-2.10.0/bin/python").exists()
    assert make(folder, "test-torch", "VERSION=2.10.0")[2] == [QUICK_TESTS]


@pytest.mark.parametrize("version", ["", "2.10", "newest", "1.13.1"])
def test_a_version_that_is_none_is_told(folder: Path, version: str) -> None:
    code, errors, calls = make(folder, "test-torch", f"VERSION={version}")
    assert (code, calls) == (2, [])
    assert "make test-torch VERSION=2.10.0" in errors


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("venv_is_missing", "sudo apt install python3-venv"),
        ("python_is_old", "Python 3.10 or newer is needed"),
    ],
)
def test_trouble_is_named_and_leaves_no_half_made_venv(
    folder: Path, trouble: str, message: str
) -> None:
    (folder / trouble).touch()
    code, errors, calls = make(folder, "train")
    assert (code, calls) == (2, [])
    assert message in errors
    assert not (folder / ".venv").exists()


def test_clean_keeps_the_runs(folder: Path) -> None:
    for name in ("saved/digits/__pycache__", "base/__pycache__", ".venv/lib/__pycache__"):
        (folder / name).mkdir(parents=True)
    assert make(folder, "clean")[0] == 0
    assert not (folder / "base/__pycache__").exists()
    assert (folder / "saved/digits/__pycache__").exists()
    assert (folder / ".venv/lib/__pycache__").exists()


def test_pyproject_and_the_requirement_files_ask_for_the_same(project_root: Path) -> None:
    pyproject = (project_root / "pyproject.toml").read_text()
    lists = {"dependencies": "", "extra": "-extra", "dev": "-dev"}
    for key, suffix in lists.items():
        name = f"requirements{suffix}.txt"
        block = re.search(rf"^{key} = \[\n(.*?)^\]", pyproject, re.MULTILINE | re.DOTALL)
        assert block, f"pyproject.toml has no list {key!r}"
        lines = (project_root / name).read_text().splitlines()
        wanted = {line.split("#")[0].strip() for line in lines} - {""}
        assert set(re.findall(r'^ *"([^"]+)"', block[1], re.MULTILINE)) == wanted, (
            f"{name} (pip reads it) and {key} in pyproject.toml (uv reads it) differ"
        )
