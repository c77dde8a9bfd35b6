"""References to objects built from a config: ``${data_loader.n_classes}``, and ``${config}``.

A reference whose second word is not a key of the section is an attribute of the built object. It
stays in the config as a `Reference` until that object exists. Its use is validated with the rest of
the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from base.config.tree import Keys, Node

LOADERS = ("data_loader", "valid_data_loader")
BUILT = (*LOADERS, "test_data_loader", "model")
WHOLE = "config"

# Objects built before the arguments of a section are read.
_ALL = (*LOADERS, "model")
BUILT_BEFORE: Mapping[str, tuple[str, ...]] = {
    "data_loader": (),
    "valid_data_loader": ("data_loader",),
    "test_data_loader": LOADERS,
    "model": LOADERS,
    **dict.fromkeys(("init", "loss", "optimizer", "optimizers", "lr_scheduler", "metrics"), _ALL),
    **dict.fromkeys(("callbacks", "trainer", "extra"), _ALL),
}
_KEYS_OF_SECTIONS = ("type", "args", "weights")


class Reference(str):
    """The text of a value that contains references to built objects, as in a config."""

    __slots__ = ()


def has_reference(value: Any) -> bool:
    """Return whether a value is, or contains, a reference to a built object."""
    if isinstance(value, Mapping):
        return any(map(has_reference, value.values()))
    if isinstance(value, list):
        return any(map(has_reference, value))
    return isinstance(value, Reference)


def built_object(name: str, root: Node) -> str:
    """Return the name of the object that a reference needs; "" for values of the config."""
    first, *words = name.split(".")
    first = "model" if first == "arch" else first
    if first == WHOLE and not words:
        return WHOLE
    are_words = all(word.isidentifier() or word.isdecimal() for word in words)
    if first not in BUILT or not words or not are_words or words[0] in _KEYS_OF_SECTIONS:
        return ""
    section = root.child(first)
    is_key = section is not None and isinstance(section.value, dict) and words[0] in section.value
    return "" if is_key else first


def fault_of_reference(name: str, thing: str, keys: Keys) -> str:
    """Return why a reference to a built object is not allowed under these keys, or ""."""
    shown = f"${{{name}}}"
    if not _takes_objects(keys):
        what = "the whole config" if thing == WHOLE else f"an attribute of the built {thing}"
        return f"{shown} is {what}, which is only allowed in `args`"
    private = next((word for word in name.split(".") if word.startswith("_")), "")
    if private:
        return f"{shown}: {private!r} is private"
    if thing == WHOLE or thing in BUILT_BEFORE[str(keys[0])]:
        return ""
    if thing == "test_data_loader":
        return f"{shown}: the test_data_loader is built last, for the test only"
    return f"{shown}: the {thing} is not built yet where the arguments of {keys[0]} are read"


def _takes_objects(keys: Keys) -> bool:
    """Return whether the value under these keys is an argument, or inside one."""
    if keys[0] == "extra":
        return len(keys) > 1
    above, last = keys[:-1], keys[-1]
    if keys[0] not in BUILT_BEFORE or len(keys) < 2:
        return False
    if "param_groups" in above:
        return last not in ("match", "preset", "freeze")
    is_name = last == "type" and above[-1] != "args"
    return "args" in above and not is_name and above[-1] != "weights"
