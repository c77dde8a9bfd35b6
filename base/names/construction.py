"""Builds the object of a ``{type, args}`` section of a config with a constructor call."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from inspect import Parameter
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import numpy as np
import torch

from base.config.tree import Keys
from base.errors import ConfigError, KindlingError, Problem
from base.names.discovery import describe_error
from base.names.inner_sections import inner_kind, replace_sections, takes_list, words_as_sections
from base.names.kind_rules import made_fault
from base.names.layer_sections import with_names
from base.names.registry import find, project_root
from base.names.signatures import INJECTED, signature
from base.names.trial_downloads import is_from, trial_weights, with_trial_root
from base.network.output_sizes import conv_class

Section = Mapping[str, Any]
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # read by every call of torch.load


def build(kind: str, section: Section, *, where: str = "", **injected: Any) -> Any:
    """Build the object of a ``{type, args}`` section. Functions of data get their ``args`` bound.

    Sections inside ``args`` (a dataset, transforms, schedulers) are built first. Those of the same
    kind receive the same injected arguments.

    Args:
        where: the location of the section in the config, for error messages.
        injected: further arguments, which a config cannot give (``params``, ``optimizer``).

    Raises:
        ConfigError: the name is unknown, or the constructor rejects the arguments.
    """

    def build_inner(inner: str, part: Section, _: Keys) -> Any:
        return build(inner, part, where=where, **(injected if inner == kind else {}))

    try:
        named = find(kind, section["type"])
    except KindlingError as error:
        raise ConfigError([Problem(where, str(error))]) from error
    parameters = signature(kind, named).parameters
    args = {}
    for name, value in (section.get("args") or {}).items():
        parameter = parameters.get(name)
        inner = inner_kind(kind, name, parameter, value)
        made = replace_sections(inner, (name,), words_as_sections(parameter, value), build_inner)
        if inner == "model":
            made = with_names(parameter, made, value)
        if inner == "transform" and not takes_list(name, parameter):
            made = _composed(made)
        args[name] = _as_annotated(parameter, made)
    named = conv_class(named, args) if kind == "model" else named
    try:
        with _only_weights(named), trial_weights(named):
            made = _call(kind, named, with_trial_root(named, args), injected)
    except Exception as error:
        if isinstance(error, KindlingError) or _is_fault_of_code(error):
            raise
        text = f"{section['type']} cannot be built: {describe_error(error)}"
        raise ConfigError([Problem(where, text)]) from error
    if not isinstance(named, type) and (fault := made_fault(kind, made)):
        raise ConfigError([Problem(where, f"{section['type']} is not a {kind}: {fault}")])
    return made


def _composed(value: Any) -> Any:
    """Compose a list of transforms, if an argument takes a single one."""
    if isinstance(value, list) and value and all(map(callable, value)):
        return find("transform", "Compose")(value)
    return value


def _as_annotated(parameter: Parameter | None, value: Any) -> Any:
    """Convert a string to a dtype or enum member, or a list to a tensor, as annotated."""
    annotation = None if parameter is None else parameter.annotation
    members = get_args(annotation) or (annotation,)
    takes_tensors = torch.Tensor in members and set(members) <= {torch.Tensor, NoneType}
    if isinstance(value, list | np.ndarray) and takes_tensors:
        return torch.tensor(value, dtype=torch.get_default_dtype())
    if isinstance(value, str) and torch.dtype in members:
        dtype = getattr(torch, value.removeprefix("torch."), None)
        return dtype if isinstance(dtype, torch.dtype) else value
    for member in members:
        if isinstance(value, str) and isinstance(member, type) and issubclass(member, Enum):
            return next((each for each in member if value in (each.name, each.value)), value)
    return value


def _call(kind: str, named: Any, args: dict[str, Any], injected: dict[str, Any]) -> Any:
    """Call a class or builder; bind ``args`` to a function of data."""
    if kind in ("loss", "metric", "init", "function") and not isinstance(named, type):
        return functools.partial(named, **args) if args else named
    own_names = dict(zip((INJECTED.get(kind, ""),), signature(kind, named).injected, strict=False))
    return named(**args, **{own_names.get(name, name): injected[name] for name in injected})


@contextmanager
def _only_weights(named: Any) -> Iterator[None]:
    """Make torch load only weights, not objects, while torchvision builds a model.

    By itself, torchvision loads its downloaded ``weights`` without this check.
    """
    before = os.environ.get(WEIGHTS_ONLY)
    if not is_from(named, "models"):
        yield
        return
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        yield
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        text = "its weights file is damaged, or contains other objects: remove it from "
        raise ValueError(f"{text}{torch.hub.get_dir()}") from None  # torch advises trusting it
    finally:
        os.environ.pop(WEIGHTS_ONLY)
        if before is not None:
            os.environ[WEIGHTS_ONLY] = before


def _is_fault_of_code(error: Exception) -> bool:
    """Return whether the project's code raised an error other than one that rejects a value."""
    file = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    is_ours = file.is_relative_to(project_root()) and "site-packages" not in file.parts
    return is_ours and not isinstance(error, TypeError | ValueError)
