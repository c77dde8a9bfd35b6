"""Resolves references such as ``${data_loader.n_classes}`` in the built objects.

Values from the training data are saved with each checkpoint. Testing then needs no training data,
and a resumed run keeps them.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from base.config.config import Config
from base.config.references import LOADERS, WHOLE, has_reference
from base.errors import ConfigError, KindlingError, Problem, nearest
from base.names.check import check_section
from base.names.discovery import describe_error, project_root

MAX_NUMBERS = 10_000  # of a tensor
MAX_CHARACTERS = 100_000  # of all values as JSON, approximately
_KINDS = ("f", "i", "u", "b")  # NumPy's: floating point, signed and unsigned integers, bool


class NotPlainError(ValueError):
    """A value that JSON does not support, or that is too large."""


def to_json(value: Any) -> Any:
    """Convert a value to JSON data, which `from_json` converts back.

    Raises:
        NotPlainError: it contains other types or non-finite numbers, or is too large.
    """
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is str and len(value) <= MAX_CHARACTERS:
        return value
    if type(value) in (list, tuple) and len(value) <= MAX_NUMBERS:
        items = [to_json(item) for item in value]
        return items if type(value) is list else {"tuple": items}
    if type(value) is dict and len(value) <= MAX_NUMBERS:
        return {"dict": [[to_json(key), to_json(item)] for key, item in value.items()]}
    if type(value) is Tensor and value.layout is torch.strided and not value.is_complex():
        return _numbers("tensor", value.detach().cpu(), str(value.dtype).removeprefix("torch."))
    if type(value) is np.ndarray and value.dtype.kind in _KINDS:
        return _numbers("array", value, value.dtype.name)
    raise NotPlainError(f"a {type(value).__name__} cannot be stored as JSON")


def from_json(data: Any) -> Any:
    """Return the original value of `to_json`."""
    if isinstance(data, list):
        return [from_json(item) for item in data]
    if not isinstance(data, Mapping):
        return data
    if "tuple" in data:
        return tuple(from_json(item) for item in data["tuple"])
    if "dict" in data:
        return {from_json(key): from_json(item) for key, item in data["dict"]}
    if "tensor" in data:
        dtype = getattr(torch, data["dtype"])
        return torch.tensor(data["tensor"], dtype=dtype).reshape(data["shape"])
    return np.array(data["array"], dtype=data["dtype"]).reshape(data["shape"])


def _numbers(kind: str, values: Any, dtype: str) -> dict[str, Any]:
    n_values = math.prod(values.shape)
    numbers = values.reshape(-1).tolist()
    if n_values > MAX_NUMBERS or not all(map(math.isfinite, numbers)):
        raise NotPlainError(f"a {kind} of {n_values} numbers cannot be stored as JSON")
    return {kind: numbers, "dtype": dtype, "shape": list(values.shape)}


log = logging.getLogger("kindling")
Keys = tuple[str | int, ...]
Section = Mapping[str, Any]

_TOKEN = re.compile(r"\$\$\{|\$\{([^{}]*)\}")
MAX_NAMES = 25  # listed in an error
_OF_A_SECTION = ("type", "args")


class References:
    """Resolves the references to built objects in the sections of a config.

    Args:
        kept: the values at the start of the run; see `values`.
        is_resumed: whether the run keeps these values even if the data give others now.
    """

    def __init__(
        self, config: Config, kept: Mapping[str, Any] | None = None, is_resumed: bool = True
    ) -> None:
        self.config = config
        self.values: dict[str, Any] = {}
        """The values from the training data by reference, as JSON for the manifests."""
        self.changes: dict[str, str] = {}
        """Messages about values that differ from the kept ones."""
        self.copies: list[tuple[Section, Keys]] = []
        """Resolved sections by their keys in the config."""
        self._kept, self._is_resumed = dict(kept or {}), is_resumed
        self._objects: dict[str, Any] = {}

    def add(self, name: str, built: Any) -> None:
        """Resolve ``${name.attribute}`` in this object."""
        self._objects[name] = built

    def resolve(self, kind: str, keys: Keys, section: Section) -> Section:
        """Return a section with its references resolved and its arguments checked again.

        Raises:
            ConfigError: the attribute does not exist, or its value is not valid for the argument.
        """
        if not has_reference(section):
            return section
        resolved: Section = self._replaced(section, keys)
        check_section(self.config, kind, keys, resolved)
        return resolved

    def resolve_list(self, kind: str, key: str) -> list[Section]:
        """Resolve the sections of one of the config's lists."""
        return [self.resolve(kind, (key, i), part) for i, part in enumerate(self.config[key])]

    def log_changes(self) -> None:
        """Log the values that differ from those at the start of the run."""
        for text in self.changes.values():
            log.warning(text)

    def _replaced(self, value: Any, keys: Keys) -> Any:
        if not has_reference(value):
            return value
        if isinstance(value, Mapping):
            copied = {name: self._replaced(item, (*keys, name)) for name, item in value.items()}
            self.copies.append((copied, keys))
            return copied
        if isinstance(value, list):
            return [self._replaced(item, (*keys, i)) for i, item in enumerate(value)]
        whole = re.fullmatch(r"\$\{([^{}]*)\}", value)
        if whole:
            return self._value(whole[1], keys)
        return _TOKEN.sub(lambda token: self._text(token, keys), value)

    def _text(self, token: re.Match[str], keys: Keys) -> str:
        if token[1] is None:
            return "${"
        value = self._value(token[1], keys)
        if isinstance(value, str | int | float | bool):
            return str(value)
        text = f"{token[0]} is a {type(value).__name__} and cannot be part of a string"
        raise ConfigError([self.config.problem(keys, text)])

    def _value(self, name: str, keys: Keys) -> Any:
        """Return the value of a reference."""
        if name == WHOLE:
            return copy.deepcopy(dict(self.config))
        if name in self.values:
            return from_json(self.values[name])
        thing, _, path = name.partition(".")
        of_data = thing in LOADERS
        is_kept = of_data and name in self._kept
        if is_kept and self._is_resumed and is_deferred(self._objects.get(thing)):
            self.values[name] = self._kept[name]
            return from_json(self.values[name])
        value = self._look_up(thing, path, keys)
        value = value.item() if isinstance(value, np.generic) else value
        if not of_data:
            return value
        try:
            self.values[name] = to_json(value)
        except NotPlainError:
            return value  # the object itself
        if is_kept:
            self._compare(name)
        return from_json(self.values[name])

    def _compare(self, name: str) -> None:
        then, now = self._kept[name], self.values[name]
        if then == now:
            return
        texts = [str(from_json(each)) for each in (then, now)]
        shown = [text if len(text) <= 60 else f"{text[:57]}..." for text in texts]
        effect = "the run keeps its value" if self._is_resumed else "the new value is used"
        self.changes[name] = (
            f"${{{name}}} was {shown[0]} at the start of the run, and is now {shown[1]}: {effect}"
        )
        if self._is_resumed:
            self.values[name] = then

    def _look_up(self, thing: str, path: str, keys: Keys) -> Any:
        found = self._objects.get(thing)
        if found is None:
            text = f"${{{thing}.{path}}}: the config has no {thing}"
            raise ConfigError([self.config.problem(keys, text)])
        found = _unwrapped(found)
        done = thing
        for word in path.split("."):
            try:
                found = _attribute(found, word)
            except LookupError as error:
                text = f"${{{thing}.{path}}}: {done}, a {type(found).__name__}, {error.args[0]}"
                raise ConfigError([self.config.problem(keys, text)]) from error
            done = f"{done}.{word}"
            if fault := _foreign(found):
                text = f"${{{thing}.{path}}}: {done} is {fault}"
                raise ConfigError([self.config.problem(keys, text)])
        return found


