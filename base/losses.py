"""Losses from a config: a function, a module class or a module instance, each with a weight."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from base.errors import ConfigError, Problem, TrainingError
from base.names import build as build_named


@dataclass
class WeightedLoss:
    """One named loss; calling it gives the loss itself, ``weight`` is its share of the sum."""

    name: str
    function: Callable[..., Any]
    weight: float = 1.0

    def __call__(self, output: Any, target: Any, *more: Any) -> Tensor:
        """Return the unweighted loss, a tensor with one number; a trainer may give it more."""
        value = self.function(output, target, *more)
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise TrainingError(f"loss {self.name!r} must give one number as a tensor, not {found}")
        return value.reshape(())

    def to(self, device: torch.device | str) -> WeightedLoss:
        """Move the loss's own tensors, such as class weights."""
        if isinstance(self.function, nn.Module):
            self.function.to(device)
        elif isinstance(self.function, functools.partial):
            keywords = {
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in self.function.keywords.items()
            }
            self.function = functools.partial(self.function.func, **keywords)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return the buffers and parameters of a loss that is a module."""
        return self.function.state_dict() if isinstance(self.function, nn.Module) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if isinstance(self.function, nn.Module):
            self.function.load_state_dict(state)


def build_losses(
    sections: Sequence[Mapping[str, Any]], build: Callable[..., Any] = build_named
) -> dict[str, WeightedLoss]:
    """Build the losses of the config's ``loss`` list (normal form), by name.

    Raises:
        ConfigError: a name is taken or unknown, or arguments do not fit; all faults together.
    """
    losses: dict[str, WeightedLoss] = {}
    problems: list[Problem] = []
    for index, section in enumerate(sections):
        name, where = section["name"], f"loss[{index}]"
        if name in losses or (name == "loss" and len(sections) > 1):
            holder = "another loss" if name in losses else "the sum of all"
            problems.append(Problem(f"{where}.name", f"{name!r} is taken by {holder}"))
            continue
        try:
            function = build("loss", section, where=where)
        except ConfigError as error:
            problems += error.problems
            continue
        if not callable(function):
            text = f"{section['type']} cannot be called with (output, target): it is no loss"
            problems.append(Problem(where, text))
        losses[name] = WeightedLoss(name, function, section["weight"])
    if problems:
        raise ConfigError(problems)
    return losses
