"""Pieces of an HTML page: escaped text, tables, figures, and the frame with its style."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from logger.files import read_file

Cell = str | int | float | None
LONGEST_TEXT = 2000  # characters of a cell
NONE = "-"
STYLE = Path(__file__).with_name("style.css")


class Raw(str):
    """Markup that is not escaped again."""


def escape(value: object) -> str:
    """Return text as markup: every character that HTML or XML would read otherwise is escaped."""
    if isinstance(value, Raw):
        return value
    text = "".join(each if each.isprintable() or each in "\n\t" else "�" for each in str(value))
    return html.escape(text)


def tag(name: str, *content: object, **attributes: object) -> Raw:
    """Return an element; ``class_`` and ``data_x`` become ``class`` and ``data-x``."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Raw(f"<{name}{given}>{''.join(map(escape, content))}</{name}>")


def shown(value: Cell, digits: int = 4) -> str:
    """Return a value for people: numbers with a few significant digits, a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, bool | str):
        text = str(value)
        return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
    if isinstance(value, int):
        return f"{value:,}"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """Return a share as per cent."""
    return NONE if value is None else f"{100 * value:.1f} %"


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    class_: str | None = None,
    heads: int = 0,
) -> Raw:
    """Return a table that scrolls sideways where the page is narrow.

    Args:
        heads: the number of columns on the left that name their row.
    """
    top = tag("tr", *(tag("th", cell) for cell in head))
    body = [
        tag("tr", *(_cell(cell, number < heads) for number, cell in enumerate(row))) for row in rows
    ]
    inner = tag("table", tag("thead", top), tag("tbody", *body), class_=class_)
    return tag("div", inner, class_="wide")


def _cell(value: object, is_head: bool) -> Raw:
    if isinstance(value, Raw) and value.startswith("<td"):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    text = shown(value) if value is None or isinstance(value, int | float) else value
    if is_head:
        return tag("th", text, scope="row")
    return tag("td", text, class_="number" if is_number or value is None else None)


def facts(pairs: Iterable[tuple[str, object]]) -> Raw:
    """Return names with their values, side by side."""
    entries = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs]
    return tag("dl", *entries, class_="facts")


def picture(path: Path, text: str, class_: str | None = None) -> Raw:
    """Return a PNG file as part of the page; nothing if it cannot be read."""
    try:
        content = base64.b64encode(read_file(path)).decode()
    except OSError:
        return Raw("")
    source = Raw(f"data:image/png;base64,{content}")
    return Raw(f'<img src="{source}" alt="{escape(text)}"{_class(class_)} loading="lazy">')


def figure(content: object, caption: object, class_: str | None = None) -> Raw:
    """Return a picture or drawing with its caption."""
    return tag("figure", content, tag("figcaption", caption), class_=class_)


def more(summary: str, content: object) -> Raw:
    """Return what is folded until it is asked for."""
    return tag("details", tag("summary", summary), content)


def section(title: str, *content: object, id_: str) -> Raw:
    """Return a section of the page with its heading; nothing if it is empty."""
    if not any(content):
        return Raw("")
    return tag("section", tag("h2", title), *content, id=id_)


def page(title: str, *content: object, marks: str = "") -> str:
    """Return a whole page, which needs no network and no other file.

    Args:
        marks: what the head says beside the title, such as `COMPARISON`.
    """
    head = (
        f'<meta charset="utf-8">{marks}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
    )
    body = "\n".join(map(escape, content))
    whole = f'<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>'
    return f"<!doctype html>\n{whole}\n"


def _class(name: str | None) -> str:
    return "" if name is None else f' class="{escape(name)}"'