def is_deferred(loader: Any) -> bool:
    """Return whether a loader is built only when more than its length is needed."""
    return loader is not None and bool(getattr(type(loader), "is_deferred", False))


def _unwrapped(thing: Any) -> Any:
    """Return the loader that the config names, without its wrapper."""
    if is_deferred(thing):
        thing = thing.built()
    return thing.loader if getattr(type(thing), "replays", False) else thing


def _attribute(thing: Any, word: str) -> Any:
    """Return an attribute of an object, or an item of a mapping or sequence.

    Raises:
        LookupError: it does not exist. The message lists the existing names.
    """
    if isinstance(thing, Mapping) and word in thing:
        return thing[word]
    if word.isdecimal() and isinstance(thing, Sequence | Tensor | np.ndarray | nn.Module):
        try:
            return thing[int(word)]  # type: ignore[index]
        except (IndexError, TypeError) as error:
            raise LookupError(f"has no item {word}") from error
    try:
        return getattr(thing, word)
    except KindlingError:
        raise
    except Exception as error:  # raised by a user's property
        if not isinstance(error, AttributeError) or hasattr(type(thing), word):
            text = f"raises for {word!r}: {describe_error(error)}"
            raise LookupError(text) from error
    known = attributes(thing)
    more = ", ..." if len(known) > MAX_NAMES else ""
    there = f" (it has {', '.join(known[:MAX_NAMES])}{more})" if known else ""
    raise LookupError(f"has no {word!r}{nearest(word, (*known, *_OF_A_SECTION))}{there}")


