"""What a stream can show: how wide its lines are, and whether it has colours."""

import os
import sys
from typing import TextIO

STYLES = {"bold": "1", "best": "1;32", "warning": "33", "error": "1;31"}
"""SGR codes by what they mark; all are readable on a dark and on a light background."""


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Return the width of a terminal in cells; None for a pipe or a file, whose lines are whole.

    A number in the variable ``COLUMNS`` takes precedence, as in other tools.

    Args:
        stream: None means stdout.
    """
    chosen = os.environ.get("COLUMNS", "")
    if chosen.isdecimal() and int(chosen) > 0:
        return int(chosen)
    try:
        return os.get_terminal_size((stream or sys.stdout).fileno()).columns or None
    except (OSError, ValueError, AttributeError):  # no terminal, a closed stream, a notebook's
        return None


def has_colours(stream: TextIO) -> bool:
    """Return whether to colour the text on a stream: a terminal that is not dumb.

    ``NO_COLOR`` (https://no-color.org) and then ``FORCE_COLOR`` decide if they are not empty.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return os.environ["FORCE_COLOR"] != "0"
    if os.environ.get("TERM") == "dumb" or not stream.isatty():
        return False
    return os.name != "nt" or "WT_SESSION" in os.environ  # an old console prints the codes


def styled(text: str, style: str | None, stream: TextIO) -> str:
    """Return a text with the codes of a style, if there is one and the stream has colours."""
    if style is None or not text or not has_colours(stream):
        return text
    return f"\033[{STYLES[style]}m{text}\033[0m"
