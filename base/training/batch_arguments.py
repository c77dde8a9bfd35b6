"""What of a batch a loss or a metric takes, read once from its signature."""

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

BATCH = "batch"  # a parameter of this name is given the whole batch
MAIN = "target"  # several targets may have one of this name, which is the second argument


@dataclass(frozen=True)
class DataParameters:
    """The parameters of a loss or a metric, by what they are given.

    Args:
        first: the name of the first, which is given the output.
        second: the name of the second, which is given the target by position; empty where it may
            have any, None where there is no second.
        third_on: the names of those that may follow by position.
        needed: the others' names, and whether each has no default.
    """

    first: str = ""
    second: str | None = ""
    third_on: tuple[str, ...] = ()
    needed: Mapping[str, bool] = field(default_factory=dict)

    @classmethod
    def from_function(cls, function: Callable[..., Any]) -> DataParameters:
        """Read the signature; one of torch takes from a batch only what it must be given.

        The options of torch's losses are the config's: ``weight`` is a weight for each class.
        What the config gives as ``args`` is no part of a batch either.
        """
        called: Any = function.forward if isinstance(function, nn.Module) else function
        try:
            parameters = [*inspect.signature(called).parameters.values()]
        except (TypeError, ValueError):  # built in, and silent about it
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
        """Whether output and target are all that a batch with one target has for it."""
        asks_for_more = not {BATCH, IDS, WEIGHT}.isdisjoint((self.second, *self.needed))
        return not (self.second is None or asks_for_more or any(self.needed.values()))

    @property
    def is_by_name_only(self) -> bool:
        """Whether nothing is given by position, as of ``def loss(**parts)``."""
        return not self.first and self.second is None

    def named(self, more: tuple[Any, ...]) -> dict[str, Any]:
        """Return by name what is given by position after the second argument."""
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
        """Return what is given by position after the output, and what by keyword.

        Args:
            target: the part that the config picks; else ``targets``.
            targets: all of them: one, or several by name.
            given: the names of what the caller gives itself.
            who: the place in the config and the name of who takes it, for errors; None leaves out
                what is missing.
            extras: the ids and the weights of the samples, for parameters of these names.

        Raises:
            ConfigError: a parameter without a default is given nothing.
        """
        offered = targets if isinstance(targets, Targets) else {}
        if self.is_plain and not offered:
            return (target,), {}  # the most common by far
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
        if len(left) < len(targets):  # the function knows of several, and takes the others by name
            return tuple(left.values())[:1]
        return (left,) if len(left) > 1 else tuple(left.values())


def item_compared(takes: DataParameters, target: str | int | None, rules: Rules) -> Any:
    """Return the item of a batch, its key or position, that is held against the output.

    Args:
        target: what the config's section names.
        rules: the config's ``batch:`` section.

    Returns:
        None for the target of a batch as it comes, or for several at once.
    """
    named = rules["target"]
    if not isinstance(named, Mapping):
        return named if target is None else target
    if target is not None:
        return named.get(target, target)
    after, _ = takes.bind(items := Targets(named), items, None)
    return after[0] if after and not isinstance(after[0], Targets) else None


def takes_batch(function: Callable[..., Any]) -> bool:
    """Tell whether a function takes more than one argument: a second one, or ``batch``."""
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
    """Say what nobody gives, what there is, and where to name it."""
    text = f"{name} takes {', '.join(map(repr, missing))}, which it is not given"
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
    return f"{text}: name the items, `batch: {{target: {{{items}}}}}`, or give it under `args`"
