"""Finds sections in the arguments of a section, and their kinds.

The annotation of an argument determines the kind, or the table of names below. See
docs/data-sets.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any

from base.config.references import Reference
from base.config.tree import Keys
from base.names.signatures import takes_modules

Section = Mapping[str, Any]
KINDS_OF_DATA = ("data_loader", "dataset", "transform", "sampler")

# The kind of an argument of a scheduler, or of a kind of data, by its name.
OF_SCHEDULERS = {"schedulers": "lr_scheduler", "lr_lambda": "function", "scale_fn": "function"}
OF_DATA = {
    **dict.fromkeys(("dataset", "datasets"), "dataset"),
    **dict.fromkeys(("train_dataset", "valid_dataset", "val_dataset", "test_dataset"), "dataset"),
    **dict.fromkeys(("sampler", "batch_sampler"), "sampler"),
    **dict.fromkeys(("transform", "target_transform", "image_transform"), "transform"),
    **dict.fromkeys(("train_transform", "valid_transform", "val_transform"), "transform"),
    **dict.fromkeys(("test_transform", "transforms", "train_transforms"), "transform"),
    **dict.fromkeys(("valid_transforms", "val_transforms", "test_transforms"), "transform"),
    "collate_fn": "function",
}
# The kind of an argument of the kinds of data, by its annotation.
_ANNOTATED = {
    "transform": re.compile(r"\bCallable\b|Transform\b"),
    "dataset": re.compile(r"Dataset\b"),
    "sampler": re.compile(r"Sampler\b"),
}
_LIST = re.compile(r"([\w.]+\[|None \| )*[\w.]*\b([Ll]ist|[Tt]uple|Sequence|Iterable)\b")


def inner_kind(kind: str, name: str, parameter: Parameter | None, value: Any) -> str | None:
    """Return the kind of the sections in an argument, or None."""
    if kind == "model":
        if parameter is None:  # one of ``**networks``
            return kind if isinstance(value, Mapping) and "type" in value else None
        return kind if takes_modules(parameter) else None
    if kind == "lr_scheduler":
        return OF_SCHEDULERS.get(name)
    if kind not in KINDS_OF_DATA:
        return None
    return OF_DATA.get(name) or _annotated_kind(parameter)


def is_passed_on(kind: str, name: str, parameter: Parameter | None, value: Any) -> bool:
    """Return whether an argument of data looks like a section but is not built."""
    has_form = isinstance(value, Mapping) and "type" in value and value.keys() <= {"type", "args"}
    return has_form and kind in KINDS_OF_DATA and inner_kind(kind, name, parameter, value) is None


def replace_sections(
    inner: str | None, keys: Keys, value: Any, replace: Callable[[str, Section, Keys], Any]
) -> Any:
    """Replace each section, of kind ``inner``, in an argument's value.

    Mappings with keys other than ``type`` and ``args`` are plain data and are kept.
    """
    if inner is None or isinstance(value, Reference):
        return value
    if isinstance(value, list):
        each = enumerate(value)
        return [replace_sections(inner, (*keys, number), item, replace) for number, item in each]
    if inner in ("function", "model") and isinstance(value, str):
        return replace(inner, {"type": value}, keys)
    is_section = isinstance(value, Mapping) and "type" in value
    if is_section and (inner == "model" or set(value) <= {"type", "args"}):
        return replace(inner, value, keys)
    return value


def words_as_sections(parameter: Parameter | None, value: Any) -> Any:
    """Expand each string in a list of callables to a section."""
    if not isinstance(value, list) or "Callable" not in _annotation(parameter):
        return value
    is_word = [isinstance(item, str) and not isinstance(item, Reference) for item in value]
    return [{"type": item} if is_word[n] else item for n, item in enumerate(value)]


def takes_list(name: str, parameter: Parameter | None) -> bool:
    """Return whether an argument takes a list of transforms rather than a single one."""
    text = _annotation(parameter)
    # Without such an annotation, a plural name decides.
    return bool(_LIST.match(text)) or (name.endswith("s") and not _annotated_kind(parameter))


def _annotated_kind(parameter: Parameter | None) -> str | None:
    text = _annotation(parameter)
    found = (kind for kind, word in _ANNOTATED.items() if word.search(text))
    return None if "type[" in text.lower() else next(found, None)


def _annotation(parameter: Parameter | None) -> str:
    return "" if parameter is None else str(parameter.annotation)
