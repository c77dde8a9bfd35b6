"""The loop. Read this file first, from `train` downwards; override the block marked as yours."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor

from base.checkpoint.store import CheckpointStore
from base.data.batch import SampleCount, Targets, inputs_of, target_of
from base.data.device_feed import feed
from base.data.endless_batches import warn_of_iterators
from base.data.loaders import batches_to_evaluate
from base.errors import ConfigError, Problem
from base.names.final_methods import INSTEAD_IN_TRAINERS, OF_PYTORCH_TEMPLATE, refuse_overridden
from base.network.activations import offload_activations
from base.network.capture import Capture
from base.network.layout import EmptyCache
from base.run.own_sections import build_own
from base.run.testing import choose_checkpoint, run_test, state_put_back
from base.system.seeding import derive_seed, isolated_random_state
from base.system.signals import InterruptedRunError, SignalFlags
from base.training.accumulation import Every, Window
from base.training.batch_arguments import takes_batch
from base.training.epoch_rows import EpochRows
from base.training.epoch_start import EpochStart
from base.training.epoch_time import Clock
from base.training.experiment import Experiment
from base.training.first_step import guard_first_step
from base.training.loss_terms import LossTerms
from base.training.optimizer_step import build_steppers, choose_stepper, only
from base.training.optimizers import learning_rates
from base.training.precision import NOTHING, FiniteWatch, Precision
from base.training.progress import Monitor, Progress, Stateful, build_average, parts_with_state
from base.training.recovery import Recovery, refuse_nonfinite
from base.training.registration import checked_parts
from base.training.results import (
    StepValues,
    check_watched,
    note_losses,
    passes,
    summarise,
    values_of,
    warn_unweighted,
    weigh,
    with_total,
)
from base.training.run_log import RunLog, open_run, tell_end
from logger.meters import Meters

Values = dict[str, Any]


class StopRequested(Exception):  # noqa: N818  (no error)
    """Unwinds the loop from a place where the state is whole."""


class BaseTrainer:
    """Trains, validates, saves and resumes::

        resume
        for each epoch:
            begin_epoch()
            for each batch: train_step(batch)
            for each batch: valid_step(batch)
            schedule, log, save

    Args:
        experiment: everything that the config names, built.
    """

    folder: Path | None = None
    store: CheckpointStore | None = None
    data: Mapping[str, Any] = MappingProxyType({})  # what is known of them, see `keep_data`
    _saved_at: Values | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_overridden(cls, INSTEAD_IN_TRAINERS, OF_PYTORCH_TEMPLATE)

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.config, self.settings = experiment.config, experiment.settings
        self.device, self.model = experiment.device, experiment.model
        self.losses, self.metrics = experiment.losses, experiment.metrics
        self.optimizers, self.schedules = experiment.optimizers, experiment.schedules
        self.train_loader, self.valid_loader = experiment.train_loader, experiment.valid_loader
        self.callbacks = experiment.callbacks

        self.precision = Precision(self.config["memory"]["precision"], self.device)
        self.steppers = build_steppers(experiment, self.precision)
        memory = self.config["memory"]
        lengths = (experiment.steps_per_epoch, experiment.total_steps)
        count = SampleCount(self.config["batch"], self.train_loader)
        self.window = Window(
            memory["accumulate"], memory["micro_batch"], self.losses, count, experiment.own_losses
        )
        self.offload = offload_activations(memory["offload_activations"], self.device)
        self.empty_cache = EmptyCache(memory["empty_cache"], *lengths)
        self.progress = Progress()
        self.monitor = Monitor(experiment.monitor, self.settings.early_stop)
        self.meters, self.clock, self.epoch_rows = Meters(self.device), Clock(), EpochRows()
        self.valid_metrics = copy.deepcopy(self.metrics)
        self.ema = build_average(experiment.trained, self.settings.ema)

        self.epoch_start = EpochStart(self, type(self).begin_epoch is not BaseTrainer.begin_epoch)
        self.stateful: dict[str, Stateful] = parts_with_state(self)

        self.save_every = Every(self.settings.save_every, *lengths)
        self.log_every = Every(self.settings.log_every, *lengths)
        self.capture = Capture(self.config["capture"], self.model, *lengths)
        self.signals, self.finite, self.recovery = SignalFlags(), FiniteWatch(), Recovery(self)
        self.run_log = RunLog(None, self.settings)
        self.writers = self.run_log.writers
        self._phase_metrics, self._phase_loader = self.metrics, self.train_loader
        self._predicts_by_batch = takes_batch(self.predict)
        self._n_samples: int | None = None  # of the batch, or the part, that is computed

    @property
    @final
    def has_plain_step(self) -> bool:
        """Whether the training step is the one below, which trains one network."""
        return type(self).train_step is BaseTrainer.train_step

    @final
    def register(self, name: str, value: Any) -> None:
        """Save and resume this object too: anything with ``state_dict``, or a dict of such.

        Raises:
            ConfigError: the name is taken, or the object has no state to save.
        """
        if not hasattr(self, "stateful"):
            text = "call super().__init__(experiment) before self.register(...)"
            raise ConfigError([Problem("trainer", f"{type(self).__name__}: {text}")])
        try:
            self.stateful.update(checked_parts(name, value, self.stateful))
        except ValueError as error:
            text = f"{type(self).__name__}: {error}"
            raise ConfigError([self.config.problem(("trainer",), text)]) from None

    # --- Yours to override, from the most common to the rarest -----------------------------------

    def forward(self, batch: Any) -> Any:
        """Call the model on the inputs of a batch: a pair, a tuple or a dict (see ``batch:``)."""
        args, kwargs = inputs_of(batch, self.config["batch"])
        return self.model(*args, **kwargs)

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Any]:
        """Return the losses by name; ``"loss"``, or else their weighted sum, is minimised.

        A loss of several terms is a dict of its own among them; a number is only logged.
        """
        target = target_of(batch, self.config["batch"])
        return {name: loss(outputs, target, batch=batch) for name, loss in self.losses.items()}

    def predict(self, outputs: Any) -> Any:
        """Turn outputs into what the metrics compare with the target.

        With a second parameter, ``predict(outputs, batch)``, it is given the batch too. Where the
        data set standardises its targets, both are then put back into their own unit.
        """
        return outputs

    def train_step(self, batch: Any) -> Values:
        """Train on one batch; return the values to log. Several networks: write the whole step."""
        outputs = self.forward(batch)
        values, minimised = weigh(self, self.compute_losses(outputs, batch))
        self.backward(minimised)
        self.update(again=lambda: self.compute_losses(self.forward(batch), batch))
        self.measure(outputs, batch)
        return values

    def valid_step(self, batch: Any) -> Values:
        """Evaluate one batch, without gradients; return the values to log."""
        outputs = self.forward(batch)
        losses = with_total(self.compute_losses(outputs, batch), self.experiment.all_losses)
        self.measure(outputs, batch)
        return losses

    def begin_epoch(self) -> None:
        """Prepare an epoch: `self.progress.epoch` is its number, from 0; the model is in training.

        It is called again where a run resumes within the epoch, before what is tried ahead of
        training (there is no folder yet), and for a test; what is registered, or saved otherwise,
        is as it was saved after such a call. Random streams are the epoch's own.
        """

    # --- Tools of a step -------------------------------------------------------------------------

    @final
    def backward(
        self,
        loss: Tensor | Sequence[Tensor] | LossTerms,
        only: str | None = None,
        retain_graph: bool = False,
    ) -> None:
        """Add the gradients of ``loss``, for the parameters of the optimizer ``only`` if given.

        Precision, loss scaling and accumulation are seen to here. Of several losses each has a
        backward pass of its own; the graph they share is kept until the last of them. Of a loss of
        several terms it is their sum.
        """
        losses = [loss] if isinstance(loss, Tensor) else passes(loss)
        stepper = choose_stepper(self.steppers, only)
        inputs = None if only is None else stepper.trainable
        for number, part in enumerate(losses, start=1):
            share = self.window.share(part)
            self.finite.watch(share)
            keep, stepping = retain_graph or number < len(losses), stepper.stepping(self)
            with self.capture.backward(stepper.scaler), self.precision.full(), stepping:
                stepper.scaler.scale(share).backward(inputs=inputs, retain_graph=keep)
        refuse_nonfinite(self)

    @final
    def update(self, name: str | None = None, again: Callable[[], Values] | None = None) -> None:
        """Step an optimizer at the end of an accumulation window: clip, step, clear.

        At a step that its ``every:`` leaves out, the gradients are dropped instead.

        Args:
            name: which optimizer; not needed where there is one.
            again: computes the losses anew, for LBFGS, which asks for them several times a step.
        """
        stepper = choose_stepper(self.steppers, name)
        stepper.check(again)
        if not self.window.is_full:
            return
        if stepper.every == 1 or self.is_due(name):
            self.window.correct(stepper.optimizer)
            self.recovery.before_update(stepper.parameters, stepper.scaler.is_enabled())
            self.capture.read_parameters(stepper.parameters, stepper.scaler)
            self.meters.update(stepper.step(self.progress.step, again))
        else:
            stepper.clear()

    @final
    def is_due(self, name: str | None = None) -> bool:
        """Tell whether this optimizer steps at the step that is being made, by its ``every:``."""
        return (self.progress.step + 1) % choose_stepper(self.steppers, name).every == 0

    @final
    def build(self, kind: str, section: Any) -> Any:
        """Build a section of your own: ``self.build("loss", self.config["extra"]["auxiliary"])``.

        It is checked like those of the config. A loss comes back as those in ``self.losses`` do; a
        model, a metric or a loader as the trainer has them, on its device.

        Args:
            kind: model, loss, metric, data_loader, dataset, transform, callback or init.
            section: ``{type, args}`` or a name alone.

        Raises:
            ConfigError: there is no such kind or name, or arguments do not fit.
        """
        return build_own(getattr(self, "experiment", None), kind, section)

    @final
    def only(self, name: str) -> AbstractContextManager[None]:
        """Return a context in which the other optimizers' parameters collect no gradients."""
        return only(self.steppers, name)

    @final
    def measure(self, outputs: Any, batch: Any) -> None:
        """Let the metrics see the predictions for a batch."""
        if self._phase_metrics:
            with torch.no_grad():
                more = (batch,) if self._predicts_by_batch else ()
                predictions, batch = self.in_own_unit(self.predict(outputs, *more), batch)
                target = target_of(batch, self.config["batch"])
                for metric in self._phase_metrics.values():
                    metric.update(predictions, target, batch, self._n_samples)

    @final
    def in_own_unit(self, predictions: Any, batch: Any) -> tuple[Any, Any]:
        """Return both with targets in their own unit, where the data set standardises these."""
        scale = getattr(self._phase_loader, "target_scale", None)
        if scale is None or not isinstance(batch, list | tuple):
            return predictions, batch
        rules = self.config["batch"]
        target, last = target_of(batch, rules), target_of(batch, {**rules, "target": None})
        targets = target.values() if isinstance(target, Targets) else (target,)
        if not any(each is last for each in targets):
            return predictions, batch
        predictions = scale.undo_all(predictions, last)
        return predictions, [scale.undo(item) if item is last else item for item in batch]

    # --- The recipe ------------------------------------------------------------------------------

    @final
    def train(
        self,
        folder: Path | None = None,
        resume_from: Path | None = None,
        allow_change: bool = False,
    ) -> Values:
        """Train to the end, from the start or from a checkpoint; return the last epoch's values.

        Args:
            allow_change: whether the labels may be others than those of the resumed run.

        Raises:
            DataError: the data are others than those of the resumed run.
            InterruptedRunError: a signal asked for a stop; the state is saved.
            TrainingError: a loss was not finite; the last checkpoint stays valid.
        """
        values: Values = {}
        with self.signals, ExitStack() as stack:
            open_run(self, folder, resume_from, stack, allow_change)
            try:
                while not self.is_finished():
                    values = {**self.train_epoch(), **self.validate()}
                    self.end_epoch(values)
                self.save(values)
                tell_end(self, folder)
                if self.settings.test and folder is not None:
                    with state_put_back(self):
                        values = {**values, **run_test(self, choose_checkpoint(folder), folder)}
            except StopRequested:
                self.save()
                raise InterruptedRunError(self.signals.stop, folder, self.progress.step) from None
        return values

    @final
    def train_epoch(self) -> Values:
        """Train on what is left of the epoch; return the means over all of it."""
        self.clock.lap("logging")  # of the end of the epoch before
        self.epoch_start.begin()
        self._phase_metrics = self.metrics if self.settings.train_metrics else {}
        self._phase_loader = self.train_loader
        first, count = self.progress.batches_total, self.experiment.batches_left(self.progress)
        with self.run_log.bar(self.progress, self.experiment.batches_per_epoch) as bar:
            for batch in self.recovery.batches(first, count):
                self.window.place(self.progress.batches_total - first, count)
                self.capture.start(self.progress.step + 1)
                is_first, parts, part = self.progress.batches_total == 0, [], None
                for part, n_samples in self.window.parts(batch, self.progress.batches_total):
                    self._n_samples = n_samples
                    guard = guard_first_step(self, self.has_plain_step) if is_first else NOTHING
                    with self.recovery.of(part), self.precision.autocast(), self.offload(), guard:
                        parts.append(StepValues(self.train_step(part), n_samples))
                        parts[-1].add_to(self.meters)
                        note_losses(self, part, parts[-1])
                self.progress.advance(self.window.n_samples)
                if parts:
                    self.run_log.last = values_of(parts, self.device)
                values = self.run_log.last
                del batch, part  # nothing of a step lives on beside the next batch
                bar.update()
                if self.window.is_full:
                    self.end_step(values)
        return summarise("train", self.meters, self._phase_metrics)

    @final
    def end_step(self, values: Mapping[str, Any]) -> None:
        """Do what belongs to a step boundary: schedule, thaw, average, log, save, stop."""
        self.progress.step += 1
        self.progress.rates = learning_rates(self.optimizers)  # those that this step used
        for schedule in self.schedules.values():
            schedule.after_step()
        self.experiment.freezing.after_step(self.progress.step)
        self.empty_cache.after_step(self.progress.step)
        is_made = self.recovery.end_step()
        if self.ema is not None and is_made:
            self.ema.update()
        self.clock.lap("compute")
        if is_made and self.log_every.is_due_at_step(self.progress.step):
            self.run_log.log_step(values, self.progress)
        self.capture.finish(self.writers)
        for callback in self.callbacks.values():
            callback.on_step_end(self)
        if self.store is not None:
            self.store.check()  # of a checkpoint that is written meanwhile
        if self.signals.save or self.save_every.is_due_at_step(self.progress.step):
            self.signals.save = False
            self.save()
        self.clock.lap("logging")
        if is_made and self.progress.step == self.progress.skipped + 1:
            check_watched(self, "train", summarise("train", self.meters, self._phase_metrics))
            warn_unweighted(self)
            warn_of_iterators(self)
        if self.signals.stop:
            raise StopRequested

    @final
    def validate(self) -> Values:
        """Evaluate on the validation data, where this epoch is one to do so."""
        is_due = (self.progress.epoch + 1) % self.settings.validate_every == 0
        if self.valid_loader is None or not is_due:
            return {}
        return self.evaluate(self.valid_loader, "valid")

    @final
    def evaluate(self, loader: Any, phase: str, max_batches: int | None = None) -> Values:
        """Return losses and metrics over a loader; random streams and weights stay untouched."""
        meters = Meters(self.device)
        count_samples = SampleCount(self.config["batch"], loader)
        count = batches_to_evaluate(self.config, loader, phase, max_batches)
        self._phase_metrics, self._phase_loader = self.valid_metrics, loader
        for metric in self.valid_metrics.values():
            metric.reset()
        seed = derive_seed(self.config["seed"], phase, self.progress.epoch)
        averaged = NOTHING if self.ema is None else self.ema.swapped_in()
        self.model.eval()
        with isolated_random_state(seed), averaged, torch.inference_mode():
            positions = iter(range(count))
            for batch in feed(self, loader.batches(0, count)):
                if self.signals.stop:
                    raise StopRequested
                self._n_samples = count_samples(batch, next(positions))
                with self.recovery.of(batch), self.precision.autocast():
                    values = StepValues(self.valid_step(batch), self._n_samples)
                values.add_to(meters)
                del batch
            return summarise(phase, meters, self.valid_metrics)

    @final
    def end_epoch(self, values: Values) -> None:
        """Schedule, compare, log and save."""
        is_whole = self.progress.batch >= self.experiment.batches_per_epoch
        if is_whole:
            for schedule in self.schedules.values():
                schedule.after_epoch(values)
        is_best = self.monitor.update(values, self.progress.epoch + 1)
        self._saved_at = None  # a state of this very step does not know of it
        values.update(self.run_log.log_epoch(values, self.progress, is_best, self.clock))
        for callback in self.callbacks.values():
            callback.on_epoch_end(self, values)
        self.progress.closed_at = self.progress.step
        if is_whole:  # not where the last of all steps falls into the middle of an epoch
            if self.experiment.sampler_state is not None:
                self.experiment.sampler_state.end_epoch(self.progress.epoch)
            self.progress.start_next_epoch()
            for sums in (self.meters, *self.metrics.values()):
                sums.reset()
        if is_best or (is_whole and self.save_every.is_due_after_epoch(self.progress.epoch)):
            self.save(values, is_best)
        if self.signals.stop and not self.is_finished():
            raise StopRequested

    @final
    def is_finished(self) -> bool:
        """Tell whether all steps were made, the last epoch validated too, or patience is over."""
        is_closed = self.progress.closed_at == self.progress.step
        is_long_enough = self.progress.step >= self.experiment.total_steps
        return (is_long_enough and is_closed) or self.monitor.is_exhausted

    @final
    def save(self, values: Values | None = None, is_best: bool = False) -> None:
        """Write a checkpoint of everything in ``stateful``, unless this very state has one."""
        position = self.progress.state_dict()
        if position == self._saved_at:
            return
        self.recovery.keep()
        if self.store is None:
            return
        self.store.save(
            {name: value.state_dict() for name, value in self.stateful.items()},
            step=self.progress.step, epoch=self.progress.epoch, metrics=values or {},
            is_best=is_best, facts={"config": self.config.to_yaml(), "data": self.data},
        )  # fmt: skip
        self._saved_at = position
