"""Modules in the arguments of a model: ``{type, name, args}``, or only the type."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter
from typing import Any

from torch import nn

from base.config.normal_form import weights_section
from base.errors import nearest

Keys = tuple[str | int, ...]
Fault = tuple[Keys, str]


def layer_faults(keys: Keys, value: Any) -> list[Fault]:
    """Return the structural faults of a module or a list of modules, without those in ``args``.

    A module in a list may have a ``name``; a single module may have ``weights``.
    """
    if not isinstance(value, list):
        return _faults(keys, value, ("type", "args", "weights"))
    faults: list[Fault] = []
    seen: set[Any] = set()
    for number, layer in enumerate(value):
        faults += _faults((*keys, number), layer, ("type", "args", "name"))
        label = layer.get("name") if isinstance(layer, Mapping) else None
        if label is not None and not _is_label(label):
            text = (
                f"{label!r} is not a valid name of a layer: give a word without dots, not a number"
            )
            faults.append(((*keys, number, "name"), f"{text}, and not an attribute of nn.Module"))
        elif label in seen:
            faults.append(
                ((*keys, number, "name"), f"{label!r} is already the name of an earlier layer")
            )
        elif label is not None:
            seen.add(label)
    return faults


def with_names(parameter: Parameter | None, layers: Any, value: Any) -> Any:
    """Return built layers as a dict by name or number if the annotation is a dict."""
    annotation = "" if parameter is None else str(parameter.annotation)
    if layers is None or not annotation.startswith("dict["):
        return layers
    if not isinstance(value, list):
        value, layers = [value], [layers]
    labels = [layer.get("name") if isinstance(layer, Mapping) else None for layer in value]
    return {label or str(number): layers[number] for number, label in enumerate(labels)}


def _faults(keys: Keys, layer: Any, known: tuple[str, ...]) -> list[Fault]:
    if isinstance(layer, str) or layer is None:
        return []
    if not isinstance(layer, Mapping) or "type" not in layer:
        return [(keys, "expected a layer: its type, or {type, name, args}")]
    faults: list[Fault] = []
    for key in layer:
        if key not in known:
            near = nearest(str(key), known) or f"; it has {', '.join(known)}"
            faults.append(((*keys, key), f"unknown key of a layer{near}"))
    if "weights" in known and layer.get("weights") is not None:
        faults += [((*keys, "weights"), text) for text in weights_section(layer["weights"])[1]]
    return faults


def _is_label(value: Any) -> bool:
    is_word = isinstance(value, str) and value != "" and "." not in value
    # Layers without a name are numbered.
    return is_word and not value.isdigit() and not hasattr(nn.Module, value)
