"""Bring a newer Kindling into a project: what `new_project.py --update` does.

copier makes the project twice, as the version it came from made it and as this version would. Each
file is then merged with the project's own, as committed. The result depends on nothing but these
three, so that an update that was killed is completed by another one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ANSWERS = ".copier-answers.yml"
GIT_PLACES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
BEING_WRITTEN = ".kindling-update"
PLAIN = ("updated", "added", "removed", "moved")  # no look is needed

Files = dict[str, bytes]


class Change(NamedTuple):
    """What an update does to one file."""

    path: str
    kind: str  # updated, added, removed, moved, merged, conflict, kept, stays removed
    content: bytes | None  # None: there is no such file
    note: str = ""


def update(template: Path, project: Path, without: list[str] | None, only_check: bool) -> int:
    """Merge the template's newest commit into a project.

    Returns:
        0, or 1: with `only_check` where something would change, else where there are conflicts.

    Raises:
        ValueError: the update cannot be made; nothing was written.
    """
    old_version = check_project(project)
    new_version = check_template(template, old_version)
    with tempfile.TemporaryDirectory(prefix="kindling-update-") as temporary:
        folder = Path(temporary)
        answers = git(project, "show", f"HEAD:./{ANSWERS}")
        old = make(template, old_version, answers, folder / "old")
        new = make(template, new_version, with_parts(answers, without), folder / "new")
        for files in (old, new):
            files[ANSWERS] = with_source(files[ANSWERS], answers)
        mine = committed(project, {*old, *new}, folder / "mine")
        moves = moved(template, old_version, new_version)
        labels = [f"Kindling {old_version}", f"Kindling {new_version}"]
        changes = merge_all(old, mine, new, moves, labels)
    refuse_uncommitted(project, mine, changes)
    if not [change for change in changes if change.content != mine.get(change.path)]:
        print(f"{project} is up to date: Kindling {new_version}")
        return 0
    print(report(changes, old_version, new_version, is_full=only_check))
    if only_check:
        return 1
    write_all(project, changes)
    conflicts = [change for change in changes if change.kind == "conflict"]
    if conflicts:
        print("Resolve the conflicts, run `make test`, then commit; see docs/projects.md.")
    else:
        print("Run `make test`, then commit.")
    return int(bool(conflicts))


# What must hold before an update.


def check_project(project: Path) -> str:
    """Return the version of Kindling that a project is of."""
    if not shutil.which("git"):
        raise ValueError("an update needs git, which was not found: install it")
    if not (project / ANSWERS).is_file():
        text = "it was not made by new_project.py of Kindling 0.2.0 or newer"
        raise ValueError(f"{project} has no {ANSWERS}: {text}. Make a new one and copy your files")
    first = "git init && git add -A && git commit -m 'Before the update'"
    try:
        git(project, "rev-parse", "--show-toplevel")
    except ValueError:
        text = f"{project} is not kept by git, so nothing could be undone"
        raise ValueError(f"{text}. Run there: {first}") from None
    try:
        answers = git(project, "show", f"HEAD:./{ANSWERS}")
    except ValueError:
        text = f"{project}: {ANSWERS} is not committed"
        raise ValueError(f"{text}. Run there: {first.removeprefix('git init && ')}") from None
    found = re.search(r"^_commit: *[\"']?([^\s\"']+)", answers, re.MULTILINE)
    if not found:
        text = "does not say which version the project was made from (it came from an archive)"
        advice = "add the line `_commit: v0.2.0`, or whichever version it was, and commit"
        raise ValueError(f"{project / ANSWERS} {text}: {advice}")
    return found[1]


def check_template(template: Path, old_version: str) -> str:
    """Return the version of the template's newest commit, after a look at its history."""
    try:
        top = git(template, "rev-parse", "--show-toplevel").strip()
    except ValueError:
        top = ""
    if not top or Path(top).resolve() != template.resolve():
        text = f"{template} is not a git clone of Kindling, and an update needs the old version too"
        raise ValueError(f"{text}: run new_project.py of a clone")
    try:
        git(template, "rev-parse", "--verify", f"{old_version}^{{commit}}")
    except ValueError:
        text = f"{template} does not have version {old_version}, which the project was made from"
        raise ValueError(f"{text}. Run there: git fetch --tags (--unshallow)") from None
    new_version = git(template, "describe", "--tags", "--always").strip()
    if commit(template, old_version) != commit(template, "HEAD"):
        newer = git(template, "rev-list", "--count", f"{old_version}..HEAD").strip()
        if newer == "0":
            text = f"{template} is at {new_version}, older than the project's {old_version}"
            raise ValueError(f"{text}. Run there: git pull")
    if git(template, "status", "--porcelain", "--untracked-files=no"):
        print(f"note: uncommitted changes in {template} are left out", file=sys.stderr)
    return new_version


