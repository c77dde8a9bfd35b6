"""Gathers the pages of the site: those of the repository, with their links, and the reference.

The pages are Markdown that reads well on a code host, where a link leads to a file of the
repository. In the site, a link to a page leads to that page, and a link to any other file is its
text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import reference

ROOT = Path(__file__).resolve().parent.parent.parent
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")

# The order of the sidebar. Other pages of docs/ follow under "More".
NAVIGATION = {
    "Tutorials": "tutorials/index tutorials/image-folder tutorials/csv tutorials/fine-tune "
    "tutorials/segmentation tutorials/gan",
    "How-to: data": "data-sets tables samples segmentation",
    "How-to: models": "models initialisation gans",
    "How-to: training": "recipes parameter-groups schedules losses metrics gradients "
    "checkpoints logging",
    "How-to: after training": "predicting exporting reports comparing-runs sweeps checks notebooks",
    "How-to: speed and size": "speed memory scaling",
    "How-to: projects": "projects from-pytorch-template",
    "Reference": "reference/config reference/commands reference/python reference/names/index",
    "Explanation": "architecture reliability decisions/index",
    "Results": "results/index",
    "Project": "project/contributing project/changelog project/security project/data/index",
}


def sources() -> dict[str, str]:
    """Return the path in the site of every page of the repository, by its path there."""
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")}
    places = {path: path.removeprefix("docs/") for path in found}
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"):
        places[name] = f"project/{name.lower()}"
    for folder, to in (("benchmarks", "results"), ("data", "project/data")):
        for path in (ROOT / folder).glob("*.md"):
            places[f"{folder}/{path.name}"] = f"{to}/{path.name}"
    places["README.md"] = "index.md"
    return {path: site.replace("README.md", "index.md") for path, site in sorted(places.items())}


def gather() -> dict[str, str]:
    """Return the Markdown of every page, by its path in the site."""
    places = sources()
    made = {
        site: _with_links(path, (ROOT / path).read_text(encoding="utf-8"), places)
        for path, site in places.items()
    }
    made |= reference.pages()
    made |= {
        "decisions/index.md": "# Decisions\n\nHalf a page each: context, choice, price.\n",
        "project/data/index.md": "# Data that ships\n\nWhere it comes from, and its licence.\n",
    }
    for folder in ("decisions", "results", "reference/names", "project/data"):
        made[f"{folder}/index.md"] += _contents(folder, made)
    for caption, names in navigation(made).items():
        made["index.md"] += _toctree(names, ":hidden:", f":caption: {caption}")
    return made


def navigation(made: dict[str, str]) -> dict[str, list[str]]:
    """Return the pages of each part of the sidebar that exist, and the others as its last part."""
    pages = [path.removesuffix(".md") for path in made]
    parts = {
        caption: [name for name in names.split() if name in pages]
        for caption, names in NAVIGATION.items()
    }
    shown = {"index", *(name for names in parts.values() for name in names)}
    more = [page for page in pages if "/" not in page and page not in shown]
    return {name: found for name, found in (parts | {"More": more}).items() if found}


def _contents(folder: str, made: dict[str, str]) -> str:
    """Return the list of a folder's pages: shown, unless its first page links them itself."""
    names = sorted(Path(path).stem for path in made if posixpath.dirname(path) == folder)
    names.remove("index")
    is_linked = f"({names[0]}.md)" in made[f"{folder}/index.md"]
    return _toctree(names, ":hidden:" if is_linked else ":maxdepth: 1")


def _toctree(names: list[str], *options: str) -> str:
    return "\n".join(["", "```{toctree}", *options, "", *names, "```", ""])


def _with_links(path: str, text: str, places: dict[str, str]) -> str:
    """Return a page whose links lead to pages of the site.

    Raises:
        FileNotFoundError: a link leads nowhere.
    """

    def lead(found: re.Match[str]) -> str:
        is_picture, text, (target, mark, anchor) = found[1], found[2], found[3].partition("#")
        if "://" in target or not target:
            return found[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if not (ROOT / wanted).exists():
            raise FileNotFoundError(f"{path}: the link {target} leads nowhere")
        here = posixpath.dirname(places[path]) or "."
        if is_picture:
            return f"![{text}]({posixpath.relpath(wanted.removeprefix('docs/'), here)})"
        folder = f"{wanted.removeprefix('docs/')}/index.md" if wanted == "docs/decisions" else None
        site = places.get(wanted) or places.get(f"{wanted}/README.md") or folder
        return f"[{text}]({posixpath.relpath(site, here)}{mark}{anchor})" if site else text

    parts = CODE.split(text)
    parts[::2] = [LINK.sub(lead, part) for part in parts[::2]]
    return "".join(parts)
