"""Checks that every batch of training can be cut, accumulated and normalised as configured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from base.base_trainer import BaseTrainer
from base.data.batch import cut
from base.errors import ConfigError, Problem, TrainingError
from base.run.step_checks import try_training_step
from base.training.recovery import SINGLE_VALUE

UNTRAINABLE = "on which BatchNorm cannot be trained"  # as torch raises an error there


def check_batches(trainer: BaseTrainer) -> None:
    """Refuse options that change the loss, or fail, on some batches of training.

    Raises:
        ConfigError: a loss needs whole batches, a batch cannot be cut, or one part has a single
            sample, on which BatchNorm cannot be trained.
    """
    check_whole_batches(trainer)
    size = trainer.config["memory"]["micro_batch"]
    cutting = ("memory", "micro_batch") if size is not None else ("trainer", "on_oom")
    is_cut = size is not None or trainer.settings.on_oom == "halve"
    singles = list(single_sample_parts(trainer, size if isinstance(size, int) else None))
    norms = (_NormBase, nn.GroupNorm)
    is_normed = any(isinstance(module, norms) for module in trainer.model.modules())
    if not is_cut and not (singles and is_normed):
        return
    batch = next(trainer.train_loader.batches(0, 1))
    n_samples = trainer.window.count(batch, 0)
    try:
        one = cut(batch, 0, 1, n_samples)
    except TrainingError as error:
        if is_cut and (not isinstance(size, int) or size < n_samples):
            raise ConfigError([trainer.config.problem(cutting, str(error))]) from error
        return
    if singles and is_normed:
        try_single_sample(trainer, one, singles)


def check_whole_batches(trainer: BaseTrainer) -> None:
    """Refuse to split or accumulate batches for a loss that needs whole batches."""
    memory = trainer.config["memory"]
    options = {
        ("memory", "micro_batch"): memory["micro_batch"] is not None,
        ("memory", "accumulate"): memory["accumulate"] > 1,
        ("trainer", "on_oom"): trainer.settings.on_oom == "halve",
    }
    names = [name for name, loss in trainer.losses.items() if loss.needs_whole_batches]
    problems = [
        trainer.config.problem(
            keys,
            f"the loss {names[0]!r} compares the samples of a batch with each other, so a part of "
            "a batch has another loss than the whole; leave this out, or change the batch_size",
        )
        for keys, is_set in options.items()
        if is_set and names
    ]
    if problems:
        raise ConfigError(problems)


def single_sample_parts(trainer: BaseTrainer, size: int | None) -> Iterator[Problem]:
    """Yield a problem for each way in which an epoch contains a part of one sample."""
    loader, config = trainer.train_loader, trainer.config
    if not hasattr(loader, "n_drawn"):
        return
    try:
        n_batches = len(loader)
    except TypeError:  # a stream
        return
    for position in dict.fromkeys((0, n_batches - 1)):
        n_samples = loader.n_drawn(position)
        if n_samples is None:
            return
        number = f"batch {position + 1:,} of {n_batches:,}"
        if size is not None and size < n_samples and n_samples % size == 1 % size:
            text = f"it splits the {n_samples} samples of {number} into parts of {size}"
            text += " and one of a single sample" if size > 1 else ""
            advice = "use another size"
            if position > 0:
                advice += ", or `drop_last: true` in data_loader.args"
            yield config.problem(("memory", "micro_batch"), f"{text}, {UNTRAINABLE}; {advice}")
            return
        elif n_samples == 1:
            text = f"{number} has a single sample, {UNTRAINABLE}"
            advice = "set `drop_last: true` in its args, or change the batch_size"
            yield config.problem(("data_loader",), f"{text}; {advice}")


def try_single_sample(trainer: BaseTrainer, sample: Any, problems: Sequence[Problem]) -> None:
    """Try a training step on one sample.

    Raises:
        ConfigError: a layer needs more than one value for each channel.
    """
    try:
        try_training_step(trainer, sample)
    except Exception as error:
        if SINGLE_VALUE in str(error):  # training raises any other error again
            raise ConfigError(problems) from error
