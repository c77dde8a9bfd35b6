"""Selects the parts of outputs and targets that losses and metrics compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from typing import Any, TypeVar

from base.errors import ConfigError, Problem, nearest

Built = TypeVar("Built")


@dataclass(frozen=True)
class Selection:
    """Selects the output of a model and the item of a batch that are compared.

    Args:
        where: the place of the section in the config, for errors.
        output: a key of a dict, a field of a named tuple or dataclass, or a position in a tuple or
            list; None selects the whole output.
        target: the same for the target, or else for the batch; None selects the whole target.
    """

    where: str = ""
    output: str | int | None = None
    target: str | int | None = None

    @classmethod
    def from_section(cls, section: Mapping[str, Any], where: str) -> Selection:
        """Read a config section, in which both keys are optional."""
        return cls(where, section.get("output"), section.get("target"))

    @cached_property
    def is_whole(self) -> bool:
        """Whether it selects the whole output and the whole target."""
        return self.output is None and self.target is None

    def __call__(self, output: Any, target: Any, batch: Any = None) -> tuple[Any, Any]:
        """Return the selected output and target.

        Raises:
            ConfigError: there is no such part. It lists the existing parts.
        """
        if self.output is not None:
            output = self._pick("output", self.output, {"output": output})
        return output, self.pick_target(target, batch)

    def pick_target(self, target: Any, batch: Any = None) -> Any:
        """Return the selected target; raise ConfigError if there is no such part."""
        if self.target is None:
            return target
        return self._pick("target", self.target, {"target": target, "batch": batch})

    def _pick(self, key: str, wanted: str | int, places: Mapping[str, Any]) -> Any:
        parts = {name: _parts(value) for name, value in places.items() if value is not None}
        for found in parts.values():
            if wanted in found:
                return found[wanted]
        known = {name: _names(found) for name, found in parts.items()}
        there = "; ".join(
            f"the {name} has {', '.join(known[name])}"
            if known[name]
            else f"the {name} is one {type(places[name]).__name__}"
            for name in parts
        )
        near = nearest(str(wanted), [name for names in known.values() for name in names])
        text = f"there is no {wanted!r}{near} ({there})"
        raise ConfigError([Problem(f"{self.where}.{key}", text)])


def _parts(value: Any) -> dict[Any, Any]:
    """Return the parts of a value by name, and by position from either end."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple)):
        positions = zip(range(-len(value), len(value)), (*value, *value), strict=True)
        return {**dict(positions), **dict(zip(getattr(value, "_fields", ()), value, strict=False))}
    return vars(value) if is_dataclass(value) else {}


def _names(parts: Iterable[Any]) -> list[str]:
    return [str(name) for name in parts if not (isinstance(name, int) and name < 0)]


def build_list(
    kind: str,
    key: str,
    sections: Sequence[Mapping[str, Any]],
    make: Callable[[Mapping[str, Any], str], Built],
) -> dict[str, Built]:
    """Build each section of a config list (normal form), by name.

    Args:
        kind: ``loss`` or ``metric``, for errors.
        key: the place of the list in the config.
        make: builds an object from its section and place. Its ConfigErrors are raised together.
    """
    built: dict[str, Built] = {}
    problems: list[Problem] = []
    for number, section in enumerate(sections):
        name, where = section["name"], f"{key}.{number}"
        try:
            if name in built:
                text = f"{name!r} is taken by another {kind}"
                raise ConfigError([Problem(f"{where}.name", text)])
            built[name] = make(section, where)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return built
