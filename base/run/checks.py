"""What ``--dry-run`` shows: the experiment, its model and its parameters; nothing is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import default_collate

from base.base_trainer import BaseTrainer
from base.data.batch import cut, to_device
from base.errors import ConfigError, DataError, Problem, TrainingError
from base.network.new_layers import guard_first_batch
from base.network.shape_errors import explain_shape_errors
from base.network.summary import summarise_model, table_rows
from base.run.first_step import (
    agreeing_shapes,
    check_watched_values,
    guard_first_step,
    reads_put_back,
)
from base.run.header import header_facts, input_text
from base.run.micro_batch import estimate_memory, free_bytes, settle
from base.run.parameter_table import audit, loaded_tables, whole_table
from base.run.profiler import check_profile
from base.run.step_checks import check_settings, check_step, try_own_step
from base.run.writers import check_writers
from base.system.deferred_files import DeferredFiles
from base.system.resources import peak_memory_mb
from base.system.torch_compat import dynamo_is_imported
from base.training.batch_arguments import item_compared
from base.training.recovery import SINGLE_VALUE
from base.training.results import StepValues
from base.training.trials import kept_weights, trial
from logger.console import format_header, format_value, table

UNTRAINABLE = "on which BatchNorm cannot be trained"


def check_batches(trainer: BaseTrainer) -> None:
    """Refuse options that would change the result, or fail, on some batches of the training.

    Raises:
        ConfigError: a loss needs whole batches, a batch cannot be cut, or one part has a single
            sample, on which BatchNorm cannot be trained.
    """
    check_whole_batches(trainer)
    size = trainer.config["memory"]["micro_batch"]
    cutting = ("memory", "micro_batch") if size is not None else ("trainer", "on_oom")
    is_cut = size is not None or trainer.settings.on_oom == "halve"
    singles = list(single_samples(trainer, size if isinstance(size, int) else None))
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
        try_single(trainer, one, singles)


def check_whole_batches(trainer: BaseTrainer) -> None:
    """Refuse to cut or to accumulate batches for a loss that needs them whole."""
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
            f"the loss {names[0]!r} compares the samples of a batch with each other, so parts of a "
            "batch give another loss than all of it; leave this out, or change the batch_size",
        )
        for keys, is_set in options.items()
        if is_set and names
    ]
    if problems:
        raise ConfigError(problems)


def single_samples(trainer: BaseTrainer, size: int | None) -> Iterator[Problem]:
    """Yield the ways in which an epoch comes to a part of one sample, each as a problem."""
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
            text = f"it cuts the {n_samples} samples of {number} into parts of {size}"
            text += " and one of a single sample" if size > 1 else ""
            advice = "take another size"
            if position > 0:
                advice += ", or `drop_last: true` in data_loader.args"
            yield config.problem(("memory", "micro_batch"), f"{text}, {UNTRAINABLE}; {advice}")
            return
        elif n_samples == 1:
            text = f"{number} has a single sample, {UNTRAINABLE}"
            advice = "write `drop_last: true` in its args, or change the batch_size"
            yield config.problem(("data_loader",), f"{text}; {advice}")


def try_single(trainer: BaseTrainer, sample: Any, problems: Sequence[Problem]) -> None:
    """Try a step on one sample, of which nothing is left.

    Raises:
        ConfigError: a layer needs more than one value for each channel.
    """
    trainer.epoch_start.begin()
    try:
        with (
            kept_weights(trainer.model, trainer.optimizers.values()),
            trial(trainer.state, trainer),
        ):
            trainer.try_step(to_device(sample, trainer.device))
    except Exception as error:
        if SINGLE_VALUE in str(error):  # any other will show in the training itself
            raise ConfigError(problems) from error


CLASSIFYING = {"cross_entropy", "CrossEntropyLoss", "nll_loss", "NLLLoss", "multi_margin_loss"}
BINARY = {
    "binary_cross_entropy", "BCELoss", "binary_cross_entropy_with_logits", "BCEWithLogitsLoss",
}  # fmt: skip
MOST = 5  # samples that are named


@contextmanager
def checked_labels(trainer: BaseTrainer) -> Iterator[None]:
    """Hold all labels of the data sets against the first outputs of the model, (sample, class).

    Those of a binary cross entropy, whatever the outputs, must be from 0 to 1: torch takes any.

    Data sets that can say where a sample is listed give their ``targets`` as they are; those of
    others, or after a `collate_fn` or losses of one's own, may be other ones by then.

    Raises:
        DataError: some are out of range; it names the samples.
    """

    def look(_: Any, __: Any, outputs: Any) -> None:
        handle.remove()
        has_classes = isinstance(outputs, Tensor) and outputs.dim() == 2
        has_classes = has_classes and is_over_classes(trainer)
        is_binary = not BINARY.isdisjoint(name for name, _ in _whole_losses(trainer))
        for loader in (trainer.train_loader, trainer.valid_loader):
            if getattr(loader, "collate_fn", None) is default_collate:
                if has_classes:
                    refuse_wrong_labels(loader.dataset, outputs.shape[1])
                if is_binary:
                    refuse_no_shares(loader.dataset)

    handle = trainer.model.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()


def is_over_classes(trainer: BaseTrainer) -> bool:
    """Tell whether a loss takes outputs and targets whole, and the targets for class numbers."""
    return any(
        name in CLASSIFYING and settings.get("ignore_index", -100) == -100
        for name, settings in _whole_losses(trainer)
    )


def _whole_losses(trainer: BaseTrainer) -> Iterator[tuple[str, Any]]:
    """Yield name and settings of the losses that take outputs and targets as they are."""
    if type(trainer).compute_losses is not BaseTrainer.compute_losses:
        return
    rules = trainer.config["batch"]
    # The second item of a sample, which is the target where nothing else is said.
    own = (1, -1) if isinstance(rules["target"], Mapping) else (None,)
    for loss in trainer.losses.values():
        function = getattr(loss.function, "func", loss.function)
        name = getattr(function, "__name__", type(function).__name__)
        item = item_compared(loss.takes, loss.selection.target, rules)
        if loss.selection.output is None and item in own:
            yield name, getattr(loss.function, "keywords", vars(loss.function))


def refuse_wrong_labels(dataset: Any, n_classes: int) -> None:
    """Raise with the places of all labels of a data set that are not 0 to n_classes - 1."""
    targets = _placed_targets(dataset)
    if targets is None or targets.dim() != 1:
        return
    if targets.is_floating_point() or targets.dtype == torch.bool:
        return
    wrong = ((targets < 0) | (targets >= n_classes)) & (targets != -100)
    highest, advice = int(targets.max()) if len(targets) else 0, "mend the labels"
    if highest >= n_classes:
        advice += f", or give the model {highest + 1} outputs"
    _refuse(
        dataset,
        [(i, f"class {int(targets[i])}") for i in wrong.nonzero()[:, 0].tolist()],
        f"the model has outputs for {n_classes} classes, 0 to {n_classes - 1}: {advice}",
    )


def refuse_no_shares(dataset: Any) -> None:
    """Raise with the places of all samples that have a label below 0 or above 1."""
    targets = _placed_targets(dataset)
    if targets is None or targets.dtype == torch.bool or targets.dim() not in (1, 2):
        return  # masks may be too many to read before each training
    rows = targets.reshape(len(targets), -1)
    wrong = ((rows < 0) | (rows > 1)).any(dim=1)
    found = [(i, rows[i][(rows[i] < 0) | (rows[i] > 1)][0].item()) for i in wrong.nonzero()[:, 0]]
    text = "binary cross entropy takes targets from 0 to 1: mend them, or take another loss"
    _refuse(dataset, [(int(i), f"{value:g}") for i, value in found], text)


def _placed_targets(dataset: Any) -> Tensor | None:
    """Return all targets of a data set that can say where each is from."""
    targets = getattr(dataset, "targets", None)
    has_places = hasattr(getattr(dataset, "reads_from", dataset), "place")
    return targets if has_places and isinstance(targets, Tensor) else None


def _refuse(dataset: Any, wrong: list[tuple[int, str]], text: str) -> None:
    if not wrong:
        return
    place = getattr(dataset, "reads_from", dataset).place
    shown = "".join(f"\n  {place(i)}: {what}" for i, what in wrong[:MOST])
    more = f"\n  and {len(wrong) - MOST} more" if len(wrong) > MOST else ""
    raise DataError(f"{text}; out of range are{shown}{more}")


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what ``memory.compile`` or a model of the user's own compiles as it is written.

    Compiling takes its time, and fills torch's folder of compiled code.
    """
    if not dynamo_is_imported():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@uncompiled()
