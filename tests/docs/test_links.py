"""No link of any page leads nowhere: files of the repository, and headings of pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "data/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"")


def links(page: str) -> list[tuple[Path, str]]:
    """Return the file and the heading of each link within the repository."""
    text = CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    targets = [first or second for first, second in LINK.findall(text)]
    inside = [
        each.partition("#") for each in targets if "://" not in each and "mailto:" not in each
    ]
    here = ROOT / page
    return [(here.parent / path if path else here, anchor) for path, _, anchor in inside]


def anchors(path: Path) -> set[str]:
    """Return the anchors that a code host gives to the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        name = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        numbered = (f"{name}-{number}" for number in range(1, 99))
        found.add(next(each for each in (name, *numbered) if each not in found))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for path, anchor in links(page):
        assert path.exists(), f"{page}: {path.relative_to(ROOT)} does not exist"
        assert path.resolve().is_relative_to(ROOT), f"{page}: {path} is outside of the repository"
        assert not anchor or anchor in anchors(path), f"{page}: no heading {anchor} in {path.name}"


def test_the_pages_link_each_other() -> None:
    assert sum(len(links(page)) for page in PAGES) > 150
    assert sum(bool(anchor) for page in PAGES for _, anchor in links(page)) > 30
