"""new_project.py --update: nothing that the owner wrote is lost, whatever both sides did.

A small template with the real copier.yml and scripts, in real git repositories.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import update_project
from update_project import merge_all

ROOT = Path(__file__).resolve().parent.parent
HAS_COPIER = importlib.util.find_spec("copier") is not None
needs_copier = pytest.mark.skipif(not HAS_COPIER, reason="copier is not installed (pip install it)")
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
pytestmark = needs_git

LOOP = "".join(f"line {number}\n" for number in range(1, 31))
TABLES = "def read_table(): ...\n"
TEMPLATE = {
    "base/__init__.py": "",
    "base/untouched.py": LOOP,
    "base/edited.py": LOOP,
    "base/both.py": LOOP,
    "base/deleted.py": LOOP.replace("line", "deleted"),
    "base/moved.py": LOOP.replace("line", "moved"),
    "base/moved_and_edited.py": LOOP.replace("line", "row"),
    "base/moved_and_deleted.py": LOOP.replace("line", "post"),
    "base/dropped.py": LOOP.replace("line", "dropped"),
    "base/dropped_and_edited.py": LOOP.replace("line", "drop"),
    "logger/services.py": "SERVICES = {}\n",
    "base/datasets/tables.py": TABLES,
    "model/model.py": LOOP.replace("line", "layer"),
    "config/digits.yaml": "name: digits\nseed: 42\n",
    "tests/test_engine.py": "",
}


def changed(text: str, number: int, to: str) -> str:
    """Return the text with another line of this number."""
    lines = text.splitlines(keepends=True)
    lines[number - 1] = f"{to}\n"
    return "".join(lines)


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def commit(folder: Path) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "step", "--allow-empty")


def write(folder: Path, files: dict[str, str | None]) -> None:
    """Write files; None removes one."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if ".git/" not in f"{path.as_posix()}/")
    return {p.relative_to(folder).as_posix(): p.read_text() for p in paths if p.is_file()}


