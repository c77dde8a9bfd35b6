"""The arguments that a loss or metric takes from a batch, as its signature says."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from inspect import Parameter
from types import MappingProxyType
from typing import Any

from torch import nn

from base.data.batch import IDS, WEIGHT, Rules, Targets
from base.errors import ConfigError, Problem

BATCH = "batch"  # a parameter of this name receives the whole batch
MAIN = "target"  # of several targets, the one of this name is the second argument


@dataclass(frozen=True)
class DataParameters:
    """The parameters of a loss or metric that receive data.

    Args:
        first: the name of the first parameter, which receives the output.
        second: the name of the second parameter, which receives the target by position; empty for
            ``*args``, None if there is no second parameter.
        third_on: the names of the further positional parameters.
        needed: the names of the other parameters, and whether each is required.
    """

    first: str = ""
    second: str | None = ""
    third_on: tuple[str, ...] = ()
    needed: Mapping[str, bool] = field(default_factory=dict)

    @classmethod
    def from_function(cls, function: Callable[..., Any]) -> DataParameters:
        """Read the signature of a function; torch's functions take required arguments only.

        The options of torch's losses come from the config: their ``weight`` is a weight of each
        class, not of each sample. Arguments under ``args`` in the config never come from a batch.
        """
        called: Any = function.forward if isinstance(function, nn.Module) else function
        try:
            parameters = [*inspect.signature(called).parameters.values()]
        except (TypeError, ValueError):  # a built-in function without a signature
            return cls()
        by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        names = [each.name for each in parameters if each.kind in by_position]
        bound = called.keywords if isinstance(called, functools.partial) else {}
        by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        needed = {
            each.name: each.default is Parameter.empty
            for each in parameters
            if each.kind in by_name and each.name not in {*names[:2], *bound}
        }
        if _is_torchs(called):
            needed = {name: True for name, is_needed in needed.items() if is_needed}
        takes_any = any(each.kind is Parameter.VAR_POSITIONAL for each in parameters)
        second = names[1] if len(names) > 1 else "" if takes_any else None
        return cls(names[0] if names else "", second, tuple(names[2:]), needed)

    @functools.cached_property
    def is_plain(self) -> bool:
        """Whether it takes only output and target of a batch with one target."""
        asks_for_more = not {BATCH, IDS, WEIGHT}.isdisjoint((self.second, *self.needed))
        return not (self.second is None or asks_for_more or any(self.needed.values()))

    @property
    def is_by_name_only(self) -> bool:
        """Whether it takes no positional arguments, as ``def loss(**parts)``."""
        return not self.first and self.second is None

    def named(self, more: tuple[Any, ...]) -> dict[str, Any]:
        """Return the positional arguments after the second, by name."""
        return dict(zip(self.third_on, more, strict=False))

    def bind(
        self,
        target: Any,
        targets: Any,
        batch: Any,
        given: Collection[str] = (),
        who: tuple[str, str] | None = None,
        extras: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional arguments after the output, and the keyword arguments.

        Args:
            target: the part that the config selects, or else ``targets``.
            targets: the target, or several by name.
            given: the names of the arguments that the caller passes.
            who: the place of the function in the config and its name, for errors; None omits
                missing arguments.
            extras: the ids and weights of the samples, for parameters of these names.

        Raises:
            ConfigError: a required argument is missing.
        """
        offered = targets if isinstance(targets, Targets) else {}
        if self.is_plain and not offered:
            return (target,), {}  # the common case
        free = [name for name in self.needed if name not in given]
        named = {**extras, **offered}
        keywords = {name: named[name] for name in free if name in named}
        if BATCH in free and batch is not None:
            keywords[BATCH] = batch
        missing = [name for name in free if self.needed[name] and name not in keywords]
        after = self._second(target, targets, batch, given)
        if self.second is not None and not after:
            missing.insert(0, self.second or MAIN)
        if missing and who is not None:
            raise ConfigError([Problem(who[0], _missing(who[1], missing, targets, batch))])
        return after, keywords

    def _second(
        self, target: Any, targets: Any, batch: Any, given: Collection[str]
    ) -> tuple[Any, ...]:
        if self.second is None:
            return ()
        if target is not targets:
            return (target,)
        if self.second == BATCH and batch is not None:
            return (batch,)
        if not isinstance(targets, Targets):
            return (target,)
        taken = {*self.needed, *given}
        left = Targets({name: it for name, it in targets.items() if name not in taken})
        for name in (self.second, MAIN):
            if name in left:
                return (left[name],)
        if len(left) < len(targets):  # the function takes the other targets by name
            return tuple(left.values())[:1]
        return (left,) if len(left) > 1 else tuple(left.values())


def item_compared(takes: DataParameters, target: str | int | None, rules: Rules) -> Any:
    """Return the key or position of the batch item that is compared with the output.

    Args:
        target: the ``target`` of the section in the config.
        rules: the config's ``batch:`` section.

    Returns:
        None for the default target of a batch, or for several targets at once.
    """
    named = rules["target"]
    if not isinstance(named, Mapping):
        return named if target is None else target
    if target is not None:
        return named.get(target, target)
    after, _ = takes.bind(items := Targets(named), items, None)
    return after[0] if after and not isinstance(after[0], Targets) else None


def takes_batch(function: Callable[..., Any]) -> bool:
    """Return whether a function takes a second argument, or ``batch``."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    needed = [
        each
        for each in parameters.values()
        if each.kind in by_position and (each.default is Parameter.empty or each.name == BATCH)
    ]
    return len(needed) > 1


def _is_torchs(called: Any) -> bool:
    function = called.func if isinstance(called, functools.partial) else called
    return (getattr(function, "__module__", None) or "").partition(".")[0] == "torch"


def _missing(name: str, missing: list[str], targets: Any, batch: Any) -> str:
    """Describe the missing arguments, the available items, and where to name them."""
    text = f"{name} is missing the argument {', '.join(map(repr, missing))}"
    if isinstance(targets, Targets):
        text += f"; the targets are {', '.join(targets)}"
    if isinstance(batch, Mapping):
        text += f"; the batch has {', '.join(map(repr, batch))}"
    elif isinstance(batch, list | tuple):
        text += f"; the batch has {len(batch)} items, 0 to {len(batch) - 1}"
    elif batch is not None:
        text += f"; the batch is one {type(batch).__name__}"
    names = [*targets] if isinstance(targets, Targets) else [MAIN]
    items = ", ".join(f"{each}: ..." for each in dict.fromkeys((*names, *missing)))
    return f"{text}: name the items, `batch: {{target: {{{items}}}}}`, or pass it under `args`"
