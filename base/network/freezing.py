"""The ``freeze:`` rules of a config, which exclude parameters from training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from base.config.durations import RunLength, parse_duration
from base.network.patterns import ParameterNames


class Freezing:
    """Sets ``requires_grad`` by rules ``{match, until}``. The last matching rule wins.

    The result depends only on the step, so there is no state to restore. Norm layers whose
    parameters are all frozen stay in evaluation mode, which keeps their running statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Sequence[Mapping[str, Any]],
        length: RunLength,
    ) -> None:
        """Freeze the parameters that are never trained.

        Raises:
            NoMatch: a rule matches no parameter.
        """
        self.model = model
        parameters = dict(model.named_parameters())
        names = ParameterNames(model)
        rule_of = {name: rule for rule in rules for name in names.matching(rule["match"])}
        self.frozen_until: dict[str, str] = {}
        self._thawed: list[tuple[nn.Parameter, int]] = []
        for name, rule in rule_of.items():
            if rule["until"] is None:
                parameters[name].requires_grad_(False)
            else:
                self.frozen_until[name] = rule["until"]
                step = parse_duration(rule["until"]).in_steps(length)
                self._thawed.append((parameters[name], step))
        self._first_steps = {id(parameter): step for parameter, step in self._thawed}
        self._change_steps = {step for _, step in self._thawed}
        self.is_used = bool(self._thawed)
        """Whether a step changes what is frozen."""
        self._kept_in_eval: list[nn.Module] = []

    def begin_epoch(self, step: int) -> None:
        """Put the model in training mode, except for frozen norm layers."""
        self.model.train()
        self._apply(step)

    def after_step(self, step: int) -> None:
        """Unfreeze the parameters that are due after this step."""
        if step in self._change_steps:
            self._apply(step)

    def is_trained(self, parameter: nn.Parameter, step: int) -> bool:
        """Return whether the step after this many steps trains a parameter."""
        first = self._first_steps.get(id(parameter))
        return parameter.requires_grad if first is None else step >= first

    def _apply(self, step: int) -> None:
        for parameter, first_step in self._thawed:
            parameter.requires_grad_(step >= first_step)
        for module in self._kept_in_eval:
            module.train()
        self._kept_in_eval = [module for module in frozen_norms(self.model) if module.training]
        for module in self._kept_in_eval:
            module.eval()


def last_layers(names: Iterable[str], n: int = 2) -> list[str]:
    """Return the last layers that own some parameters, which are named in the model's order."""
    return list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))[-n:]


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Return the norm layers with running statistics whose parameters are all frozen.

    For a layer without parameters, its parent's parameters decide.
    """
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            parent = model.get_submodule(name.rpartition(".")[0])
            parameters = list(module.parameters()) or list(parent.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                found.append(module)
    return found