def refuse_uncommitted(project: Path, mine: Files, changes: Sequence[Change]) -> None:
    """Raise ValueError for work that is not committed, other than this very update's."""
    wanted = {change.path: change.content for change in changes}
    names = git(project, "diff", "HEAD", "--name-only", "--relative", "-z").split("\0")
    dirty = [name for name in names if name and not is_written(project, name, wanted)]
    if dirty:
        more = f" and {len(dirty) - 1} more" if len(dirty) > 1 else ""
        text = f"{project} has changes that are not committed: {dirty[0]}{more}"
        raise ValueError(f"{text}. Commit them, or `git stash`, then update again")
    for path, content in wanted.items():
        is_new = path not in mine and content is not None
        if is_new and os.path.lexists(project / path) and not is_written(project, path, wanted):
            text = f"{project / path} is not committed, and the update has a file of that name"
            raise ValueError(f"{text}. Commit it or rename it, then update again")


def is_written(project: Path, path: str, wanted: Mapping[str, bytes | None]) -> bool:
    """Tell whether a file is what the update makes it: an update before this one was killed."""
    file = project / path
    return path in wanted and (file.read_bytes() if file.is_file() else None) == wanted[path]


# The three states of each file.


def make(template: Path, version: str, answers: str, target: Path) -> Files:
    """Let copier make the project of a version; return its files."""
    data = target.with_suffix(".yml")
    data.write_text(answers, encoding="utf-8")
    words = ["copy", "--quiet", "--defaults", "--vcs-ref", commit(template, version)]
    # As a URL, for git then sends packs: copier looks at each file of .git, too.
    source = f"git+file://{template.resolve()}"
    command = [*copier(), *words, "--data-file", str(data), source, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"copier failed at version {version}: {reason}")
    return files_in(target)


def copier() -> list[str]:
    """Return the command that starts copier."""
    if importlib.util.find_spec("copier"):
        return [sys.executable, "-m", "copier"]
    if found := shutil.which("copier"):
        return [found]
    text = f"{sys.executable} -m pip install copier"
    raise ValueError(f"an update needs copier, which was not found. Install it: {text}")


def with_parts(answers: str, without: list[str] | None) -> str:
    """Return the answers with another list of parts that are left out; None keeps theirs."""
    if without is None:
        return answers
    rest = re.sub(r"^without:.*\n(?:[ -].*\n)*", "", answers, flags=re.MULTILINE)
    return f"{rest}without: {json.dumps(without)}\n"


def with_source(new: bytes, answers: str) -> bytes:
    """Return new answers that name the same source as the old ones; copier names this clone."""
    found = re.search(r"^_src_path:.*$", answers, re.MULTILINE)
    lines = new.decode().splitlines()
    lines = [found[0] if found and line.startswith("_src_path:") else line for line in lines]
    return "".join(f"{line}\n" for line in lines).encode()


def committed(project: Path, paths: set[str], target: Path) -> Files:
    """Return these files as the project's last commit has them; those it lacks are left out."""
    target.mkdir()
    own = {"GIT_INDEX_FILE": str(target.with_suffix(".index")), "GIT_WORK_TREE": str(target)}
    folder = git(project, "rev-parse", "--absolute-git-dir").strip()
    tree = git(project, "rev-parse", "HEAD:./").strip()
    env = {**own, "GIT_DIR": folder}
    git(target, "read-tree", tree, env=env)
    known = git(target, "ls-files", "-z", env=env).split("\0")
    listing = "\0".join(sorted(paths.intersection(known)))
    git(target, "checkout-index", "--quiet", "-z", "--stdin", env=env, text=listing)
    return files_in(target)


def files_in(folder: Path) -> Files:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def moved(template: Path, old_version: str, new_version: str) -> dict[str, str]:
    """Return where the template moved its files, from the old path to the new one."""
    versions = (commit(template, old_version), commit(template, new_version))
    words = ("diff", "--find-renames", "-l0", "--diff-filter=R", "--name-status", "-z")
    fields = git(template, *words, *versions).split("\0")[:-1]
    names = [name.removesuffix(".jinja") for name in fields]
    return dict(zip(names[1::3], names[2::3], strict=True))


# The merge.


