"""Start a project of your own: `python new_project.py ../my_project` copies this template there."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent

# What would be untrue or of no use in the new project, with the tests that speak of it.
LEFT_OUT = [
    "new_project.py",
    "tests/test_new_project.py",
    "tests/test_readme*.py",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/*.md",
]
# Where git is of no help (a downloaded archive), these are not part of the template either.
IGNORED_NAMES = ["__pycache__", ".git", ".venv", ".*_cache", ".hypothesis", ".idea", ".vscode"]
IGNORED_PATHS = ["saved/[!.]*", "data/*/*"]

README = """\
# {name}

Made from Kindling, a config-driven PyTorch training template. Everything here is yours to change.

```
make train                        # trains config/digits.yaml: begin by changing that
make train ARGS="-c config/x.yaml"
make test                         # formatting, lint, types and tests
make doctor                       # is this machine fit to train
```

Yours: `model/`, `data_loader/`, `trainer/`, `config/`. The engine, seldom touched: `base/`,
`logger/`. One folder per run: `saved/`.
"""
CHANGELOG = "# Changelog\n\n## Unreleased\n\n- Started from the Kindling template.\n"


def main(arguments: Sequence[str]) -> int:
    """Make the project and say how to go on; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the new project's folder; its name is the name")
    folder = parser.parse_args(arguments).folder

    try:
        check_target(folder.resolve())
        n_files = make_project(folder.resolve())
    except (OSError, ValueError) as error:
        print(f"new_project.py: {error}", file=sys.stderr)
        return 2
    print(f"{folder}: {n_files} files. Next:\n")
    print(f"    cd {shlex.quote(str(folder))}\n    git init\n    make train\n    make test")
    return 0


def check_target(target: Path) -> None:
    """Raise ValueError for a target that holds something, or that lies within the template."""
    if target.is_relative_to(ROOT):
        raise ValueError(f"{target} lies inside the template; name a folder outside {ROOT}")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder; name another")


def make_project(target: Path) -> int:
    """Copy to a temporary folder in the target, then move into place; never half a project."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new_project-", dir=target) as temporary:
        project = Path(temporary) / "project"
        paths = [path for path in template_files() if not fits(str(path), LEFT_OUT)]
        for path in paths:
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, project / path)
        write_own_files(project, name=target.name)
        for path in project.iterdir():
            path.rename(target / path.name)
    return len(paths) + 2


def template_files() -> Iterator[Path]:
    """The files that git tracks, or else all but what the tools and the runs leave behind."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    try:
        listing = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        listing = b""
    tracked = [Path(os.fsdecode(name)) for name in listing.split(b"\0") if name]
    yield from (path for path in tracked or walk() if (ROOT / path).is_file())


def walk() -> Iterator[Path]:
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not fits(name, IGNORED_NAMES)]
        paths = [Path(folder, name).relative_to(ROOT) for name in names if name != ".git"]
        yield from (path for path in paths if not fits(str(path), IGNORED_PATHS))


def fits(text: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(text, pattern) for pattern in patterns)


def write_own_files(project: Path, name: str) -> None:
    """A README and a changelog of its own, and the folder's name in pyproject.toml."""
    (project / "README.md").write_text(README.format(name=name), encoding="utf-8")
    (project / "CHANGELOG.md").write_text(CHANGELOG, encoding="utf-8")

    # What a package may be called: ASCII letters and digits, joined by - _ or a full stop.
    package = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-_.").lower() or "project"
    pyproject = project / "pyproject.toml"
    text = pyproject.read_text(encoding="utf-8")
    text = re.sub(r'^name = ".*"', f'name = "{package}"', text, count=1, flags=re.MULTILINE)
    description = 'description = "Made from Kindling"'
    text = re.sub(r'^description = ".*"', description, text, count=1, flags=re.MULTILINE)
    pyproject.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
