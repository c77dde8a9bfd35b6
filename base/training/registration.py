"""What a trainer may register to be saved and resumed, and under which names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from base.training.progress import Stateful

OF_THE_ENGINE = (
    "optimizer.", "schedule.", "scaler.", "loss.", "metric.", "callback.", "bad_samples",
    "epoch_start",
)  # fmt: skip
"""Names of the engine's own that are not always in use, or how they begin."""


def is_among(name: str, names: Collection[str]) -> bool:
    """Tell whether a name is one of these, or begins with one that ends in a dot."""
    return any(name == each or (each.endswith(".") and name.startswith(each)) for each in names)


def checked_parts(name: Any, value: Any, taken: Collection[str]) -> dict[str, Any]:
    """Return the objects to save by name: this one, or those of a dict as ``name.key``.

    Raises:
        ValueError: a name is taken or is no text, or an object cannot give and take a state.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"register({name!r}, ...): a name is a text that is not empty")
    if not isinstance(value, dict) or hasattr(value, "state_dict"):
        parts = {name: value}
    elif not value:
        raise ValueError(f"register({name!r}, {{}}): there is nothing in it to save")
    else:
        parts = {f"{name}.{key}": inner for key, inner in value.items()}
        if empty := [key for key in value if not str(key).strip()]:
            raise ValueError(f"register({name!r}, ...): {empty[0]!r} in it is no name")
    for key, part in parts.items():
        _check_name(key, taken)
        _check_state(key, part)
    return parts


def _check_name(name: str, taken: Collection[str]) -> None:
    holders = [each for each in taken if each == name or each.startswith(f"{name}.")]
    if holders or is_among(name, OF_THE_ENGINE):
        of = f", for {holders[0]!r}" if holders and holders[0] != name else ""
        others = ", ".join(sorted({each.partition(".")[0] for each in taken}))
        text = f"register({name!r}, ...): this name is taken{of}; give another one"
        raise ValueError(f"{text} (taken are {others})")


def _check_state(name: str, value: Any) -> None:
    methods = [getattr(value, each, None) for each in ("state_dict", "load_state_dict")]
    if isinstance(value, Stateful) and all(map(callable, methods)) and not isinstance(value, type):
        return
    text = f"register({name!r}, ...): {_described(value)} has no state_dict and load_state_dict"
    if isinstance(value, Tensor):
        advice = "make it a buffer of a module, which is registered in its place: `holder = "
        advice += "torch.nn.Module(); holder.register_buffer('value', tensor)`"
    elif isinstance(value, dict):
        advice = "a dict may hold objects that have both, no dicts; give each its own name"
    elif isinstance(value, type):
        advice = "give an object of this class, not the class"
    else:
        advice = "keep it as an attribute of an object that has both and register that object; "
        advice += "docs/from-pytorch-template.md, need 10, shows one"
    raise ValueError(f"{text}: {advice}")


def _described(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    return "None" if value is None else f"a {type(value).__name__}"
