"""Finds the micro-batch size for ``memory.micro_batch: auto`` on the first batch."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from base.data.batch import cut, tensors_in, to_device
from base.errors import TrainingError
from base.run.first_step import restore_weight_reads
from base.system.resources import free_memory, is_out_of_memory
from base.system.torch_compat import without_compilation
from base.training.accumulation import warn_of_batch_norm
from base.training.trials import SavedBytes, trial

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


@without_compilation()  # each size would be compiled; eager steps need more memory, if anything
def resolve_micro_batch(trainer: BaseTrainer) -> bool:
    """Replace ``micro_batch: auto`` with the size that fits; return whether the config changed.

    A resumed run reads this size from its config. Weights, buffers and random streams do not
    change. All ranks take the same size.

    Raises:
        TrainingError: one sample does not fit into memory.
    """
    memory = trainer.config["memory"]
    is_auto = bool(memory["micro_batch"] == "auto")
    if is_auto:
        trainer.window.micro_batch = None
        world = trainer.world
        with world.paused(), trainer.epoch_start.tried(), restore_weight_reads(trainer):
            batch = to_device(next(trainer.train_loader.batches(0, 1)), trainer.device)
            trainer.epoch_start.begin()
            found = (find_micro_batch(trainer, batch), trainer.window.count(batch))
        size = size_for_all(world.all_gather(found))
        note = f"micro_batch {size} (auto; to keep it, memory.micro_batch={size})"
        trainer.experiment.memory_notes.append(note)
        trainer.config.resolve("memory", "micro_batch", value=size)
        trainer.window.micro_batch = memory["micro_batch"]
    if trainer.window.micro_batch is not None:
        batch_size = getattr(trainer.train_loader, "batch_size", None)
        batch_size = batch_size and -(-batch_size // trainer.world.size)
        if trainer.world.is_main:  # the others would print the same
            warn_of_batch_norm(trainer.model, trainer.window.micro_batch, batch_size)
    return is_auto


def size_for_all(found: Sequence[tuple[int, int]]) -> int:
    """Return the micro-batch size of all ranks: the smallest one that any of them needs.

    Args:
        found: of each rank, how many samples fit at once and how many a batch has.
    """
    too_small = [size for size, n_samples in found if size < n_samples]
    if not too_small:
        return max(size for size, _ in found)
    size = min(too_small)
    while size > 2 and any(n_samples % size == 1 for _, n_samples in found):
        size -= 1  # BatchNorm cannot be trained on one sample
    return size


def find_micro_batch(trainer: BaseTrainer, batch: Any) -> int:
    """Return how many samples fit into memory at once: the batch, half of it, a quarter, ...

    Raises:
        TrainingError: one sample does not fit.
    """
    n_samples = size = trainer.window.count(batch)
    fits = fits_on_cpu if trainer.device.type == "cpu" else fits_on_device
    while not fits(trainer, batch, size, n_samples):
        if size == 1:
            text = "memory.micro_batch: not even one sample fits into memory; docs/memory.md has a"
            raise TrainingError(f"{text} table of what else saves memory")
        size = (size + 1) // 2
    return size


def fits_on_cpu(trainer: BaseTrainer, batch: Any, size: int, n_samples: int) -> bool:
    """Return whether a step is estimated to fit; a trial beyond it would kill the process."""
    return estimated_bytes(trainer, batch, size, n_samples) <= free_memory()


def fits_on_device(trainer: BaseTrainer, batch: Any, size: int, n_samples: int) -> bool:
    """Return whether a step succeeds beside the state that an optimizer adds at its first step."""
    is_enough = True
    trained = trainer.experiment.trained.values()
    try:
        optimizer_state = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]
        with trial(trainer.training_state, trainer):
            trainer.try_step(cut(batch, 0, size, n_samples))
        del optimizer_state
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        is_enough = False
    if not is_enough:  # after the except clause, whose error keeps all tensors of the step alive
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
    return is_enough


def estimated_bytes(trainer: BaseTrainer, batch: Any, size: int, n_samples: int) -> float:
    """Extrapolate the bytes of a step with `size` samples from steps with two and with four."""
    parameters = list(trainer.model.parameters())
    fixed = sum(3 * p.nbytes for p in parameters if p.requires_grad)  # gradient, Adam's state
    counts = [min(count, n_samples) for count in (2, 4)]
    found = [saved_bytes(trainer, cut(batch, 0, count, n_samples)) for count in counts]
    slope = (found[1] - found[0]) / max(counts[1] - counts[0], 1)
    return fixed + found[0] + slope * (size - counts[0])


def saved_bytes(trainer: BaseTrainer, batch: Any) -> int:
    """Return the bytes of the activations of a step and of their gradients.

    Autograd keeps the activations. The backward pass of a layer holds two gradients, its input
    and its output, each counted as large as the largest activation.
    """
    existing = [*trainer.model.parameters(), *tensors_in(batch)]
    saved = SavedBytes(existing)
    with trial(trainer.training_state, trainer), saved:
        trainer.try_step(batch)
    return saved.peak + 2 * saved.largest
