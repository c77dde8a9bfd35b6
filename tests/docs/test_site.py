"""The site builds without a warning, loads nothing, and its reference is complete."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from processes import Script

from base.config.editor_schema import json_schema
from base.lazy_imports import exports
from base.names.registry import KINDS

ROOT = Path(__file__).resolve().parent.parent.parent
LOADED = r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=\"([^\"]+)\""
LOADED += r"|<link\b[^>]*rel=\"(?:stylesheet|preload|icon)\"[^>]*href=\"([^\"]+)\""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "docs/site/build.py", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return folder


def text_of(site: Path, page: str) -> str:
    """Return the visible text of a page."""
    source = (site / page).read_text(encoding="utf-8")
    (body,) = re.findall(r"<article\b.*?</article>", source, re.DOTALL)
    return unescape(re.sub(r"<[^>]*>", "", body))


def test_every_page_of_the_repository_is_in_the_site(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 40
    for page in pages:
        name = str(page.with_suffix(".html")).replace("README", "index")
        assert (site / name).is_file(), f"docs/{page} is not in the site"


def test_the_site_loads_nothing_from_the_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = [a or b for a, b in re.findall(LOADED, page.read_text(encoding="utf-8"))]
        assert loaded
        for target in loaded:
            path = target.partition("?")[0]
            assert "//" not in path, f"{page.name} loads {target}"
            assert path.startswith("data:") or (page.parent / path).exists()
    for style in site.rglob("*.css"):
        outside = re.findall(
            r"(?:url\(|@import)\s*['\"]?(?:https?:)?//\S+", style.read_text("utf-8")
        )
        assert outside == [], style.name


def keys_of(schema: Any) -> Iterator[str]:
    """Yield the keys of all sections of a JSON Schema: not the arguments of single names."""
    if isinstance(schema, dict):
        for name, inner in schema.get("properties", {}).items():
            yield name
            yield from keys_of(inner)
        for key in ("anyOf", "items", "additionalProperties"):
            yield from keys_of(schema.get(key))
    elif isinstance(schema, list):
        for each in schema:
            yield from keys_of(each)


def test_every_key_of_the_schema_is_in_the_reference(site: Path) -> None:
    keys = set(keys_of(json_schema({}))) - {"$schema"}
    assert {"monitor", "checkpoint_activations", "on_shape_mismatch", "sync_batch_norm"} <= keys
    shown = set(re.findall(r"[\w$]+", text_of(site, "reference/config.html")))
    assert keys - shown == set()


def test_every_name_that_a_config_can_use_is_in_the_reference(site: Path, tmp_path: Path) -> None:
    done = Script(["train.py", "--list"], tmp_path).wait()
    parts = re.split(r"^(\w+):\n", done.stdout, flags=re.MULTILINE)[1:]
    listed = dict(zip(parts[::2], parts[1::2], strict=True))
    assert set(listed) == set(KINDS)
    for kind, text in listed.items():
        wanted = re.findall(r"^  (\w+)\(", text, re.MULTILINE)
        shown = re.findall(r"^(\w+)", text_of(site, f"reference/names/{kind}.html"), re.MULTILINE)
        assert wanted
        assert set(wanted) - set(shown) == set()


def test_what_base_gives_is_in_the_reference(site: Path) -> None:
    shown = text_of(site, "reference/python.html")
    assert [name for name in exports("base") if not re.search(rf"\b{name}\b", shown)] == []


def test_the_options_of_every_script_are_in_the_reference(site: Path) -> None:
    shown = text_of(site, "reference/commands.html")
    scripts = [path.name for path in ROOT.glob("*.py") if path.name != "update_project.py"]
    assert {"train.py", "test.py", "new_project.py"} <= set(scripts)
    for name in scripts:
        assert f"usage: {name}" in shown
    for option in ("--set", "--dry-run", "--allow-change", "--schema", "--without"):
        assert option in shown


def test_the_search_finds_a_key_and_a_name(site: Path) -> None:
    """The index is a script, which a page opened from a folder may load."""
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(re.findall(r"Search\.setIndex\((.*)\)", text, re.DOTALL)[0])
    titles = index["alltitles"]
    assert "trainer" in titles
    assert "MaskFolderDataset" in titles
    assert any("onecyclelr" in term for term in index["titleterms"])
