"""Distillation: a small network learns from a large one that is already trained."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from base import (
    BaseTrainer,
    ConfigError,
    Experiment,
    WeightedLoss,
    inputs_of,
    mark_terms,
    nearest,
    scale_loss,
    sections_with_weights,
    target_of,
    terms_of,
    with_total,
)


class DistillationTrainer(BaseTrainer):
    """Distillation (Hinton et al., 2015): the student also learns the softened teacher outputs.

    The model is ``Networks`` of a ``student`` and a ``teacher``, the latter with ``weights:``, and
    ``freeze: ["teacher.*"]``. The teacher stays in evaluation mode and needs no gradients. Both
    return scores (batch, n_classes, ...). ``loss:`` is the loss of the student without a teacher;
    metrics compare the outputs of the student. Checkpoints hold both networks.

    Args:
        temperature: divides the scores of both networks in the soft loss.
        alpha: the share of the soft loss in the total loss.
    """

    def __init__(
        self, experiment: Experiment, temperature: float = 4.0, alpha: float = 0.9
    ) -> None:
        super().__init__(experiment)
        self.temperature, self.alpha = temperature, alpha
        self._check()
        self.student = self.model.get_submodule("student")
        self.teacher = self.model.get_submodule("teacher")
        learning = experiment.sampler_state
        self.soft_loss = WeightedLoss(
            "soft",
            functools.partial(soft_cross_entropy, temperature=temperature),
            rules=self.config["batch"],
            needs_sample_losses=learning is not None and learning.wants_losses,
        )

    def forward(self, batch: Any) -> dict[str, Any]:
        args, kwargs = inputs_of(batch, self.config["batch"])
        self.teacher.eval()  # each epoch begins with `model.train()`
        with torch.no_grad():
            teacher = self.teacher(*args, **kwargs)
        return {"student": self.student(*args, **kwargs), "teacher": teacher}

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        target = target_of(batch, self.config["batch"])
        scores = outputs["student"]
        parts = {name: loss(scores, target, batch=batch) for name, loss in self.losses.items()}
        hard = with_total(parts, self.losses)["loss"]
        soft = self.soft_loss(scores.float(), outputs["teacher"].float(), batch=batch)
        # Each term keeps its denominator, such as the sum of the class weights.
        soft_share = scale_loss(soft, self.alpha)
        weighed = {
            f"hard/{name}": scale_loss(term, 1 - self.alpha)
            for name, term in (terms_of(hard) or {"": hard}).items()
        }
        loss = mark_terms(sum(weighed.values(), start=soft_share), {"soft": soft_share, **weighed})
        return {"loss": loss, "soft": soft, "hard": hard}

    def predict(self, outputs: Any) -> Any:
        return outputs["student"]

    def _check(self) -> None:
        """Check that there are a student and a frozen teacher, and that arguments are in range."""
        known = [name for name, _ in self.model.named_children()]
        for name in ("student", "teacher"):
            if name not in known:
                text = f"there is no {name!r}{nearest(name, known)}; use Networks with both"
                raise self._config_error("model", text=text)
        if not {"", "teacher"} & dict(sections_with_weights(self.config["model"])).keys():
            text = "the teacher must be trained: set its `weights:`, a file or a run"
            raise self._config_error("model", "args", "teacher", text=text)
        trained = {p for one in self.steppers.values() for p in one.parameters}
        if trained & set(self.model.get_submodule("teacher").parameters()):
            text = 'an optimizer has parameters of the teacher; add "teacher.*", without `until`'
            raise self._config_error("freeze", text=text)
        if self.temperature <= 0 or not 0 <= self.alpha <= 1:
            text = "temperature must be above 0, and alpha from 0 to 1"
            raise self._config_error("trainer", "args", text=text)

    def _config_error(self, *keys: str, text: str) -> ConfigError:
        return ConfigError([self.config.problem(keys, text)])


def soft_cross_entropy(
    scores: Tensor, teacher_scores: Tensor, temperature: float, reduction: str = "mean"
) -> Tensor:
    """Return the KL divergence of the student's softened outputs from the teacher's, times T ** 2.

    Softening by T makes gradients T squared times smaller; the factor keeps the shares of the two
    losses when T changes (Hinton et al., 2015, section 2). The value is 0 if both agree. Dimension
    1 holds the classes.
    """
    ours = F.log_softmax(scores / temperature, dim=1)
    theirs = F.log_softmax(teacher_scores / temperature, dim=1)
    divergence = (theirs.exp() * (theirs - ours)).sum(dim=1)
    return temperature**2 * (divergence if reduction == "none" else divergence.mean())
