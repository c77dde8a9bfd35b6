"""What is not trained, and until when: the ``freeze:`` rules of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from base.config.durations import parse_duration
from base.network.patterns import match_parameters


class Freezing:
    """Switches ``requires_grad`` by rules ``{match, until}``; of several, the last one counts.

    What it does is a function of the step alone, so that a resume has nothing to restore. Norm
    layers all of whose parameters are frozen stay in evaluation: their statistics too are kept.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Sequence[Mapping[str, Any]],
        steps_per_epoch: int,
        total_steps: int,
    ) -> None:
        """Freeze for good what is never trained; what comes later is left for an optimizer to take.

        Raises:
            NoMatch: a rule matches no parameter.
        """
        self.model = model
        parameters = dict(model.named_parameters())
        rule_of = {name: rule for rule in rules for name in match_parameters(model, rule["match"])}
        self.until: dict[str, str] = {}
        self._begins: list[tuple[nn.Parameter, int]] = []
        for name, rule in rule_of.items():
            if rule["until"] is None:
                parameters[name].requires_grad_(False)
            else:
                self.until[name] = rule["until"]
                step = parse_duration(rule["until"]).in_steps(steps_per_epoch, total_steps)
                self._begins.append((parameters[name], step))
        self._changes = {step for _, step in self._begins}
        self._held: list[nn.Module] = []

    def begin_epoch(self, step: int) -> None:
        """Put the model in training mode, but for what is frozen."""
        self.model.train()
        self._apply(step)

    def after_step(self, step: int) -> None:
        """Follow one step of the run."""
        if step in self._changes:
            self._apply(step)

    def _apply(self, step: int) -> None:
        for parameter, begin in self._begins:
            parameter.requires_grad_(step >= begin)
        for module in self._held:
            module.train()
        self._held = [module for module in frozen_norms(self.model) if module.training]
        for module in self._held:
            module.eval()


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """Return the layers with running statistics whose parameters are all frozen.

    One without parameters of its own goes with those of the module around it.
    """
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            around = model.get_submodule(name.rpartition(".")[0])
            parameters = list(module.parameters()) or list(around.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                found.append(module)
    return found