def call(template: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, template / "new_project.py", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def make_template(folder: Path) -> Path:
    """Make a small Kindling at version v0.2.0."""
    folder.mkdir()
    scripts = ["copier.yml", "new_project.py", "update_project.py", ".gitattributes"]
    for path in (*(ROOT / name for name in scripts), *ROOT.glob("*.jinja")):
        shutil.copy(path, folder)
    write(folder, dict(TEMPLATE))
    git(folder, "init", "-q")
    commit(folder)
    git(folder, "tag", "v0.2.0")
    return folder


def make_newer(template: Path) -> None:
    """Bring the template to v0.3.0, which changes, moves, adds and drops files."""
    row, post = TEMPLATE["base/moved_and_edited.py"], TEMPLATE["base/moved_and_deleted.py"]
    write(
        template,
        {
            "base/untouched.py": changed(LOOP, 20, "newer"),
            "base/edited.py": changed(LOOP, 20, "newer"),
            "base/both.py": changed(LOOP, 3, "theirs"),
            "base/deleted.py": changed(TEMPLATE["base/deleted.py"], 20, "newer"),
            "base/moved.py": None,
            "base/data/moved.py": TEMPLATE["base/moved.py"],
            "base/moved_and_edited.py": None,
            "base/data/renamed.py": changed(row, 20, "newer"),
            "base/moved_and_deleted.py": None,
            "base/data/moved_and_deleted.py": changed(post, 20, "newer"),
            "base/dropped.py": None,
            "base/dropped_and_edited.py": None,
            "base/added.py": "added\n",
            "model/model.py": changed(TEMPLATE["model/model.py"], 20, "newer"),
        },
    )
    commit(template)
    git(template, "tag", "v0.3.0")


def edit_project(project: Path) -> None:
    """Do to a project what its owner does, and commit it."""
    write(
        project,
        {
            "base/edited.py": changed(LOOP, 3, "mine"),
            "base/both.py": changed(LOOP, 3, "mine"),
            "base/deleted.py": None,
            "base/moved_and_edited.py": changed(TEMPLATE["base/moved_and_edited.py"], 3, "mine"),
            "base/moved_and_deleted.py": None,
            "base/dropped_and_edited.py": changed(LOOP.replace("line", "drop"), 3, "mine"),
            "model/model.py": changed(TEMPLATE["model/model.py"], 3, "mine"),
            "model/own.py": "own\n",
            "config/digits.yaml": None,
            "config/flowers.yaml": "name: digits\nseed: 7\n",  # a copy, no rename to follow
        },
    )
    commit(project)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `kindling`, at v0.3.0, and `project`, made from v0.2.0 and edited."""
    folder = tmp_path_factory.mktemp("update")
    template = make_template(folder / "kindling")
    done = call(template, folder / "project")
    assert (done.returncode, done.stderr) == (0, "")
    git(folder / "project", "init", "-q")
    commit(folder / "project")
    edit_project(folder / "project")
    make_newer(template)
    return folder


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """The same, for a test of its own."""
    return Path(shutil.copytree(place, tmp_path / "place"))


MERGED = {
    "base/untouched.py": changed(LOOP, 20, "newer"),
    "base/edited.py": changed(changed(LOOP, 3, "mine"), 20, "newer"),
    "base/data/moved.py": TEMPLATE["base/moved.py"],
    "base/data/renamed.py": changed(
        changed(TEMPLATE["base/moved_and_edited.py"], 3, "mine"), 20, "newer"
    ),
    "base/dropped_and_edited.py": changed(LOOP.replace("line", "drop"), 3, "mine"),
    "base/added.py": "added\n",
    "model/model.py": changed(changed(TEMPLATE["model/model.py"], 3, "mine"), 20, "newer"),
    "model/own.py": "own\n",
    "config/flowers.yaml": "name: digits\nseed: 7\n",
}
GONE = {
    "base/deleted.py",
    "base/moved.py",
    "base/moved_and_edited.py",
    "base/moved_and_deleted.py",
    "base/data/moved_and_deleted.py",
    "base/dropped.py",
    "config/digits.yaml",
    "tests/test_engine.py",
}


def check_merged(project: Path) -> None:
    found = read(project)
    assert {name: found.get(name) for name in MERGED} == MERGED
    assert not GONE & found.keys()
    assert not [name for name in found if name.endswith(".kindling-update")]
    sides = "<<<<<<< yours\nmine\n=======\ntheirs\n>>>>>>> Kindling v0.3.0\n"
    assert found["base/both.py"] == LOOP.replace("line 3\n", sides)
    assert "_commit: v0.3.0\n" in found[".copier-answers.yml"]


# The merge itself, without copier.


def as_files(files: dict[str, str]) -> dict[str, bytes]:
    return {name: text.encode() for name, text in files.items()}


def test_each_side_keeps_what_it_alone_changed_and_moves_take_edits_along() -> None:
    found = merge_all(
        old=as_files({"a": LOOP, "b": LOOP, "c": LOOP, "d": LOOP, "e": LOOP}),
        mine=as_files({"a": LOOP, "b": "mine\n", "c": changed(LOOP, 3, "mine"), "e": LOOP}),
        new=as_files({"a": "new\n", "b": LOOP, "c/c": changed(LOOP, 20, "new"), "d": "new\n"}),
        moves={"c": "c/c"},
        labels=("old", "new"),
    )
    both = changed(changed(LOOP, 3, "mine"), 20, "new")
    assert {change.path: (change.kind, change.content) for change in found} == {
        "a": ("updated", b"new\n"),
        "c": ("", None),
        "c/c": ("merged", both.encode()),
        "d": ("stays removed", None),
        "e": ("removed", None),
    }


def test_a_file_of_the_owners_where_one_moves_to_is_a_conflict_that_keeps_both() -> None:
    found = merge_all(
        old=as_files({"a": "old\n"}),
        mine=as_files({"a": "old\n", "b": "mine\n"}),
        new=as_files({"b": "old\n"}),
        moves={"a": "b"},
        labels=("old", "new"),
    )
    kinds = {change.path: (change.kind, change.content) for change in found}
    assert kinds["a"] == ("removed", None)
    assert kinds["b"] == ("conflict", b"<<<<<<< yours\nmine\n=======\nold\n>>>>>>> new\n")


def test_of_two_changed_files_that_are_no_text_the_owners_stays() -> None:
    (change,) = merge_all({"x": b"\0a"}, {"x": b"\0b"}, {"x": b"\0c"}, {}, ("old", "new"))
    assert (change.kind, change.content) == ("conflict", b"\0b")


# From the command line.


@needs_copier
def test_an_update_merges_each_file_and_loses_nothing(copied: Path) -> None:
    project = copied / "project"
    before = read(project)
    done = call(copied / "kindling", "--update", project, "--check")
    assert (done.returncode, done.stderr) == (1, "")
    assert read(project) == before
    for line in (
        "merged         base/edited.py",
        "merged         base/data/renamed.py  (from base/moved_and_edited.py; ",
        "moved          base/data/moved.py  (from base/moved.py)",
        "conflict       base/both.py",
        "stays removed  base/deleted.py",
        "kept           base/dropped_and_edited.py",
        "removed        base/dropped.py",
        "added          base/added.py",
    ):
        assert f"    {line}" in done.stdout

    done = call(copied / "kindling", "--update", project)
    assert (done.returncode, done.stderr) == (1, "")
    assert "Resolve the conflicts" in done.stdout
    check_merged(project)

    write(project, {"base/both.py": changed(LOOP, 3, "mine and theirs")})
    commit(project)
    after = read(project)
    done = call(copied / "kindling", "--update", project)
    assert (done.returncode, done.stdout) == (0, f"{project} is up to date: Kindling v0.3.0\n")
    assert read(project) == after


RENDERED: dict[tuple[str, str], dict[str, bytes]] = {}


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """copier is called once for each version and its answers, whatever the number of updates."""
    make = update_project.make

    def make_once(template: Path, version: str, answers: str, target: Path) -> dict[str, bytes]:
        if (version, answers) not in RENDERED:
            RENDERED[version, answers] = make(template, version, answers, target)
        return dict(RENDERED[version, answers])

    monkeypatch.setattr(update_project, "make", make_once)


@needs_copier
@pytest.mark.usefixtures("rendered")
def test_an_update_that_was_killed_is_completed_by_the_next(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each call that writes, renames or removes; what is written is half written."""
    do = {name: getattr(Path, name) for name in ("write_bytes", "replace", "unlink")}
    n_kills, is_done = 0, False
    while not is_done:
        project = Path(shutil.copytree(place / "project", tmp_path / f"killed-{n_kills}"))
        n_left = iter(range(n_kills))

        def act(name: str, file: Path, *words: Any, project=project, n_left=n_left, **named: Any):
            if project not in file.parents or next(n_left, None) is not None:
                return do[name](file, *words, **named)
            if name == "write_bytes":
                do[name](file, words[0][: len(words[0]) // 2])
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            for name in do:
                patch.setattr(Path, name, lambda *w, name=name, act=act, **n: act(name, *w, **n))
            try:
                update_project.update(place / "kindling", project, None, only_check=False)
                is_done = True
            except KeyboardInterrupt:
                n_kills += 1
        update_project.update(place / "kindling", project, None, only_check=False)
        check_merged(project)
        shutil.rmtree(project)
    assert n_kills > 15


@needs_copier
def test_kill_9_in_the_middle_of_the_writes(copied: Path) -> None:
    project = copied / "project"
    program = (
        "import os, sys; from pathlib import Path; import new_project; replace = Path.replace\n"
        "left = iter(range(3))\n"
        "def killed(file, target):\n"
        "    next(left, None) is None and os.kill(os.getpid(), 9)\n"
        "    return replace(file, target)\n"
        "Path.replace = killed\n"
        f"new_project.main(['--update', {str(project)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=copied / "kindling", check=False)
    assert done.returncode == -9
    assert git(project, "status", "--porcelain")
    assert call(copied / "kindling", "--update", project).returncode == 1
    check_merged(project)


@needs_copier
@pytest.mark.usefixtures("rendered")
def test_work_that_is_not_committed_stops_an_update(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = copied / "project"
    for files, words in (
        ({"base/edited.py": "half of an idea\n"}, "not committed: base/edited.py"),
        ({"model/own.py": "half of an idea\n"}, "not committed: model/own.py"),
        ({"base/added.py": "mine\n"}, "added.py is not committed, and the update has a file"),
    ):
        write(project, dict(files))
        before = read(project)
        with pytest.raises(ValueError, match=words):
            update_project.update(copied / "kindling", project, None, only_check=False)
        assert read(project) == before
        git(project, "checkout", "-q", ".")
        git(project, "clean", "-qfd")
    write(project, {"notes.txt": "untracked files that Kindling does not have are no obstacle"})
    update_project.update(copied / "kindling", project, None, only_check=False)
    check_merged(project)


@needs_copier
@pytest.mark.usefixtures("rendered")
def test_parts_go_and_come_back(copied: Path) -> None:
    project = copied / "project"
    for without, is_there in ((None, True), (["tables"], False), (None, False), ([], True)):
        update_project.update(copied / "kindling", project, without, only_check=False)
        commit(project)
        assert (project / "base/datasets/tables.py").exists() == is_there
        assert (project / "logger/services.py").exists()


@needs_copier
@pytest.mark.usefixtures("rendered")
def test_a_project_in_a_folder_of_a_larger_repository(copied: Path) -> None:
    larger, project = copied / "larger", copied / "larger/sub"
    shutil.rmtree(copied / "project/.git")
    larger.mkdir()
    shutil.move(copied / "project", project)
    git(larger, "init", "-q")
    commit(larger)
    update_project.update(copied / "kindling", project, None, only_check=False)
    check_merged(project)


@needs_copier
def test_copier_makes_the_same_project(place: Path, tmp_path: Path) -> None:
    """Also where parts are left out; the answers are the same in other words."""
    import yaml

    made, copied = tmp_path / "made/Ünser Projekt", tmp_path / "copied/Ünser Projekt"
    assert call(place / "kindling", made, "--without", "services,tables").returncode == 0
    command = [sys.executable, "-m", "copier", "copy", "-q", "--defaults", "--vcs-ref=HEAD"]
    command += ["--data", "without=[services, tables]", str(place / "kindling"), str(copied)]
    subprocess.run(command, check=True, capture_output=True)
    files = [read(made), read(copied)]
    answers = [yaml.safe_load(each.pop(".copier-answers.yml")) for each in files]
    assert files[0] == files[1]
    assert answers[0] == answers[1]
    assert "logger/services.py" not in files[0]


# What must hold.


def without_git(copied: Path) -> None:
    shutil.rmtree(copied / "project/.git")


def without_a_commit(copied: Path) -> None:
    without_git(copied)
    git(copied / "project", "init", "-q")


def without_answers(copied: Path) -> None:
    (copied / "project/.copier-answers.yml").unlink()


def with_answers(copied: Path, answers: str) -> None:
    write(copied / "project", {".copier-answers.yml": f"{answers}name: project\n"})
    commit(copied / "project")


def from_a_newer_one(copied: Path) -> None:
    with_answers(copied, "_commit: v0.3.0\n")
    git(copied / "kindling", "checkout", "-q", "v0.2.0")


def by_an_archive(copied: Path) -> None:
    shutil.rmtree(copied / "kindling/.git")


@pytest.mark.parametrize(
    ("spoil", "words", "advice"),
    [
        (without_git, "is not kept by git", "git init && git add -A && git commit"),
        (without_a_commit, "is not committed", "git add -A && git commit"),
        (without_answers, "has no .copier-answers.yml", "Make a new one"),
        (partial(with_answers, answers=""), "does not say which version",
         "add the line `_commit: v0.2.0`"),
        (partial(with_answers, answers="_commit: v0.2.7\n"), "does not have version v0.2.7",
         "git fetch --tags"),
        (from_a_newer_one, "older than the project's v0.3.0", "git pull"),
        (by_an_archive, "is not a git clone of Kindling", "new_project.py of a clone"),
    ],
)  # fmt: skip
def test_what_an_update_lacks_is_said_in_one_line(
    copied: Path, spoil: Callable[[Path], None], words: str, advice: str
) -> None:
    spoil(copied)
    before = read(copied / "project")
    done = call(copied / "kindling", "--update", copied / "project")
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert advice in done.stderr
    assert done.stderr.count("\n") == 1
    assert read(copied / "project") == before


@pytest.mark.parametrize(("package", "program"), [("copier", "copier"), ("git", "git")])
def test_a_missing_program_is_named_with_how_to_install_it(
    place: Path, package: str, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == program else which(name))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"needs {package}, which was not found.*[Ii]nstall it"):
        update_project.update(place / "kindling", place / "project", None, only_check=True)


def test_a_project_made_from_an_archive_knows_its_commit(place: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    git(place / "kindling", "archive", "--output", str(archive), "HEAD")
    shutil.unpack_archive(archive, tmp_path / "unpacked")
    assert call(tmp_path / "unpacked", tmp_path / "project").returncode == 0
    head = git(place / "kindling", "rev-parse", "HEAD")
    assert f"_commit: {head}" in (tmp_path / "project/.copier-answers.yml").read_text()
