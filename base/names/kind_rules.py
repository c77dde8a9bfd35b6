"""Rules that decide whether a class, function or object is a model, a data set, ...

Classes are checked by their base classes and methods; functions called with data, by their
signature. A function that *builds* an object needs a decorator: other functions are not meant for
a config, and may write files.
"""

from __future__ import annotations

import inspect
import os
import types
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable
from importlib import import_module
from inspect import Parameter
from pathlib import Path
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints


class Rule(NamedTuple):
    """The rule for classes of a kind: ``fits`` checks it, and ``words`` describe it in errors.

    ``registry`` has the decorator for functions that build one.
    """

    fits: Callable[[type], bool]
    words: str
    registry: str = ""


def misfit(kind: str, named: Any, is_marked: bool, is_likely: bool = True) -> str:
    """Return why a named object is not of the kind, or "" if it is.

    Args:
        is_marked: whether a function is a builder by its decorator or its file.
        is_likely: whether its name or its file suggests this kind. A loss or metric may then take
            only the output.
    """
    rule = _RULES.get(kind)
    if isinstance(named, type):
        is_one = rule is not None and rule.fits(named)
        if is_one and kind in CALLED_WITH and not (is_likely or _defines(named, "update")):
            is_one = not _arity_fault(_called(named), len(CALLED_WITH[kind]), is_method=True)
        return (
            ""
            if is_one
            else f"it is not a {rule.words}"
            if rule
            else "it is a class, not a function"
        )
    if kind in CALLED_WITH:
        return _function_fault(kind, named, is_likely)
    is_made = rule is not None and not inspect.isroutine(named) and rule.fits(type(named))
    if rule is None or (is_marked and callable(named) and not is_made):
        return ""
    if not inspect.isroutine(named):
        return f"it is a {type(named).__name__}, not a class"
    return (
        f"it is a function, not a {rule.words}; if it builds one, decorate it: "
        f"`@{rule.registry}.register({named.__name__!r})` (from base import "
        f"{rule.registry})"
    )


def made_fault(kind: str, made: Any) -> str:
    """Return why the result of a builder is not of the kind, or "" if it is."""
    rule = _RULES.get(kind)
    if rule is None or not rule.registry or rule.fits(type(made)):
        return ""
    return f"it returned a {type(made).__name__}, which is not a {rule.words}"


def _is(*places: str) -> Callable[[type], bool]:
    def fits(cls: type) -> bool:
        split = (place.partition(":") for place in places)
        return any(issubclass(cls, getattr(import_module(at), name)) for at, _, name in split)

    return fits


def _defines(cls: type, *names: str) -> bool:
    """Return whether instances of a class have one of these methods (classes are callable)."""
    return any(name in vars(each) for each in cls.__mro__ for name in names)


def _is_loader(cls: type) -> bool:
    is_other = _is(_DATASET)(cls) or issubclass(cls, (str, Collection))
    return _is(_LOADER)(cls) or (_defines(cls, "__iter__") and not is_other)


def _is_sampler(cls: type) -> bool:
    is_order = _is_loader(cls) and not _is(_LOADER, _BASE_LOADER)(cls)
    return _is(_SAMPLER)(cls) or _defines(cls, "draw") or is_order


def _is_schedule(cls: type) -> bool:
    is_other = _is(_OPTIMIZER, _TRAINER, _MODULE)(cls)
    return _is(_SCHEDULER)(cls) or (_defines(cls, "step") and not is_other)


def _is_loss(cls: type) -> bool:
    """Return whether instances of a class can be called with an output and a target."""
    called = _called(cls)
    return called is not None and not _arity_fault(called, 1, is_method=True)


def _called(cls: type) -> Any:
    name = next((each for each in ("forward", "__call__") if _defines(cls, each)), "")
    return getattr(cls, name) if name else None


def _is_metric(cls: type) -> bool:
    return (_defines(cls, "update") and _defines(cls, "compute")) or _is_loss(cls)


