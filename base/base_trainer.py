"""The loop. Read this file first, from `train` downwards; override the block marked as yours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from base.checkpoint.store import CheckpointStore
from base.config.durations import parse_duration
from base.data.batch import SampleCount, Targets, ids_of, inputs_of, target_of
from base.data.device_feed import feed
from base.data.sample_items import checked_weights
from base.errors import ConfigError, Problem
from base.names.final_methods import INSTEAD_IN_TRAINERS, OF_PYTORCH_TEMPLATE, refuse_overridden
from base.network.activations import offload_activations
from base.network.layout import EmptyCache
from base.system.seeding import derive_seed, isolated_random_state
from base.system.signals import InterruptedRunError, SignalFlags
from base.training.accumulation import Every
from base.training.batch_arguments import takes_batch
from base.training.epoch_start import EpochStart, owners_of_attributes
from base.training.epoch_time import Clock
from base.training.experiment import Experiment
from base.training.loss_gradients import due_gradients
from base.training.loss_terms import LossTerms
from base.training.optimizer_step import choose_stepper, only
from base.training.parameter_groups import learning_rates
from base.training.precision import NOTHING
from base.training.recovery import Recovery
from base.training.results import (
    StepValues,
    backward_passes,
    note_losses,
    summarise,
    values_of,
    with_total,
)
from base.training.run_log import Run, RunLog
from base.training.state import build_state, checked_parts, parts_with_state
from base.training.trials import trial
from logger.meters import Meters
from logger.progress import ProgressBar
from logger.writers import Writers

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

    _saved_at: Values | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_overridden(cls, INSTEAD_IN_TRAINERS, OF_PYTORCH_TEMPLATE)

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.config, self.settings = experiment.config, experiment.settings
        self.train_loader, self.valid_loader = experiment.train_loader, experiment.valid_loader
        self.callbacks = experiment.callbacks

        # What a step uses; everything below this class is given the state, never the trainer.
        self.state = state = build_state(experiment)
        self.device, self.model, self.precision = state.device, state.model, state.precision
        self.losses, self.metrics, self.meters = state.losses, state.metrics, state.meters
        self.optimizers, self.schedules = state.optimizers, state.schedules
        self.steppers, self.window, self.finite = state.steppers, state.window, state.finite
        self.progress, self.monitor, self.ema = state.progress, state.monitor, state.ema
        self.capture, self.epoch_rows = state.capture, state.epoch_rows
        self.stateful, self.valid_metrics = state.stateful, state.valid_metrics

        memory, length = self.config["memory"], (experiment.steps_per_epoch, experiment.total_steps)
        self.offload = offload_activations(memory["offload_activations"], self.device)
        self.empty_cache = EmptyCache(memory["empty_cache"], *length)
        self.save_every = Every(self.settings.save_every, *length)
        self.log_every = Every(self.settings.log_every, *length)
        gradients_every = self.settings.loss_gradients
        self._gradients_every = gradients_every and parse_duration(gradients_every).in_steps(
            *length
        )

        self.signals, self.clock = SignalFlags(), Clock()
        self.epoch_start = EpochStart(
            state,
            self._prepare_epoch,
            self.callbacks,
            has_own=type(self).begin_epoch is not BaseTrainer.begin_epoch,
            seed=self.config["seed"],
            owners=lambda: owners_of_attributes(
                self, self.callbacks.values(), (self.train_loader, self.valid_loader)
            ),
        )
        epoch_start = self.epoch_start if self.epoch_start.is_used else None
        self.stateful.update(parts_with_state(state, self.callbacks, epoch_start))
        self.recovery = Recovery(
            state, self.settings, self.config, self.epoch_start, self._run_again
        )
        self.run = Run(RunLog(self.settings))  # until `train` is given one
        self._has_started = False
        self._phase_loader = self.train_loader
        self._predicts_by_batch = takes_batch(self.predict)
        self._n_samples: int | None = None  # of the batch, or the part, that is computed

    @property
    @final
    def folder(self) -> Path | None:
        """The run's folder; None before training, and where no files are written."""
        return self.run.folder

    @property
    @final
    def store(self) -> CheckpointStore | None:
        """The run's checkpoints."""
        return self.run.store

    @property
    @final
    def writers(self) -> Writers:
        """Where the run's numbers and images go."""
        return self.run.log.writers

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
        values = self.total(self.compute_losses(outputs, batch))
        self.backward(values["loss"])
        self.update(again=lambda: self.compute_losses(self.forward(batch), batch))
        self.measure(outputs, batch)
        return values

    def valid_step(self, batch: Any) -> Values:
        """Evaluate one batch, without gradients; return the values to log."""
        outputs = self.forward(batch)
        losses = with_total(self.compute_losses(outputs, batch), self.state.all_losses)
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
    def total(self, losses: Mapping[str, Any]) -> Values:
        """Return losses to log with their weighted sum, ``"loss"``, which is to be minimised.

        Args:
            losses: what ``compute_losses`` returned; a ``"loss"`` among them is taken as the sum.
        """
        values = with_total(losses, self.state.all_losses, self.progress.step)
        if self._gradients_every:
            values.update(due_gradients(self.state, losses, self._gradients_every))
        return values

    @final
    def backward(
        self,
        loss: Tensor | Sequence[Tensor] | LossTerms,
        only: str | None = None,
        retain_graph: bool = False,
    ) -> None:
        """Add the gradients of ``loss``, for the parameters of the optimizer ``only`` if given.

        Precision, loss scaling and accumulation are handled here. Of several losses each has a
        backward pass of its own, as have the losses of a sum where ``trainer.backward`` says so;
        the graph they share is kept until the last pass. The terms of one loss are summed.
        """
        losses = backward_passes(loss, self.settings.backward != "sum")
        stepper, is_full = choose_stepper(self.steppers, only), self.window.is_full
        inputs = None if only is None else stepper.trainable
        for number, part in enumerate(losses, start=1):
            share = self.window.share(part)
            self.finite.watch(share)
            if stepper.in_backward is not None and is_full:
                self.recovery.refuse_nonfinite()  # after the pass it is too late
            keep, stepping = retain_graph or number < len(losses), stepper.stepping(is_full)
            with self.capture.backward(stepper.scaler), self.precision.full(), stepping:
                stepper.scaler.scale(share).backward(inputs=inputs, retain_graph=keep)
        self.recovery.refuse_nonfinite()

    @final
    def update(self, name: str | None = None, again: Callable[[], Values] | None = None) -> None:
        """Step an optimizer at the end of an accumulation window: clip, step, clear.

        At a step that its ``every:`` leaves out, the gradients are dropped instead.

        Args:
            name: which optimizer; not needed where there is one.
            again: computes the losses again, for LBFGS, which needs them several times a step.
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
        experiment: Experiment | None = getattr(self, "experiment", None)
        if experiment is None:
            text = "call super().__init__(experiment) before self.build(...)"
            raise ConfigError([Problem("", text)])
        assert experiment.build_section is not None  # `build_experiment` gives it
        return experiment.build_section(experiment, kind, section)

    @final
    def only(self, name: str) -> AbstractContextManager[None]:
        """Return a context in which the other optimizers' parameters collect no gradients."""
        return only(self.steppers, name)

    @final
    def measure(self, outputs: Any, batch: Any) -> None:
        """Let the metrics see the predictions for a batch."""
        if self.state.phase_metrics:
            with torch.no_grad():
                more = (batch,) if self._predicts_by_batch else ()
                predictions, batch = self.in_own_unit(self.predict(outputs, *more), batch)
                target = target_of(batch, self.config["batch"])
                for metric in self.state.phase_metrics.values():
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
    def train(self, run: Run) -> Values:
        """Train to the end, from the start or from where a run was resumed.

        Args:
            run: where to write; `base.run.session.open_run` opens it and restores the state.

        Returns:
            The values of the last epoch, and those of the test phase.

        Raises:
            InterruptedRunError: a signal asked for a stop; the state is saved.
            TrainingError: a loss was not finite; the last checkpoint stays valid.
        """
        values: Values = {}
        with ExitStack() as stack:
            self._begin(run, stack)
            try:
                while not self.is_finished():
                    values = {**self.train_epoch(), **self.validate()}
                    self.end_epoch(values)
                self.save(values)
                values = {**values, **run.finish()}
            except StopRequested:
                self.save()
                raise InterruptedRunError(
                    self.signals.stop, run.folder, self.progress.step
                ) from None
        return values

    @final
    def train_epoch(self) -> Values:
        """Train on what is left of the epoch; return the means over all of it."""
        self.clock.lap("logging")  # of the end of the epoch before
        self.epoch_start.begin()
        self.state.phase_metrics = self.metrics if self.settings.train_metrics else {}
        self._phase_loader = self.train_loader
        with self.run.log.bar(
            self.progress, self.experiment.batches_per_epoch, lambda: self.state.last_values
        ) as bar:
            for part, n_samples, results, guard in self._parts_of_epoch(bar):
                self._n_samples = n_samples
                with self.recovery.attempt(part), self.precision.autocast(), self.offload(), guard:
                    values = StepValues(self.train_step(part), n_samples)
                    values.add_to(self.meters)
                    results.append(values)
                    self._note_losses(part, values)
                del part  # nothing of a step lives on beside the next batch
        return summarise("train", self.meters, self.state.phase_metrics)

    def _parts_of_epoch(self, bar: ProgressBar) -> Iterator[Any]:
        """Yield what is left of the epoch, part by part; end a step behind its last part.

        With each part come its number of samples, the list for its values, and its step's context.
        """
        first, count = self.progress.batches_total, self.experiment.batches_left(self.progress)
        for batch in self.recovery.batches(self._read, first, count):
            self.window.place(self.progress.batches_total - first, count)
            self.capture.start(self.progress.step + 1)
            is_first = self.progress.batches_total == 0
            results: list[StepValues] = []
            parts = self.window.parts(batch, self.progress.batches_total)
            del batch
            for part, n_samples in parts:
                held = [part]
                del part
                guard = self.run.guard_first_step() if is_first else NOTHING
                yield held.pop(), n_samples, results, guard
            del parts
            self.progress.advance(self.window.n_samples)
            if results:
                self.state.last_values = values_of(results, self.device)
            bar.update()
            if self.window.is_full:
                self.end_step(self.state.last_values)

    @final
    def end_step(self, values: Mapping[str, Any]) -> None:
        """Do what belongs to a step boundary: schedule, thaw, average, log, save, stop."""
        self.progress.step += 1
        self.progress.rates = learning_rates(self.optimizers)  # those that this step used
        for schedule in self.schedules.values():
            schedule.after_step()
        self.state.freezing.after_step(self.progress.step)
        self.empty_cache.after_step(self.progress.step)
        is_made = self.recovery.end_step()
        if self.ema is not None and is_made:
            self.ema.update()
        self.clock.lap("compute")
        if is_made and self.log_every.is_due_at_step(self.progress.step):
            self.run.log.log_step(values, self.progress)
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
            self.run.check_first_step(summarise("train", self.meters, self.state.phase_metrics))
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
        count = self.experiment.batches_to_evaluate(loader, phase, max_batches)
        metrics = self.state.phase_metrics = self.state.valid_metrics
        self._phase_loader = loader
        for metric in metrics.values():
            metric.reset()
        seed = derive_seed(self.config["seed"], phase, self.progress.epoch)
        averaged = NOTHING if self.ema is None else self.ema.swapped_in()
        self.model.eval()
        with isolated_random_state(seed), averaged, torch.inference_mode():
            positions = iter(range(count))
            for batch in self._on_device(loader.batches(0, count)):
                if self.signals.stop:
                    raise StopRequested
                self._n_samples = n_samples = count_samples(batch, next(positions))
                with self.recovery.attempt(batch), self.precision.autocast():
                    values = StepValues(self.valid_step(batch), n_samples)
                values.add_to(meters)
                del batch
            return summarise(phase, meters, metrics)

    @final
    def end_epoch(self, values: Values) -> None:
        """Schedule, compare, log and save."""
        is_whole = self.progress.batch >= self.experiment.batches_per_epoch
        if is_whole:
            for schedule in self.schedules.values():
                schedule.after_epoch(values)
        is_best = self.monitor.update(values, self.progress.epoch + 1)
        self._saved_at = None  # a state of this very step does not know of it
        values.update(self.run.log.log_epoch(values, self.progress, is_best, self.clock))
        for callback in self.callbacks.values():
            callback.on_epoch_end(self, values)
        self.progress.closed_at = self.progress.step
        if is_whole:  # not where the last of all steps falls into the middle of an epoch
            if self.state.sampler is not None:
                self.state.sampler.end_epoch(self.progress.epoch)
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
            is_best=is_best, facts={"config": self.config.to_yaml(), "data": self.run.data},
        )  # fmt: skip
        self._saved_at = position

    # --- What the recipe needs -------------------------------------------------------------------

    def _begin(self, run: Run, stack: ExitStack) -> None:
        """Take on a run; start the callbacks, which end with it."""
        self.run, self.recovery.folder = run, run.folder
        self.callbacks.update(run.callbacks)
        for callback in self.callbacks.values():
            stack.callback(callback.on_end, self)
            callback.on_start(self)
        self._has_started = True
        self.clock.start()

    def _prepare_epoch(self) -> None:
        """Call what is the user's at the start of an epoch."""
        self.begin_epoch()
        for callback in self.callbacks.values():
            # Before `on_start`, and without a folder, one may fail; training shows why.
            with nullcontext() if self._has_started else suppress(Exception):
                callback.on_epoch_start(self)

    def _read(self, first: int, count: int) -> Iterator[Any]:
        """Yield training batches on the device; those of a window are read before its first one."""
        batches = self.train_loader.batches(first, count)
        return self._on_device(self.window.read_ahead(batches, first))

    def _on_device(self, batches: Iterator[Any]) -> Iterator[Any]:
        rules = self.config["batch"]
        if rules["weight"] is not None:
            batches = checked_weights(batches, rules)
        return feed(batches, self.device, self.config["memory"]["prefetch"], self.clock)

    @final
    def try_step(self, batch: Any) -> Values:
        """Make the forward and the backward pass of a step, within a `trial`."""
        with self.precision.autocast(), self.offload():
            return self.train_step(batch)

    def _run_again(self, part: Any) -> Values:
        with trial(self.state, self):
            return self.try_step(part)

    def _note_losses(self, part: Any, values: StepValues) -> None:
        if self.state.sampler is not None and self.state.sampler.wants_losses:
            note_losses(self.state.sampler, ids_of(part, self.config["batch"]), values)
