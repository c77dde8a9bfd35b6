"""What the first batch decides: into how small parts each batch must be cut."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import torch

from base.data.batch import cut, tensors_in, to_device
from base.errors import TrainingError
from base.run.first_step import restore_weight_reads
from base.system.resources import free_memory
from base.training.accumulation import warn_of_batch_norm
from base.training.trials import SavedBytes, trial

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


def resolve_micro_batch(trainer: BaseTrainer) -> bool:
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
        with trainer.epoch_start.tried(), restore_weight_reads(trainer):
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