_MODULE, _DATASET, _LOADER = (
    "torch.nn:Module",
    "torch.utils.data:Dataset",
    "torch.utils.data:DataLoader",
)
_SAMPLER, _BASE_LOADER = "torch.utils.data:Sampler", "base.base_data_loader:BaseDataLoader"
_OPTIMIZER, _SCHEDULER = "torch.optim:Optimizer", "torch.optim.lr_scheduler:LRScheduler"
_TRAINER, _CALLBACK = "base.base_trainer:BaseTrainer", "base.callbacks:Callback"
_RULES = {
    "model": Rule(_is(_MODULE), "subclass of Module", "MODELS"),
    "dataset": Rule(_is(_DATASET), "subclass of torch's Dataset", "DATASETS"),
    "data_loader": Rule(_is_loader, "class with `__iter__`", "DATA_LOADERS"),
    "sampler": Rule(_is_sampler, "Sampler, or class with `draw` or `__iter__`", "SAMPLERS"),
    "transform": Rule(
        lambda cls: _defines(cls, "__call__", "batch", "mix"),
        "class with `__call__`", "TRANSFORMS",
    ),
    "optimizer": Rule(_is(_OPTIMIZER), "subclass of Optimizer", "OPTIMIZERS"),
    "lr_scheduler": Rule(_is_schedule, "class with `step`", "LR_SCHEDULERS"),
    "loss": Rule(_is_loss, "class whose instances are called with (output, target)"),
    "metric": Rule(_is_metric, "class with `update` and `compute`, or called with two"),
    "trainer": Rule(_is(_TRAINER), "subclass of BaseTrainer"),
    "callback": Rule(_is(_CALLBACK), "subclass of Callback"),
}  # fmt: skip
CALLED_WITH = {
    "loss": ("output", "target"), "metric": ("output", "target"), "init": ("tensor",),
    "function": ("a number, or a list of samples",),
}  # fmt: skip


def _function_fault(kind: str, named: Any, is_likely: bool) -> str:
    """Return why a function or callable object cannot be called with data of this kind."""
    if not callable(named):
        is_metric = kind == "metric" and hasattr(named, "compute")
        return "" if is_metric else f"it is a {type(named).__name__}"
    function = getattr(named, "forward", named)  # of a module instance
    with_what = f"a {kind} is called with ({', '.join(CALLED_WITH[kind])})"
    n_needed = 1 if is_likely else len(CALLED_WITH[kind])
    if fault := _arity_fault(function, n_needed):
        return f"{fault}; {with_what}"
    hints, takes = _hints(function), _positional(function)
    first, returned = hints.get(takes[0]) if takes else None, hints.get("return")
    is_for_data = _takes_a_number_or_samples if kind == "function" else _takes_tensors
    gives_nothing = returned is types.NoneType and kind != "init"  # init may work in place
    if gives_nothing or (first is not None and not is_for_data(first, returned)):
        shown = getattr(function, "__name__", type(function).__name__)
        return f"it is {shown}{inspect.signature(function)}; {with_what}"
    return ""


def _arity_fault(function: Any, n_needed: int, is_method: bool = False) -> str:
    """Return the signature of a function that cannot be called with that many values, or "".

    Losses and metrics receive the values that their signature names. A function that takes the
    batch, or only keyword arguments, needs no others.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[is_method:]
    except (TypeError, ValueError):  # a builtin without a signature
        return ""
    is_open = any(each.kind is Parameter.VAR_POSITIONAL for each in parameters)
    by_name = any(each.kind is Parameter.KEYWORD_ONLY for each in parameters)
    takes = _positional(function)[is_method:]
    if is_open or len(takes) >= n_needed or (by_name and not takes) or "batch" in takes:
        return ""
    return f"it takes {inspect.signature(function)}"


def _positional(function: Any) -> list[str]:
    by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [each.name for each in parameters if each.kind in by_position]


def _hints(function: Any) -> dict[str, Any]:
    """Return the resolved annotations; empty if any of them cannot be resolved."""
    try:
        return get_type_hints(function)
    except Exception:  # users' annotations may fail in any way
        return {}


def _members(annotation: Any) -> tuple[Any, ...]:
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if is_union else (annotation,)


def _takes_tensors(annotation: Any, _: Any) -> bool:
    """Return whether an annotation may mean a tensor, or a container of tensors."""
    others = (str, bytes, int, float, os.PathLike, Namespace, types.NoneType)
    other = _is(_MODULE)
    return any(
        not isinstance(each, type) or not (issubclass(each, others) or other(each))
        for each in _members(annotation)
    )


def _takes_a_number_or_samples(annotation: Any, returned: Any) -> bool:
    """Return whether an annotation means a number, or a list of samples."""
    is_number = all(each in (int, float) for each in _members(annotation))
    if is_number:
        return returned is None or all(each in (int, float) for each in _members(returned))
    return all(
        isinstance(origin := get_origin(each) or each, type)
        and issubclass(origin, Iterable)
        and not issubclass(origin, (str, bytes, dict))
        and origin.__module__ in ("builtins", "collections.abc", "typing")
        and not any(item is str or item is Path for item in get_args(each))
        for each in _members(annotation)
    )
