"""The parts of Kindling that this project excludes, for error messages."""

from __future__ import annotations

import functools
from pathlib import Path

import yaml

from base.system.places import PROJECT

ANSWERS = ".copier-answers.yml"


def left_out_note(part: str | None = None) -> str:
    """Return a note for errors about missing names, or "" if no part is excluded.

    Args:
        part: the part that the missing name belongs to, if known.
    """
    parts = left_out(PROJECT)
    parts = parts if part is None else [each for each in parts if each == part]
    if not parts:
        return ""
    text = f"this project was made without {', '.join(parts)}"
    return f" ({text}; `new_project.py --update PROJECT --without ''` adds what was left out)"


@functools.cache
def left_out(root: Path) -> list[str]:
    """Return the parts that a project excludes."""
    try:
        answers = yaml.safe_load((root / ANSWERS).read_text(encoding="utf-8"))
        return [str(part) for part in answers["without"]]
    except (OSError, yaml.YAMLError, KeyError, TypeError):  # not a project, or edited by hand
        return []
