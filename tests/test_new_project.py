"""new_project.py: a copy that works, under its own name; or one clear line and exit code 2."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def new_project(script: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, script, target]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> Path:
    target = tmp_path_factory.mktemp("projects") / "Flower Finder"
    done = new_project(project_root / "new_project.py", target)
    assert (done.returncode, done.stderr) == (0, "")
    assert "make train" in done.stdout
    return target


def paths_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_project_holds_the_template_and_its_tests_but_no_run(project: Path) -> None:
    found = paths_in(project)
    assert {"Makefile", "pyproject.toml", "base/errors.py", "tests/conftest.py"} <= found
    assert [path for path in found if path.startswith("saved/")] == ["saved/.gitignore"]
    assert not {"new_project.py", "tests/test_new_project.py", ".git", ".venv"} & found
    assert os.access(project / ".ci/run", os.X_OK)


def test_a_project_bears_its_folders_name(project: Path) -> None:
    pyproject = (project / "pyproject.toml").read_text()
    assert 'name = "flower-finder"' in pyproject
    assert "kindling" not in pyproject.lower().replace("made from kindling", "")
    assert (project / "README.md").read_text().startswith("# Flower Finder\n")


def test_without_git_the_same_files_are_copied(
    project: Path, project_root: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    shutil.copytree(project, archive)
    shutil.copy(project_root / "new_project.py", archive)
    for left_behind in (
        "saved/digits/0101_000000/log.txt",
        "data/MNIST/raw/images",
        "base/__pycache__/errors.pyc",
        ".venv/bin/python",
        ".mypy_cache/x.json",
    ):
        (archive / left_behind).parent.mkdir(parents=True, exist_ok=True)
        (archive / left_behind).touch()

    target = tmp_path / "deep/er/copy"
    assert new_project(archive / "new_project.py", target).returncode == 0
    assert paths_in(target) == paths_in(project)


def test_an_empty_folder_is_taken(project_root: Path, tmp_path: Path) -> None:
    assert new_project(project_root / "new_project.py", tmp_path).returncode == 0
    assert (tmp_path / "Makefile").exists()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("full", "is not an empty folder"),
        ("full/notes.txt", "is not an empty folder"),
        ("full/notes.txt/deeper", "Not a directory"),
        ("template/mine", "lies inside the template"),
        ("template", "lies inside the template"),
    ],
)
def test_a_bad_target_is_refused_in_one_line(
    where: str, message: str, project_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    (tmp_path / "template").mkdir()
    shutil.copy(project_root / "new_project.py", tmp_path / "template")
    before = paths_in(tmp_path)

    done = new_project(tmp_path / "template/new_project.py", tmp_path / where)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert paths_in(tmp_path) == before


@pytest.mark.slow
def test_make_test_passes_in_a_project(project: Path) -> None:
    venv = Path(sys.executable).parent.parent
    if not (venv / ".installed-dev").exists():
        pytest.skip("this Python is not one that make set up")
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "test", f"VENV={venv}", "TESTS=-x -q"]
    done = subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