def check(trainer: BaseTrainer) -> None:
    """Try two batches of validation and the names to monitor, before any file is made.

    Raises:
        ConfigError: what the config monitors is not among the values there, or keys contradict.
    """
    check_writers(trainer.config)
    if trainer.settings.early_stop is not None and trainer.settings.monitor == "off":
        text = "there is nothing to stop by while `trainer.monitor` is off"
        raise ConfigError([trainer.config.problem(("trainer", "early_stop"), text)])
    check_profile(trainer)
    check_settings(trainer)
    with trainer.epoch_start.tried(), reads_put_back(trainer):
        check_batches(trainer)
        _try_batches(trainer)
        for callback in trainer.callbacks.values():
            callback.check(trainer)


def _try_batches(trainer: BaseTrainer) -> None:
    """Evaluate some batches, and try a training step."""
    values: Mapping[str, float] = {}
    logged: Mapping[str, Any] | None = None
    guard = guard_first_batch(trainer.model, input_text(trainer))
    with guard, checked_labels(trainer), agreeing_shapes(trainer):
        if trainer.valid_loader is not None:
            values = trainer.evaluate(trainer.valid_loader, "valid", max_batches=2)
            check_watched_values(trainer, "valid", values)
        elif trainer.has_plain_step:
            values = trainer.evaluate(trainer.train_loader, "train", max_batches=1)
        else:
            with suppress(torch.OutOfMemoryError):  # trainer.on_oom is for the training
                logged = try_own_step(trainer)
        if getattr(trainer.train_loader, "mixes", ""):
            _try_mixed(trainer)
    check_step(trainer, values, logged)


