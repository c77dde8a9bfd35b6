"""Lists all names that a config can use, as text (``--list``) and for editors (``--schema``)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from inspect import Parameter
from typing import Any

from base.config.editor_schema import json_schema as config_schema
from base.errors import UsageError, nearest
from base.names.registry import KINDS, NameFault, WrongKind, definition, find, names, overridden
from base.names.signatures import json_schema, signature
from base.system.deferred_files import defer_files
from logger.console import text_width, wrap_prose
from logger.terminal import terminal_width


def show_names(kind: str | None) -> int:
    """Print the names of a kind, or of ``all``; without a kind, print the JSON Schema.

    Raises:
        UsageError: the kind does not exist.
    """
    with defer_files():  # importing the project's files may write files
        print(_schema_text() if kind is None else _names_text(kind))
    return 0


def _schema_text() -> str:
    import torch

    schema = {"$comment": f"torch {torch.__version__}", **config_schema(type_schemas())}
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def _names_text(kind: str) -> str:
    if kind != "all" and kind not in KINDS:
        known = f"{nearest(kind, KINDS)} (there are {', '.join(KINDS)})"
        raise UsageError(f"--list {kind}: no such kind{known}")
    return "\n".join(map(describe, KINDS if kind == "all" else [kind]))


def describe(kind: str) -> str:
    """Return the names of a kind with arguments, origin and summary, by where they come from.

    The project's names come first. Of models, whole ones precede layers. In a terminal, long lines
    are wrapped; in a pipe a name, its arguments and its origin are one line.
    """
    parts: dict[str, list[str]] = {}
    for name, named, origin in entries(kind):
        lines = parts.setdefault(_source(kind, origin), [])
        if isinstance(named, NameFault):
            lines.append(f"  {name}    cannot be used: {named}")
            continue
        lines.append(_fitted(f"  {name}({', '.join(shown_arguments(kind, named))})", origin))
        lines += [_fitted(f"      {first_line(named)}")] if first_line(named) else []
    order = sorted(parts, key=lambda source: _ORDER.index(source) if source in _ORDER else 9)
    texts = [[f" {source}:" * bool(source), *parts[source]] for source in order]
    return "\n".join([f"{kind}:", *filter(None, (line for lines in texts for line in lines))])


_ORDER = ["", "of Kindling", "of torchvision", "of torch", "layers, of torch"]


def _source(kind: str, origin: str) -> str:
    """Return the heading of a name: nothing for those of the project."""
    package = origin.partition(".")[0]
    if ":" in origin or "/" in origin or origin == NameFault.__module__:
        return ""  # a fault is in a file of the project
    if package == "base":
        return "of Kindling"
    return f"layers, of {package}" if kind == "model" and package == "torch" else f"of {package}"


def _fitted(text: str, origin: str = "") -> str:
    """Return the text with the origin of a name, wrapped if it is longer than a line."""
    end, whole = terminal_width(), f"{text}    {origin}".rstrip()
    if end is None or text_width(whole) <= end:
        return whole
    first, *rest = wrap_prose(text, end - 6).split("\n")
    indent = " " * (8 if origin else 6)  # a summary begins in cell 6
    return "\n".join([first, *(indent + line.strip() for line in [*rest, origin] if line)])


def type_schemas() -> dict[str, list[dict[str, Any]]]:
    """Return the names of each kind, each with a schema of its ``args`` and a summary.

    The layers of torch.nn and all of torchvision are excluded, as 300 more names would clutter an
    editor's list. A config can still use them.
    """
    return {
        kind: [_schema(kind, *entry) for entry in entries(kind) if not _is_left_out(kind, entry[2])]
        for kind in KINDS
    }


def _is_left_out(kind: str, origin: str) -> bool:
    return origin.startswith("torchvision.") or (kind == "model" and origin.startswith("torch.nn."))


def _schema(kind: str, name: str, named: Any, origin: str) -> dict[str, Any]:
    if isinstance(named, NameFault):
        return {"name": name, "args_schema": {"type": "object"}, "doc": origin}
    return {"name": name, "args_schema": json_schema(kind, named), "doc": first_line(named)}


def entries(kind: str) -> Iterator[tuple[str, Any, str]]:
    """Yield each name, its object (or the fault that prevents its use) and its origin."""
    for name in names(kind):
        named: Any
        origin = ""
        try:
            named = find(kind, name)
            if (found := definition(kind, name)) is not None:
                aside = overridden(kind, name)
                origin = f"{found} (not Kindling's {aside})" if aside else str(found)
        except WrongKind:
            continue  # a helper function
        except NameFault as fault:
            named = fault
        yield name, named, origin or str(getattr(named, "__module__", ""))


def shown_arguments(kind: str, named: Any) -> list[str]:
    """Return the arguments of a name as they are listed: ``lr=0.001``, and ``**others``."""
    takes = signature(kind, named)
    shown = [_shown(parameter) for parameter in takes.parameters.values()]
    return shown + (["**others"] if takes.is_open else [])


def _shown(parameter: Parameter) -> str:
    if parameter.default is Parameter.empty:
        return parameter.name
    default = getattr(parameter.default, "__name__", repr(parameter.default))
    return f"{parameter.name}={default}"


def first_line(named: Any) -> str:
    """Return the first line of the docstring; instances do not have one."""
    is_definition = isinstance(named, type) or hasattr(named, "__name__")
    lines = (getattr(named, "__doc__", None) or "").strip().splitlines()
    lines = [line.strip() for line in lines if line.strip() and not line.startswith("__init__(")]
    return lines[0] if lines and is_definition else ""
