"""Start a project of your own, or bring a newer Kindling into it.

    python new_project.py ../my_project                          makes the project
    python new_project.py ../my_project --without tables,lmdb    leaves parts of the engine out
    python new_project.py --update ../my_project --check         lists what a newer Kindling changes
    python new_project.py --update ../my_project                 merges it into the project

docs/projects.md says what happens to each file. What a project holds stands in copier.yml.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent
ANSWERS = ".copier-answers.yml"
JINJA = ".jinja"


class Rule(NamedTuple):
    """One line of `_exclude` in copier.yml."""

    part: str  # the rule holds where this part is left out; '' for always
    is_taken: bool
    pattern: str

    def fits(self, path: str) -> bool:
        """Tell whether the pattern fits a path, or one of the folders that it lies in."""
        names, pattern = path.split("/"), self.pattern.split("/")[1:]
        if not pattern:  # one word: a name anywhere
            return any(fnmatchcase(name, self.pattern) for name in names)
        return len(names) >= len(pattern) and all(map(fnmatchcase, names, pattern))


class Template(NamedTuple):
    """What copier.yml says, read without a package for YAML: see the remark at its top."""

    rules: list[Rule]
    parts: dict[str, str]  # name -> what it is for
    docs: str


def main(arguments: Sequence[str]) -> int:
    """Make or update a project; return the exit code."""
    options = parse(arguments)
    try:
        template = read_template()
        without = None if options.without is None else named_parts(options.without, template)
        if options.update:
            from update_project import update

            return update(ROOT, options.folder, without, only_check=options.check)
        check_target(options.folder.resolve())
        n_files = make_project(options.folder.resolve(), without or [], template)
    except (OSError, ValueError) as error:
        print(f"new_project.py: {error}", file=sys.stderr)
        return 2
    print(f"{options.folder}: {n_files} files. Next:\n")
    print(f"    cd {shlex.quote(str(options.folder))}")
    print("    git init && git add -A && git commit -m 'Start from Kindling'")
    print("    make train\n    make test")
    if is_repository() and git("status", "--porcelain", "--untracked-files=no"):
        text = "Kindling has changes that are not committed; an update will take them for yours"
        print(f"note: {text}", file=sys.stderr)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("folder", type=Path, help="the project's folder; its name is the name")
    parser.add_argument("--without", metavar="PARTS", help="what is left out: shards,lmdb ...")
    parser.add_argument("--update", action="store_true", help="bring this Kindling into a project")
    parser.add_argument("--check", action="store_true", help="with --update: write nothing")
    options = parser.parse_args(arguments)
    if options.check and not options.update:
        parser.error("--check goes with --update")
    return options


def read_template() -> Template:
    """Read copier.yml."""
    text = copier_yml()
    line = r"""^  - "(?:\{% if '(.+?)' in without %\})?(!?)(.+?)(?:\{% endif %\})?"$"""
    rules = [
        Rule(part, bool(taken), pattern)
        for part, taken, pattern in re.findall(line, text, re.MULTILINE)
    ]
    parts = {part: what for what, part in re.findall(r'^    "(.+)": ([\w-]+)$', text, re.MULTILINE)}
    (docs,) = re.findall(r"^docs:\n(?:  .*\n)*?  default: (\S+)$", text, re.MULTILINE)
    return Template(rules, parts, docs)


def copier_yml() -> str:
    return (ROOT / "copier.yml").read_text(encoding="utf-8")


def named_parts(text: str, template: Template) -> list[str]:
    """Return the parts in a list such as `shards,lmdb`; an empty text names none.

    Raises:
        ValueError: a part has no such name; the text has near misses and all names.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in template.parts:
            near = get_close_matches(name, template.parts, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            known = "\n".join(f"    {part:<12} {what}" for part, what in template.parts.items())
            raise ValueError(f"--without: there is no part {name!r}{hint} The parts:\n{known}")
    return [part for part in template.parts if part in names]


def check_target(target: Path) -> None:
    """Raise ValueError for a target that holds something, or that lies within the template."""
    if target.is_relative_to(ROOT):
        raise ValueError(f"{target} lies inside the template; name a folder outside {ROOT}")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder; name another")


def make_project(target: Path, without: Sequence[str], template: Template) -> int:
    """Write to a temporary folder in the target, then move into place; never half a project."""
    words = {"name": target.name, "package": package_name(target.name), "docs": template.docs}
    files = project_files(template, without)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new_project-", dir=target) as temporary:
        project = Path(temporary) / "project"
        for path, source in files.items():
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == JINJA:
                text = source.read_text(encoding="utf-8")
                for word, value in words.items():
                    text = text.replace(f"{{{{ {word} }}}}", value)
                (project / path).write_text(text, encoding="utf-8")
                shutil.copystat(source, project / path)  # make compares times
            else:
                shutil.copy2(source, project / path)
        (project / ANSWERS).write_text(answers(target.name, without), encoding="utf-8")
        for entry in project.iterdir():
            entry.rename(target / entry.name)
    return len(files) + 1


def project_files(template: Template, without: Sequence[str]) -> dict[str, Path]:
    """Return what a project holds, by path: the file that it is copied or made from."""
    sources = {path.as_posix(): ROOT / path for path in template_files()}
    made = {path: path.removesuffix(JINJA) for path in sources if path.endswith(JINJA)}
    sources |= {path: sources.pop(source) for source, path in made.items()}
    rules = [rule for rule in template.rules if not rule.part or rule.part in without]
    return {path: source for path, source in sorted(sources.items()) if is_taken(path, rules)}


def is_taken(path: str, rules: Sequence[Rule]) -> bool:
    """Tell whether a project holds a path: the last rule that fits decides."""
    return next((rule.is_taken for rule in reversed(rules) if rule.fits(path)), True)


def template_files() -> Iterator[Path]:
    """The files that git tracks, or all of them where git does not know this folder."""
    listing = git("ls-files", "-z") if is_repository() else ""
    yield from (Path(name) for name in listing.split("\0") if (ROOT / name).is_file() and name)
    if not listing:
        for folder, folders, names in os.walk(ROOT):
            folders[:] = [name for name in folders if name not in (".git", ".venv")]
            yield from (Path(folder, name).relative_to(ROOT) for name in names)


def answers(name: str, without: Sequence[str]) -> str:
    """What copier would write: the version and the answers that an update starts from."""
    remark = (ROOT / f"{{{{_copier_conf.answers_file}}}}{JINJA}").read_text(encoding="utf-8")
    lines = [remark.splitlines()[0]]
    if is_repository():
        lines.append(f"_commit: {git('describe', '--tags', '--always').strip()}")
        lines.append(f"_src_path: {json.dumps(origin())}")
    elif found := re.search("the commit: ([0-9a-f]{40})", copier_yml()):
        lines.append(f"_commit: {found[1]}")
    lines += [f"name: {json.dumps(name, ensure_ascii=False)}", f"without: {json.dumps(without)}"]
    return "\n".join(lines) + "\n"


def origin() -> str:
    """Where this template was cloned from, without a password; or else where it lies."""
    try:
        url = git("config", "--get", "remote.origin.url").strip()
    except ValueError:
        return str(ROOT)
    return re.sub(r"//[^/@]*@", "//", url)


def is_repository() -> bool:
    """Tell whether git keeps this very folder; an unpacked archive may lie within another's."""
    try:
        return Path(git("rev-parse", "--show-toplevel").strip()).resolve() == ROOT
    except ValueError:
        return False


def git(*arguments: str) -> str:
    """Return what git prints about the template; ValueError where it fails or is missing."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"git {arguments[0]} failed in {ROOT}: {error}") from error


def package_name(name: str) -> str:
    """What a package may be called: ASCII letters and digits, joined by - _ or a full stop."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-_.").lower() or "project"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
