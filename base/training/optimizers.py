"""Optimizers from their config sections, and the learning rates that they have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer

from base.errors import ConfigError, Problem, listed
from base.names.construction import build
from base.names.signatures import needed_arguments
from base.training.optimizer_memory import choose_fused
from base.training.parameter_groups import Section, parameter_groups


def build_optimizer(
    model: nn.Module,
    section: Section,
    where: str = "optimizer",
    later: Collection[str] = (),
    fused: bool | str = False,
) -> Optimizer:
    """Make the optimizer of a config section over the parameters that it claims.

    Args:
        later: names of parameters that are frozen now and trained later.
        fused: whether to take torch's fused form; ``auto`` where there is one.
    """
    groups = parameter_groups(model, section, where, later)
    for group in groups:
        _check_group(section, group, where)
    if fused == "auto" and any(getattr(module, "sparse", False) for module in model.modules()):
        fused = False  # an embedding whose gradients are sparse

    def construct(section: Section) -> Optimizer:
        return _construct(section, [dict(group) for group in groups], where)

    return choose_fused(construct, section, fused, where)


def _check_group(section: Section, group: Section, where: str) -> None:
    """Let the optimizer judge a group's own arguments: by itself it looks at its ``args`` only."""
    own = [key for key in group if key != "params"]
    if own:
        args = {**section["args"], **{key: group[key] for key in own}}
        place = f"{where}.param_groups ({listed([name for name, _ in group['params']])})"
        taken = _construct({**section, "args": args}, group["params"], place).defaults
        if ignored := [key for key in own if key not in taken]:
            text = f"{section['type']} takes {listed(ignored)} for all parameters alike, in `args`"
            raise ConfigError([Problem(place, text)])


def _construct(section: Section, params: Any, where: str) -> Optimizer:
    try:
        optimizer: Optimizer = build("optimizer", section, where=where, params=params)
    except (RuntimeError, IndexError) as error:  # fused and foreach together; `betas: [0.9]`
        text = f"{section['type']} cannot be built: {type(error).__name__}: {error}"
        raise ConfigError([Problem(where, text)]) from error
    needed = [] if isinstance(optimizer, LBFGS) else needed_arguments(optimizer.step)
    if needed:
        text = f"the step of {section['type']} needs {', '.join(needed)}, and is called without"
        text += " arguments: only LBFGS computes the losses again"
        raise ConfigError([Problem(where, text)])
    return optimizer


def learning_rates(optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
    """Return the rate of each parameter group: ``lr``, or ``lr/<network>/<group>`` of several."""
    rates = {}
    for name, optimizer in optimizers.items():
        for number, group in enumerate(optimizer.param_groups):
            parts = ["lr", name] if len(optimizers) > 1 else ["lr"]
            if len(optimizer.param_groups) > 1:
                parts.append(str(number))
            rates["/".join(parts)] = float(group["lr"])
    return rates