def merge_all(
    old: Files, mine: Files, new: Files, moves: Mapping[str, str], labels: Sequence[str]
) -> list[Change]:
    """Return what the update does to each file that either version of Kindling has."""
    old, mine = dict(old), dict(mine)
    changes, origins = [], {}
    for source, target in moves.items():
        # A merge at the new path, of edits that the project made at the old one.
        if source in old and source not in new and target in new and target not in {*old, *mine}:
            old[target] = old.pop(source)
            if source in mine:
                mine[target] = mine.pop(source)
                origins[target] = source
                changes.append(Change(source, "", None))
    for path in sorted({*old, *new}):
        change = merge(path, old.get(path), mine.get(path), new.get(path), labels)
        if path in origins and change.kind in ("", "updated"):
            content = mine[path] if change.content is None else change.content
            change = Change(path, "moved", content, f"from {origins[path]}")
        elif path in origins:
            change = change._replace(note=f"from {origins[path]}; {change.note}")
        changes += [change] if change.kind else []
    return changes


def merge(
    path: str, old: bytes | None, mine: bytes | None, new: bytes | None, labels: Sequence[str]
) -> Change:
    """Return what becomes of one file: changed by one side, it is that side's."""
    if old == new or mine == new:
        return Change(path, "", mine)
    if mine == old or path == ANSWERS:
        kind = "added" if old is None else "removed" if new is None else "updated"
        return Change(path, kind, new)
    if mine is None:
        return Change(path, "stays removed", None, "you removed it; Kindling changed it")
    if new is None:
        return Change(path, "kept", mine, "you changed it; Kindling no longer has it")
    content, is_clean = merge_texts(old or b"", mine, new, labels)
    if is_clean:
        return Change(path, "merged", content, "your changes and Kindling's")
    if content is None:
        return Change(path, "conflict", mine, "not text: yours is kept")
    return Change(path, "conflict", content, "both changed the same lines: look for <<<<<<<")


def merge_texts(
    old: bytes, mine: bytes, new: bytes, labels: Sequence[str]
) -> tuple[bytes | None, bool]:
    """Return the merged text, and whether no lines conflict; (None, False) for what is no text."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("mine", "old", "new")]
        for file, content in zip(files, (mine, old, new), strict=True):
            file.write_bytes(content)
        names = [word for label in ("yours", *labels) for word in ("-L", label)]
        command = ["git", "merge-file", "-p", *names, *map(str, files)]
        done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode > 127:
        return None, False
    return done.stdout, done.returncode == 0


def report(changes: Sequence[Change], old_version: str, new_version: str, is_full: bool) -> str:
    """Return a line for each file that asks for a look, or for each file, and their numbers."""
    changes = [each for each in changes if each.kind]
    shown = [each for each in changes if is_full or each.kind not in PLAIN]
    lines = [f"    {each.kind:<14} {each.path}  ({each.note})" for each in shown if each.note]
    lines += [f"    {each.kind:<14} {each.path}" for each in shown if not each.note]
    kinds = [each.kind for each in changes]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(sorted(kinds)))
    return "\n".join([f"Kindling {old_version} -> {new_version}: {counts}", *lines])


# Writing.


def write_all(project: Path, changes: Sequence[Change]) -> None:
    """Write first, then remove; the answers come last, as they say that the update is complete."""
    wanted = {change.path: change.content for change in changes}
    waiting = [path for path in wanted if not is_written(project, path, wanted)]
    for path in sorted(waiting, key=lambda path: (path == ANSWERS, wanted[path] is None)):
        content, file = wanted[path], project / path
        if content is None:
            file.unlink(missing_ok=True)
            remove_empty_folders(file.parent, project)
        else:
            write_whole(file, content)


def write_whole(file: Path, content: bytes) -> None:
    """Write to another name, then rename: a file is never half written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(file.name + BEING_WRITTEN)
    fresh.write_bytes(content)
    if file.exists():
        shutil.copymode(file, fresh)
    fresh.replace(file)


def remove_empty_folders(folder: Path, top: Path) -> None:
    while folder != top and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


# git.


def commit(template: Path, version: str) -> str:
    return git(template, "rev-parse", "--verify", f"{version}^{{commit}}").strip()


def git(folder: Path, *arguments: str, env: Mapping[str, str] | None = None, text: str = "") -> str:
    """Return what git prints in a folder; ValueError with its last line where it fails."""
    # Within a hook of git these name another repository.
    outer = {name: value for name, value in os.environ.items() if name not in GIT_PLACES}
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        env={**outer, **(env or {})},
        input=text,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(f"git {arguments[0]} failed in {folder}: {reason}")
    return done.stdout
