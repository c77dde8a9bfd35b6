"""What the first batch decides: into how small parts each batch must be cut."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from base.data.batch import cut, tensors_in, to_device
from base.errors import TrainingError
from base.run.first_step import reads_put_back
from base.system.resources import UNLIMITED, free_memory
from base.training.accumulation import warn_of_batch_norm
from base.training.trials import SavedBytes, trial

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


def settle(trainer: BaseTrainer) -> bool:
    """Try the first batch for ``micro_batch: auto``; return whether the config now says more.

    The number that ``micro_batch: auto`` finds takes its place in the config, so that a run that
    goes on has the same. Weights, buffers and random streams are as before.

    Raises:
        TrainingError: not even one sample fits.
    """
    memory = trainer.config["memory"]
    is_auto = bool(memory["micro_batch"] == "auto")
    if is_auto:
        trainer.window.micro_batch = None
        with trainer.epoch_start.tried(), reads_put_back(trainer):
            batch = to_device(next(trainer.train_loader.batches(0, 1)), trainer.device)
            trainer.epoch_start.begin()
            size = find_micro_batch(trainer, batch)
            note = f"micro_batch {size} (auto; to keep it, memory.micro_batch={size})"
            trainer.experiment.memory_notes.append(note)
            trainer.config.resolve("memory", "micro_batch", value=size)
        trainer.window.micro_batch = memory["micro_batch"]
    if trainer.window.micro_batch is not None:
        batch_size = getattr(trainer.train_loader, "batch_size", None)
        warn_of_batch_norm(trainer.model, trainer.window.micro_batch, batch_size)
    return is_auto


def find_micro_batch(trainer: BaseTrainer, batch: Any) -> int:
    """Return how many samples at once fit: all of the batch, a half, a quarter, ...

    Raises:
        TrainingError: not even one does.
    """
    n_samples = size = trainer.window.count(batch)
    fits = fits_on_cpu if trainer.device.type == "cpu" else fits_on_device
    while not fits(trainer, batch, size, n_samples):
        if size == 1:
            text = "memory.micro_batch: not even one sample fits into memory; look at the table of"
            raise TrainingError(f"{text} docs/memory.md for what else saves some")
        size = (size + 1) // 2
    while 2 < size < n_samples and n_samples % size == 1:
        size -= 1  # BatchNorm cannot be trained on a last part of one sample
    return size


def fits_on_cpu(trainer: BaseTrainer, batch: Any, size: int, n_samples: int) -> bool:
    """Tell from a few samples: there nothing is refused, the process is killed."""
    return estimated_bytes(trainer, batch, size, n_samples) <= free_memory()


def fits_on_device(trainer: BaseTrainer, batch: Any, size: int, n_samples: int) -> bool:
    """Tell whether a step goes through, beside what an optimizer keeps from its first step on."""
    is_enough = True
    trained = trainer.experiment.trained.values()
    try:
        later = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]
        with trial(trainer.state, trainer):
            trainer.try_step(cut(batch, 0, size, n_samples))
        del later
    except torch.OutOfMemoryError:
        is_enough = False
    if not is_enough:  # outside of the clause, whose error holds all that was computed
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
    return is_enough


def estimated_bytes(trainer: BaseTrainer, batch: Any, size: int, n_samples: int) -> float:
    """Return what a step with so many samples needs, from what autograd keeps of two and four."""
    parameters = list(trainer.model.parameters())
    fixed = sum(3 * p.nbytes for p in parameters if p.requires_grad)  # gradient, Adam's state
    counts = [min(count, n_samples) for count in (2, 4)]
    found = [saved_bytes(trainer, cut(batch, 0, count, n_samples)) for count in counts]
    slope = (found[1] - found[0]) / max(counts[1] - counts[0], 1)
    return fixed + found[0] + slope * (size - counts[0])


def saved_bytes(trainer: BaseTrainer, batch: Any) -> int:
    """Return the bytes that the activations of a step on this batch take, and their gradients.

    Autograd keeps the activations. On the way back one gradient comes into a layer and another
    goes out of it, each taken to be as large as the largest activation.
    """
    there = [*trainer.model.parameters(), *tensors_in(batch)]
    saved = SavedBytes(there)
    with trial(trainer.state, trainer), saved:
        trainer.try_step(batch)
    return saved.peak + 2 * saved.largest


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