def _foreign(value: Any) -> str:
    """Return a description of a value that a config must not reach: a module or library function.

    For example, the ``unlink`` of a path could be passed to code that calls it with each batch.
    """
    if isinstance(value, ModuleType):
        return f"the module {value.__name__}"
    if not inspect.isroutine(value):
        return ""
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    file = Path(getattr(module, "__file__", None) or "")
    if file.is_relative_to(project_root()) and "site-packages" not in file.parts:
        return ""
    name = getattr(value, "__qualname__", repr(value))
    return f"{name}, a library function: write a function of your own that calls it"


def attributes(thing: Any) -> list[str]:
    """Return the public attributes of an object, without methods; the engine's come last."""
    if isinstance(thing, Mapping):
        return [str(name) for name in thing]
    foreign = ("torch", "builtins", "abc", "typing", "collections", "numpy")
    classes = [c for c in type(thing).__mro__ if c.__module__.partition(".")[0] not in foreign]
    parts: list[Mapping[str, Any]] = [dict(getattr(thing, "__dict__", {})), *map(vars, classes)]
    if isinstance(thing, nn.Module):
        parts[1:1] = [thing._parameters, thing._buffers, thing._modules]
        parts[0] = {k: v for k, v in parts[0].items() if k != "training"}
    found = {name: value for part in reversed(parts) for name, value in part.items()}
    names = [name for part in parts for name in part if not name.startswith("_")]
    names = [name for name in dict.fromkeys(names) if not _is_method(found[name])]
    of_engine = {name for cls in classes if _is_of_engine(cls) for name in _names_used(cls)}
    of_engine.discard("n_classes")  # a loader's number of classes, made for references
    return sorted(names, key=of_engine.__contains__)


def _is_method(value: Any) -> bool:
    is_called = callable(value) and not isinstance(value, nn.Module)
    return is_called or isinstance(value, classmethod | staticmethod)


def _is_of_engine(cls: type[Any]) -> bool:
    """Return whether a class is part of the engine, as a base class of data sets and loaders."""
    return cls.__module__.startswith("base.") and not cls.__module__.startswith("base.datasets.")


def _names_used(cls: type[Any]) -> Iterator[str]:
    """Yield the attributes of a class, and those that its ``__init__`` reads or sets."""
    yield from vars(cls)
    init = vars(cls).get("__init__")
    yield from init.__code__.co_names if isinstance(init, FunctionType) else ()


def refuse_objects(section: Section, where: str) -> None:
    """Check that a section holds plain data, as its values are saved with the run's state.

    Raises:
        ConfigError: it contains an object.
    """
    try:
        json.dumps(section)
    except TypeError as error:
        text = f"its references must be numbers, strings or lists of these: {error}"
        raise ConfigError([Problem(where, text)]) from error