def begin(trainer: BaseTrainer, files: DeferredFiles) -> None:
    """Write the caches that waited for the checks.

    Raises:
        DataError: one cannot be made.
    """
    if files.write():
        for loader in (trainer.train_loader, trainer.valid_loader):
            getattr(loader, "close", lambda: None)()  # its workers began without them


def _try_mixed(trainer: BaseTrainer) -> None:
    """Evaluate a training batch of mixed samples, whose targets are shares of classes.

    Raises:
        TrainingError: a loss, or a metric that training batches are for, cannot take such targets.
    """
    metrics = trainer.state.valid_metrics
    if not trainer.settings.train_metrics:
        trainer.state.valid_metrics = {}
    try:
        trainer.evaluate(trainer.train_loader, "train", max_batches=1)
    except TrainingError as error:
        text = f"targets mixed by {trainer.train_loader.mixes} are shares of classes"
        advice = "`trainer: {train_metrics: false}` leaves the metrics to validation"
        raise TrainingError(f"{error} ({text}, (sample, class); {advice})") from error
    finally:
        trainer.state.valid_metrics = metrics


@uncompiled()
def dry_run(trainer: BaseTrainer) -> str:
    """Train on one batch and validate on one; return what was built and what came of it."""
    check_settings(trainer)
    with trainer.epoch_start.tried():
        return _dry_run(trainer)


def _dry_run(trainer: BaseTrainer) -> str:
    with reads_put_back(trainer):
        check_batches(trainer)
        settle(trainer)
    batch = to_device(next(trainer.train_loader.batches(0, 1)), trainer.device)
    with explain_shape_errors(trainer.model, input_text(trainer)):
        layers = model_table(trainer, batch)
    parts = [
        *(["\n".join(trainer.config.notes)] if trainer.config.notes else []),
        format_header(header_facts(trainer, None)),
        "model:\n" + layers,
        *([loaded_tables(trainer.experiment)] if trainer.experiment.loaded else []),
        "parameters:\n" + whole_table(audit(trainer.experiment)),
    ]
    trainer.epoch_start.begin()
    values = {}
    trainer.window.take(batch)
    for part, n_samples in trainer.window.parts(batch, 0):
        guard, labels = guard_first_step(trainer), checked_labels(trainer)
        with trainer.precision.autocast(), trainer.offload(), labels, guard:
            values = StepValues(trainer.train_step(part), n_samples).values
    parts.append("one training batch: " + _numbers(values.items()))
    if trainer.valid_loader is not None:
        values = trainer.evaluate(trainer.valid_loader, "valid", max_batches=1)
        check_watched_values(trainer, "valid", values)
        parts.append("one validation batch: " + _numbers(values.items()))
    parts.append(f"peak memory: {peak_memory_mb():.0f} MB")
    estimate = estimate_memory(trainer, batch)
    parts.append("memory: " + estimate.text(free_bytes(trainer.device)))
    parts.append("nothing was written")
    return "\n\n".join(parts) + "\n"


def model_table(trainer: BaseTrainer, batch: Any) -> str:
    """Return a line for each layer, with the shapes that the batch has there."""

    def run() -> None:
        try:
            trainer.forward(batch)
        except NotImplementedError:  # several networks: the step knows how they are called
            trainer.valid_step(batch)

    return table(table_rows(summarise_model(trainer.model, run)))


def _numbers(items: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {format_value(name, float(value))}" for name, value in items)
