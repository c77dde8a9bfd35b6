"""Estimates the memory of a training step, and the largest batch that fits, for ``--dry-run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from base.data.batch import cut, tensors_in
from base.distributed.shard import local_part
from base.errors import TrainingError
from base.run.micro_batch import saved_bytes
from base.system.resources import UNLIMITED, free_memory
from base.training.trials import trial

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

MB = 2**20


class Estimate(NamedTuple):
    """The memory of a step in bytes, linear in the number of samples.

    Args:
        model: parameters, buffers and their moving averages.
        batch: bytes of one sample.
        fixed: activations that do not depend on the number of samples.
        activations: further ones for each sample; None if the batch cannot be cut.
        thawed: gradients and optimizer state to come for parameters that are frozen for a time.
    """

    n_samples: int
    model: int
    gradients: int
    optimizer: int
    batch: float
    fixed: float
    activations: float | None
    thawed: int = 0

    def total(self, n_samples: int) -> float:
        """Return the bytes of a step with this many samples."""
        return self.model + self.optimizer + self._added_by(n_samples)

    def largest(self, free: int) -> int:
        """Return how many samples fit into free memory, beside the model and the optimizer."""
        each = self._added_by(1) - self._added_by(0)
        return max(0, int((free - self._added_by(0)) / max(each, 1)))

    def _added_by(self, n_samples: int) -> float:
        each = self.batch + (self.activations or 0.0)
        return self.gradients + self.thawed + self.fixed + n_samples * each

    def text(self, free: int) -> str:
        """Return the estimate as one line; ``free`` is the free memory in bytes."""
        if not self.thawed:
            return self._text(free)
        text = self._text(free).replace("that fits", "that may fit")
        return (
            f"{text}; `unfrozen later` are gradients and optimizer state of the parameters that "
            "`freeze:` excludes for a time. The activations are those while they are frozen; "
            "training them keeps more, which is not known yet: leave room for it"
        )

    def _text(self, free: int) -> str:
        n = self.n_samples
        activations = self.fixed + n * (self.activations or 0.0)
        kinds = {
            "model": self.model,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "batch": n * self.batch,
            "activations": activations,
            **({"unfrozen later": self.thawed} if self.thawed else {}),
        }
        parts = ", ".join(f"{kind} {_mb(value)}" for kind, value in kinds.items())
        text = f"about {_mb(self.total(n))} MB with batch {n:,} ({parts})"
        if self.activations is None:
            return f"{text}; the batch cannot be cut, so other sizes are unknown"
        if self.activations == 0.0:
            return f"{text}; larger batches take little more, as memory.micro_batch splits them"
        if free == UNLIMITED:
            return text
        largest = self.largest(free)
        rounding = 10 ** max(0, len(str(largest)) - 2)
        fits = f"about {largest // rounding * rounding:,}"
        return f"{text}; the largest batch that fits {_mb(free)} MB free: {fits}"


def estimate_memory(trainer: BaseTrainer, batch: Any) -> Estimate:
    """Measure steps on a batch and on half of it; restore the whole state.

    Call it after the first step, when optimizers have their state. On the CPU it counts the
    tensors that autograd keeps, without the temporary memory of a layer.
    """
    n_samples, micro_batch = trainer.window.count(batch), trainer.window.micro_batch
    trainable = [local_part(p).nbytes for p in trainer.model.parameters() if p.requires_grad]
    trainer.window.micro_batch = None
    try:
        fixed, each = _measure_activations(trainer, batch, n_samples, sum(trainable))
    finally:
        trainer.window.micro_batch = micro_batch
    if micro_batch is not None and each is not None:  # one part is in memory at a time
        fixed, each = fixed + each * min(micro_batch, n_samples), 0.0

    states = [state for one in trainer.optimizers.values() for state in one.state.values()]
    averages = [] if trainer.ema is None else list(tensors_in(trainer.ema.state_dict()))
    owned = (*trainer.model.parameters(), *trainer.model.buffers(), *averages)
    steps_in_backward = trainer.config["memory"]["optimizer_in_backward"]
    return Estimate(
        n_samples=n_samples,
        model=_bytes(owned),
        gradients=max(trainable, default=0) if steps_in_backward else sum(trainable),
        optimizer=_bytes(
            value for value in tensors_in(states) if value.device.type == trainer.device.type
        ),
        batch=_bytes(tensors_in(batch)) / max(n_samples, 1),
        fixed=fixed,
        activations=each,
        thawed=_thawed_bytes(trainer, trainable, steps_in_backward),
    )


def _thawed_bytes(trainer: BaseTrainer, trainable: list[int], steps_in_backward: bool) -> int:
    """Return the bytes of gradients and optimizer state of parameters that are trained later.

    Their state is as large, relative to the parameter, as that of the others in their optimizer.
    """
    later = trainer.training_state.freezing.frozen_until
    named = dict(trainer.model.named_parameters())
    frozen = {id(named[name]) for name in later if not named[name].requires_grad}
    sizes, state, ratio = [], 0.0, 0.0
    for optimizer in trainer.optimizers.values():
        with_state = [p for p in optimizer.state if isinstance(p, torch.Tensor)]
        if n_bytes := sum(local_part(p).nbytes for p in with_state):
            kept = tensors_in(list(optimizer.state.values()))
            ratio = _bytes(t for t in kept if t.device.type == trainer.device.type) / n_bytes
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        own = [local_part(p).nbytes for p in parameters if id(p) in frozen]
        sizes += own
        state += ratio * sum(own)
    if steps_in_backward:
        gradients = max(0, max(sizes, default=0) - max(trainable, default=0))
    else:
        gradients = sum(sizes)
    return gradients + round(state)


def free_bytes(device: torch.device) -> int:
    """Return the bytes of free memory on the device, with those that torch holds in reserve."""
    if device.type != "cuda":
        return free_memory()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _measure_activations(
    trainer: BaseTrainer, batch: Any, n_samples: int, gradients: int
) -> tuple[float, float | None]:
    """Return the fixed bytes of activations and those per sample; (all, None) without a cut."""

    def measure(part: Any) -> int:
        if trainer.device.type != "cuda":
            return saved_bytes(trainer, part)
        return max(0, _allocated_bytes(trainer, part) - gradients)

    whole = measure(batch)
    # Half of it may be one sample, on which BatchNorm cannot be trained, or on some ranks only.
    if n_samples < 4 or trainer.world.is_sharded:
        return 0.0, whole / max(n_samples, 1)
    try:
        half = measure(cut(batch, 0, n_samples // 2, n_samples))
    except (TrainingError, RuntimeError):  # the model may need one size of batch
        return whole, None
    each = max(0.0, (whole - half) / (n_samples - n_samples // 2))
    return whole - each * n_samples, each


def _allocated_bytes(trainer: BaseTrainer, batch: Any) -> int:
    with trial(trainer.training_state, trainer):
        before = torch.cuda.memory_allocated(trainer.device)
        torch.cuda.reset_peak_memory_stats(trainer.device)
        trainer.try_step(batch)
        return torch.cuda.max_memory_allocated(trainer.device) - before


def _bytes(tensors: Any) -> int:
    """Return the bytes of tensors on this process; count a shared storage once."""
    local = map(local_part, tensors)
    return sum({t.untyped_storage().data_ptr(): t.nbytes for t in local}.values())


def _mb(n_bytes: float) -> str:
    return f"{n_bytes / MB:,.0f}" if n_bytes >= 10 * MB else f"{n_bytes / MB:.2g}"
