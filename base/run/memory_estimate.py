"""Estimates the memory of a training step, and the largest batch that fits, for ``--dry-run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from base.data.batch import cut, tensors_in
from base.errors import TrainingError
from base.run.micro_batch import saved_bytes
from base.system.resources import UNLIMITED, free_memory
from base.training.trials import trial

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

MB = 2**20


class Estimate(NamedTuple):
    """What a step takes, in bytes: linear in the number of samples, as most networks are.

    Args:
        model: parameters, buffers and averages.
        batch: of one sample.
        activations: of one sample, besides ``fixed`` ones; None where a batch could not be cut.
    """

    n_samples: int
    model: int
    gradients: int
    optimizer: int
    batch: float
    fixed: float
    activations: float | None

    def total(self, n_samples: int) -> float:
        """Return what a step with so many samples takes."""
        return self.model + self.optimizer + self._comes(n_samples)

    def largest(self, free: int) -> int:
        """Return how many samples fit beside the model and the optimizer, which are there."""
        each = self._comes(1) - self._comes(0)
        return max(0, int((free - self._comes(0)) / max(each, 1)))

    def _comes(self, n_samples: int) -> float:
        each = self.batch + (self.activations or 0.0)
        return self.gradients + self.fixed + n_samples * each

    def text(self, free: int) -> str:
        """Say it in one line; ``free`` are the bytes that are left."""
        n = self.n_samples
        activations = self.fixed + n * (self.activations or 0.0)
        kinds = {
            "model": self.model,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "batch": n * self.batch,
            "activations": activations,
        }
        parts = ", ".join(f"{kind} {_mb(value)}" for kind, value in kinds.items())
        text = f"about {_mb(self.total(n))} MB with batch {n:,} ({parts})"
        if self.activations is None:
            return f"{text}; the batch cannot be cut to see what others would take"
        if self.activations == 0.0:
            return f"{text}; larger ones take little more, as memory.micro_batch cuts them"
        if free == UNLIMITED:
            return text
        largest = self.largest(free)
        rounding = 10 ** max(0, len(str(largest)) - 2)
        fits = f"about {largest // rounding * rounding:,}"
        return f"{text}; the largest batch that fits {_mb(free)} MB free: {fits}"


def estimate_memory(trainer: BaseTrainer, batch: Any) -> Estimate:
    """Measure steps on a batch and on half of it, of which nothing is left.

    An optimizer shows its state after its first step. On the CPU counted is what autograd keeps,
    without what a layer needs for a moment, or computes again.
    """
    n_samples, micro_batch = trainer.window.count(batch), trainer.window.micro_batch
    trainable = [p.nbytes for p in trainer.model.parameters() if p.requires_grad]
    trainer.window.micro_batch = None
    try:
        fixed, each = _line(trainer, batch, n_samples, sum(trainable))
    finally:
        trainer.window.micro_batch = micro_batch
    if micro_batch is not None and each is not None:  # only a part of them is there at a time
        fixed, each = fixed + each * min(micro_batch, n_samples), 0.0

    states = [state for one in trainer.optimizers.values() for state in one.state.values()]
    averages = [] if trainer.ema is None else list(tensors_in(trainer.ema.state_dict()))
    owned = (*trainer.model.parameters(), *trainer.model.buffers(), *averages)
    uses_at_once = trainer.config["memory"]["optimizer_in_backward"]
    return Estimate(
        n_samples=n_samples,
        model=_bytes(owned),
        gradients=max(trainable, default=0) if uses_at_once else sum(trainable),
        optimizer=_bytes(value for value in tensors_in(states) if _is_on(value, trainer.device)),
        batch=_bytes(tensors_in(batch)) / max(n_samples, 1),
        fixed=fixed,
        activations=each,
    )


def free_bytes(device: torch.device) -> int:
    """Return the bytes that a step may still take on the device."""
    if device.type != "cuda":
        return free_memory()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _line(
    trainer: BaseTrainer, batch: Any, n_samples: int, gradients: int
) -> tuple[float, float | None]:
    """Return what activations take with no sample, and for each; (all, None) if not to be cut."""

    def measure(part: Any) -> int:
        if trainer.device.type != "cuda":
            return saved_bytes(trainer, part)
        return max(0, _allocated_bytes(trainer, part) - gradients)

    whole = measure(batch)
    if n_samples < 4:  # BatchNorm takes no single sample
        return 0.0, whole / max(n_samples, 1)
    try:
        half = measure(cut(batch, 0, n_samples // 2, n_samples))
    except (TrainingError, RuntimeError):  # a model may be made for one size of batch
        return whole, None
    each = max(0.0, (whole - half) / (n_samples - n_samples // 2))
    return whole - each * n_samples, each


def _allocated_bytes(trainer: BaseTrainer, batch: Any) -> int:
    with trial(trainer.state, trainer):
        before = torch.cuda.memory_allocated(trainer.device)
        torch.cuda.reset_peak_memory_stats(trainer.device)
        trainer.try_step(batch)
        return torch.cuda.max_memory_allocated(trainer.device) - before


def _bytes(tensors: Any) -> int:
    """Return the bytes of tensors, each storage once."""
    return sum({t.untyped_storage().data_ptr(): t.nbytes for t in tensors}.values())


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type


def _mb(n_bytes: float) -> str:
    return f"{n_bytes / MB:,.0f}" if n_bytes >= 10 * MB else f"{n_bytes / MB:.2g}"
