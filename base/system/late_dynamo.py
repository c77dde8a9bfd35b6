"""Put off the import of torch._dynamo, nearly half of a run's start, until something compiles.

The first optimizer of a process imports torch's compiler: to mark its own methods as not to be
compiled, and to call a function that does nothing outside of compiled code (docs/decisions/0011).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

NAME = "torch._dynamo"


class LateDynamo(ModuleType):
    """Stands in for the module: the first use of anything but those two functions imports it."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self._marked: list[Callable[..., Any]] = []

    def graph_break(self, msg: str = "") -> None:
        """Do nothing, as the real one does outside of compiled code."""

    def disable(self, fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a function of torch's own as it is: there is nothing yet that would compile it."""
        if kwargs.get("wrapping", True) or fn is None:
            return self._import().disable(fn, *args, **kwargs)
        self._marked.append(fn)
        return fn

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # those that look through all modules ask
            raise AttributeError(name)
        return getattr(self._import(), name)

    def _import(self) -> ModuleType:
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME], torch._dynamo
        real = importlib.import_module(NAME)
        for function in self._marked:
            vars(function).pop("__dynamo_disable", None)  # torch then marks it for the compiler
        vars(self).update(vars(real))  # for whoever holds this stand-in
        return real


def put_off_dynamo() -> None:
    """Let the stand-in take the place of torch._dynamo, unless that is there already."""
    if NAME not in sys.modules:
        sys.modules[NAME] = torch._dynamo = LateDynamo()
