"""The training loop. Read this file first, from `train` downwards.

The methods that a project overrides follow the loop, then the tools that these methods call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from base.checkpoint.data_record import class_names
from base.checkpoint.store import CheckpointStore
from base.config.durations import parse_duration
from base.data.batch import SampleCount, Targets, ids_of, inputs_of, target_of
from base.data.device_feed import feed
from base.data.sample_items import checked_weights
from base.distributed.agreement import Kind
from base.distributed.buffers import BufferMeans
from base.distributed.group import World
from base.errors import ConfigError, Problem
from base.names.final_methods import INSTEAD_IN_TRAINERS, OF_PYTORCH_TEMPLATE, refuse_overridden
from base.network.activations import offload_activations
from base.network.compilation import mark_steps, uses_cuda_graphs
from base.network.layout import EmptyCache
from base.system.contexts import NO_CONTEXT, together
from base.system.seeding import derive_seed, isolated_random_state
from base.system.signals import InterruptedRunError, SignalFlags
from base.training.accumulation import Every, Outcome
from base.training.batch_arguments import takes_batch
from base.training.epoch_start import EpochStart, owners_of_attributes
from base.training.epoch_time import Clock
from base.training.experiment import Experiment
from base.training.loss_gradients import due_gradients
from base.training.loss_terms import LossTerms
from base.training.losses import lone_total
from base.training.metrics import update_all
from base.training.optimizer_step import Stepper, choose_stepper, only
from base.training.parameter_groups import highest_rate, learning_rates
from base.training.rank_states import gather_state
from base.training.recovery import Recovery
from base.training.requests import Requests
from base.training.results import (
    StepValues,
    backward_passes,
    means_of,
    record_sample_losses,
    summarise,
    with_total,
)
from base.training.run_log import Run, RunLog
from base.training.state import build_state, checked_parts, parts_with_state
from base.training.swa import StochasticWeightAverage
from base.training.trials import trial
from logger.meters import Meters, as_numbers
from logger.progress import ProgressBar
from logger.writers import Writers

Values = dict[str, Any]


class StopRequested(Exception):  # noqa: N818  (not an error)
    """Leaves the loop between two steps, where the state can be saved."""


class BaseTrainer:
    """Trains, validates, saves and resumes. `train` runs this loop::

        while not is_finished():
            begin_epoch()
            for batch in train_loader:
                train_step(batch)  # forward, compute_losses, total, backward, update, measure
                end_step()         # schedules, EMA, log, callbacks, checkpoint
            for batch in valid_loader:
                valid_step(batch)
            end_epoch()            # schedules, best epoch, log, callbacks, checkpoint
        save()

    A step may take several batches (``memory.accumulate``) or pass a batch to `train_step` in
    parts (``memory.micro_batch``); `end_step` follows the last of them. A resumed run continues
    with the batch after its checkpoint.

    Args:
        experiment: everything that the config names, built.
    """

    _saved_position: Values | None = None  # the progress that the last checkpoint holds

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_overridden(cls, INSTEAD_IN_TRAINERS, OF_PYTORCH_TEMPLATE)

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.config, self.settings = experiment.config, experiment.settings
        self.batch_rules, memory = self.config["batch"], self.config["memory"]
        self.train_loader, self.valid_loader = experiment.train_loader, experiment.valid_loader
        self.callbacks = experiment.callbacks

        # The state holds what a step uses. Functions below this class take it, never the trainer.
        self.training_state = state = build_state(experiment)
        self.device, self.model, self.precision = state.device, state.model, state.precision
        self.losses, self.metrics, self.meters = state.losses, state.metrics, state.meters
        self.optimizers, self.schedules = state.optimizers, state.schedules
        self.steppers, self.window, self.finite = state.steppers, state.window, state.finite
        self.progress, self.monitor, self.ema = state.progress, state.monitor, state.ema
        self.capture, self.epoch_rows = state.capture, state.epoch_rows
        self.stateful = state.stateful

        length = experiment.length
        self.offload = offload_activations(memory["offload_activations"], self.device)
        self.empty_cache = EmptyCache(memory["empty_cache"], length)
        self._changing = [each for each in (state.freezing, self.empty_cache) if each.is_used]
        self.save_every = Every(self.settings.save_every, length)
        self.log_every = Every(self.settings.log_every, length)
        every = self.settings.loss_gradients
        self._gradients_every = every and parse_duration(every).in_steps(length)

        self.signals, self.clock = SignalFlags(), Clock()
        self._requests = Requests(self.world, self.signals, self.save_every)
        self.window.requests, self.window.on_message = self._requests.send, self._requests.receive
        self.window.next_step = lambda: self.progress.step + 1
        self.epoch_start = EpochStart(
            state,
            self._call_epoch_start,
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
            state, self.settings, self.config, self.epoch_start, self._repeat_step, self.world
        )
        self.current_run, self._has_started = Run(RunLog(self.settings)), False  # see `train`
        steppers = self.steppers.values()
        self._has_plain_passes = (
            self.world.size == 1
            and self.settings.backward == "sum"
            and not self.precision.is_reduced
            and not any(each.is_scaled or each.in_backward is not None for each in steppers)
        )
        """Whether a backward pass needs no scaling, no other context and no other ranks."""
        self._phase_loader = self.train_loader
        self._predict_takes_batch = takes_batch(self.predict)
        self._n_samples: int | None = None  # in the current batch or micro-batch
        self._last_results: list[StepValues] = []  # of the last batch
        self._buffer_means: BufferMeans | None = None  # with several ranks
        self._rank_counts: deque[int] = deque()  # this rank's samples of the batches in evaluation

    # --- The loop --------------------------------------------------------------------------------

    @final
    def train(self, run: Run) -> Values:
        """Train to the end, from the start or from where a run was resumed.

        Args:
            run: the run to log and save to; `open_run` opens it and restores the state.

        Returns:
            The values of the last epoch, and those of the test phase.

        Raises:
            InterruptedRunError: a signal stopped the run; its state is saved.
            TrainingError: a loss is not finite; the last checkpoint remains valid.
        """
        values: Values = {}
        with ExitStack() as stack:
            self._start_run(run, stack)
            try:
                while not self.is_finished():
                    values = {**self.train_epoch(), **self.validate()}
                    self.end_epoch(values)
                self.save(values)
                values = {**values, **run.finish()}
            except StopRequested:
                self.save()
                raise InterruptedRunError(
                    self._requests.stop, run.folder, self.progress.step
                ) from None
        return values

    @final
    def train_epoch(self) -> Values:
        """Train on the batches left in the epoch; return the means over the whole epoch."""
        self.clock.lap("logging")  # of the previous epoch
        self.epoch_start.begin()
        self.training_state.phase_metrics = self.metrics if self.settings.train_metrics else {}
        self._phase_loader = self.train_loader
        sampler = self.training_state.sampler
        learns = sampler is not None and sampler.wants_losses
        is_alone = not self.world.is_active
        with self.current_run.log.bar(
            self.progress,
            self.experiment.batches_per_epoch,
            lambda: self.training_state.last_values,
        ) as bar:
            for micro_batch, n_samples, results, context in self._micro_batches(bar):
                self._n_samples = n_samples
                if self.recovery.notes_attempts:
                    self.recovery.begin_attempt(micro_batch)
                try:
                    with context:
                        values = StepValues(self.train_step(micro_batch), n_samples, learns)
                        if n_samples and (is_alone or not self.recovery.is_failing):
                            results.append(values)
                            values.add_to(self.meters)
                            if learns:
                                self._update_sampler(micro_batch, values)
                except BaseException as error:
                    if not self.recovery.handle(error, micro_batch):
                        raise
                del micro_batch  # frees the memory of this step before the next batch arrives
                self._n_samples = None
        return self._summarise("train", self.meters)

    @final
    def end_step(self, values: Mapping[str, Any]) -> None:
        """Finish a step: schedules, unfreezing, averages, logging, callbacks, checkpoint, stop."""
        progress, run = self.progress, self.current_run
        progress.step = step = progress.step + 1
        is_made = self.recovery.end_step()
        is_logged = is_made and self.log_every.is_due_at_step(step)
        progress.rates = learning_rates(self.optimizers)  # that this step used
        for schedule in self.schedules.values():
            schedule.after_step()
        for each in self._changing:
            each.after_step(step)
        if self._buffer_means is not None and is_made:
            share = self.window.n_own / max(self.window.n_counted, 1)
            self._buffer_means.average(self.world, share, step)
        if self.ema is not None and is_made and self.ema.is_due(step):
            self.ema.update()
        if is_logged or self.callbacks or self.capture.is_recording:
            self._report_step(values if is_logged else None)
        if run.store is not None:
            run.store.background.check()  # raises the error of a background save
        if self._requests.save_is_due(step):
            self.clock.lap("compute")
            self.save()
            self.clock.lap("logging")
        if step == progress.skipped + 1 and is_made:
            self.current_run.check_first_step(self._summarise("train", self.meters))
        if self._requests.stop:
            raise StopRequested

    @final
    def _report_step(self, values: Mapping[str, Any] | None) -> None:
        """Log the values of a step, if they are given, and call what follows a step."""
        self.clock.lap("compute")
        if values is not None:
            numbers = as_numbers(self._of_all_ranks(values))  # waits for the device
            self.recovery.refuse_late()
            self.current_run.log.log_step(numbers, self.progress)
        self.capture.finish(self.writers)
        for callback in self.callbacks.values():
            callback.on_step_end(self)
        self.clock.lap("logging")

    @final
    def validate(self) -> Values:
        """Evaluate on the validation data if ``trainer.validate_every`` includes this epoch."""
        self._measure_statistics()
        is_due = (self.progress.epoch + 1) % self.settings.validate_every == 0
        if self.valid_loader is None or not is_due:
            return {}
        return self.evaluate(self.valid_loader, "valid")

    @final
    def _measure_statistics(self) -> None:
        """Measure BatchNorm's statistics for weights that ``trainer.swa`` has averaged.

        The batches of the epoch are read again. Weights and random streams do not change.
        """
        if not isinstance(self.ema, StochasticWeightAverage) or not self.ema.needs_statistics:
            return
        count, seed = self.progress.batch, derive_seed(self.config["seed"], "swa")
        batches = self.train_loader.batches(self.progress.batches_total - count, count)
        with isolated_random_state(seed), self.ema.recomputed(), torch.no_grad():
            for batch in self._copy_to_device(batches):
                if self._requests.stop:
                    raise StopRequested
                with self.precision.autocast():
                    self.forward(batch)

    @final
    def evaluate(self, loader: Any, phase: str, max_batches: int | None = None) -> Values:
        """Return losses and metrics over a loader; weights and random streams do not change."""
        self.recovery.refuse_late()
        meters = Meters(self.device)
        count_samples = SampleCount(self.config["batch"], loader)
        count = self.experiment.batches_to_evaluate(loader, phase, max_batches)
        metrics = self.training_state.phase_metrics = self.training_state.valid_metrics
        self._phase_loader = loader
        for metric in metrics.values():
            metric.reset()
        seed = derive_seed(self.config["seed"], phase, self.progress.epoch)
        averaged = NO_CONTEXT if self.ema is None else self.ema.swapped_in()
        self.model.eval()
        # What the ranks gather in inference mode could not be used in training.
        no_grad = torch.no_grad if self.world.is_sharded else torch.inference_mode
        with isolated_random_state(seed), averaged, no_grad():
            positions = iter(range(count))
            for batch in self._copy_to_device(self._evaluated(loader, count, count_samples)):
                if self._requests.stop:
                    raise StopRequested
                position = next(positions)
                counts = self._rank_counts
                n_samples = counts.popleft() if counts else count_samples(batch, position)
                self._n_samples = n_samples
                try:
                    with self.precision.autocast():
                        values = StepValues(self.valid_step(batch), n_samples)
                except BaseException as error:
                    if not self.recovery.handle(error, batch):
                        raise
                if n_samples:  # else the sample is borrowed, so that all ranks make the same calls
                    values.add_to(meters)
                self._end_batch()
                del batch
            self._n_samples = None
            return self._summarise(phase, meters)

    @final
    def _evaluated(self, loader: Any, count: int, count_samples: SampleCount) -> Iterator[Any]:
        """Yield the batches of an evaluation; several ranks exchange requests before each."""
        self._rank_counts.clear()
        if not self.world.is_active:
            yield from loader.batches(0, count)
            return
        n_sent = 0
        for batch in loader.batches(0, count):
            self._rank_counts.append(count_samples.of_rank(batch, n_sent))
            self._requests.exchange(Kind.VALID, n_sent)
            n_sent += 1
            yield batch
            del batch
        for position in range(n_sent, count):  # a stream that ended early
            self._requests.exchange(Kind.VALID, position)

    @final
    def _end_batch(self) -> None:
        """End a batch of all ranks in the metrics."""
        if self.world.is_active:
            for metric in self.training_state.phase_metrics.values():
                metric.end_batch()

    @final
    def _highest_rate(self) -> float | None:
        """Return the highest rate of the last step among the groups that it trained."""
        freezing, step = self.training_state.freezing, self.progress.step - 1
        groups = [group for one in self.optimizers.values() for group in one.param_groups]
        rates = list(self.progress.rates.values())
        return highest_rate(rates, groups, lambda parameter: freezing.is_trained(parameter, step))

    @final
    def end_epoch(self, values: Values) -> None:
        """Finish an epoch: schedules, best epoch, logging, callbacks, checkpoint, stop."""
        is_whole = self.progress.batch >= self.experiment.batches_per_epoch
        self._requests.exchange(Kind.EPOCH, self.progress.step)
        if is_whole:
            for schedule in self.schedules.values():
                schedule.after_epoch(values)
        is_best = self.monitor.update(values, self.progress.epoch + 1)
        self._saved_position = None  # a checkpoint of this step does not hold the new best value
        log, rate = self.current_run.log, self._highest_rate()
        values.update(log.log_epoch(values, self.progress, is_best, self.clock, rate))
        for callback in self.callbacks.values():
            callback.on_epoch_end(self, values)
        self.progress.closed_at = self.progress.step
        if is_whole:  # with `trainer.steps`, training may end within an epoch
            if self.training_state.sampler is not None:
                self.training_state.sampler.end_epoch(self.progress.epoch)
            self.progress.start_next_epoch()
            for sums in (self.meters, *self.metrics.values()):
                sums.reset()
        if is_best or (is_whole and self.save_every.is_due_after_epoch(self.progress.epoch)):
            self.save(values, is_best)
        self._wait_for_all(Kind.EPOCH)
        if self._requests.stop and not self.is_finished():
            raise StopRequested

    @final
    def is_finished(self) -> bool:
        """Return whether all steps are done and validated, or early stopping ended training."""
        is_closed = self.progress.closed_at == self.progress.step
        is_long_enough = self.progress.step >= self.experiment.total_steps
        return (is_long_enough and is_closed) or self.monitor.is_exhausted

    @final
    def save(self, values: Values | None = None, is_best: bool = False) -> None:
        """Write a checkpoint of ``stateful``, unless the last one holds this very state."""
        position = self.progress.state_dict()
        if position == self._saved_position:
            return
        self.recovery.keep()
        if self.folder is None:
            return
        state = gather_state(self.stateful, self.world)  # by all ranks; rank 0 writes it, or all
        if self.store is not None:
            self.store.save(
                state, step=self.progress.step, epoch=self.progress.epoch, metrics=values or {},
                is_best=is_best,
                facts={"config": self.config.to_yaml(), "data": self.current_run.data},
            )  # fmt: skip
        self._wait_for_all(Kind.SAVE)
        self._saved_position = position

    # --- Yours to override, from the most common to the rarest -----------------------------------

    def forward(self, batch: Any) -> Any:
        """Call the model on the inputs of a batch; ``batch:`` in the config selects them."""
        args, kwargs = inputs_of(batch, self.batch_rules)
        return self.model(*args, **kwargs)

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Any]:
        """Return the losses by name. ``"loss"`` is minimised; without it, their weighted sum is.

        A loss of several terms is a nested dict. Plain numbers are only logged.
        """
        target = target_of(batch, self.batch_rules)
        return {name: loss(outputs, target, batch=batch) for name, loss in self.losses.items()}

    def predict(self, outputs: Any) -> Any:
        """Return the predictions that metrics compare with the target.

        Define it as ``predict(outputs, batch)`` to receive the batch too. If the data set
        standardises its targets, predictions and targets are then converted to their own unit.
        """
        return outputs

    def train_step(self, batch: Any) -> Values:
        """Train on one batch; return the values to log. Override it to train several networks."""
        outputs = self.forward(batch)
        values = self.total(self.compute_losses(outputs, batch))
        self.backward(values["loss"])
        self.update(again=lambda: self.compute_losses(self.forward(batch), batch))
        self.measure(outputs, batch)
        return values

    def valid_step(self, batch: Any) -> Values:
        """Evaluate one batch without gradients; return the values to log."""
        outputs = self.forward(batch)
        losses = with_total(self.compute_losses(outputs, batch), self.training_state.all_losses)
        self.measure(outputs, batch)
        return losses

    def begin_epoch(self) -> None:
        """Prepare the epoch ``self.progress.epoch``, counted from 0; the model is in training mode.

        It is called again when a run resumes within an epoch, for the checks before training
        (``self.folder`` is None then) and for a test. Registered objects and other saved state
        are restored after these calls. Random numbers depend on the seed and the epoch only.
        """

    # --- Tools of a step -------------------------------------------------------------------------

    @final
    def total(self, losses: Mapping[str, Any]) -> Values:
        """Return the losses with ``"loss"``, their weighted sum, which is to be minimised.

        Args:
            losses: the result of ``compute_losses``; if it has a ``"loss"``, this is the sum.
        """
        all_losses = self.training_state.all_losses
        if not self._gradients_every and (lone := lone_total(losses, all_losses)) is not None:
            return {"loss": lone}  # the common case
        values = with_total(losses, all_losses, self.progress.step)
        if self._gradients_every:
            values.update(due_gradients(self.training_state, losses, self._gradients_every))
        return values

    @final
    def backward(
        self,
        loss: Tensor | Sequence[Tensor] | LossTerms,
        only: str | None = None,
        retain_graph: bool = False,
    ) -> None:
        """Accumulate the gradients of ``loss``; with ``only``, those of one optimizer's parameters.

        This method handles precision, loss scaling and accumulation. Each loss of a sequence has
        its own backward pass, as has each loss of a sum if ``trainer.backward`` asks for it; the
        shared graph is retained until the last pass. The terms of one loss are summed.
        """
        is_plain = self._has_plain_passes and len(self.steppers) == 1 and only is None
        is_partial = self.window.is_shared or self.capture.is_recording
        is_common = is_plain and not is_partial
        if is_common and isinstance(loss, Tensor) and not loss.dim():
            self.finite.watch(loss, self.recovery.loss_facts)
            loss.backward(retain_graph=retain_graph)
            self.recovery.refuse_nonfinite()
            return
        stepper = choose_stepper(self.steppers, only)
        inputs = None if only is None else stepper.trainable
        losses, world = backward_passes(loss, self.settings.backward != "sum"), self.world
        is_full = self.window.is_full
        for number, part in enumerate(losses, start=1):
            share = self.window.share(part)
            self.finite.watch(share, self.recovery.loss_facts)
            if stepper.in_backward is not None and is_full:
                self.recovery.refuse_nonfinite()  # the pass below updates the parameters
            is_last = number == len(losses)
            summed = self._summed(only) if world.is_active and is_last else NO_CONTEXT
            scaled = stepper.scaler.scale(share) if stepper.is_scaled else share
            with self._around_backward(stepper, summed):
                scaled.backward(inputs=inputs, retain_graph=retain_graph or not is_last)
        if not world.is_active:  # else all ranks agree in `update`
            self.recovery.refuse_nonfinite()

    @final
    def update(self, name: str | None = None, again: Callable[[], Values] | None = None) -> None:
        """Clip the gradients, step an optimizer and clear the gradients.

        Does nothing before the last part of an accumulation window. At a step that
        ``every:`` of the optimizer leaves out, the gradients are cleared only.

        Args:
            name: the optimizer; may be omitted if there is one.
            again: computes the losses again, for LBFGS, which evaluates them several times a step.
        """
        stepper = choose_stepper(self.steppers, name)
        if again is None:
            stepper.check(again)
        if not self.window.is_full:
            return
        if stepper.every == 1 or self.is_due(name):
            if self.world.is_active:
                self.recovery.agree(name or next(iter(self.steppers)))
            elif self.window.is_deferred:
                self.window.correct(stepper.optimizer)
            self.recovery.before_update(stepper)
            if self.capture.is_recording:
                self.capture.read_parameters(stepper.parameters, stepper.scaler)
            if values := stepper.step(self.progress.step, again):
                self.meters.update(values)
        else:
            if self.world.is_active:
                self.recovery.agree(None)
            stepper.clear()

    @final
    def _around_backward(
        self, stepper: Stepper, summed: AbstractContextManager[Any]
    ) -> AbstractContextManager[Any]:
        """Return the context of a backward pass; most steps need none."""
        is_plain = stepper.in_backward is None and summed is NO_CONTEXT
        if is_plain and not (self.capture.is_recording or self.precision.is_reduced):
            return NO_CONTEXT
        recording = self.capture.backward(stepper.scaler)
        stepping = stepper.stepping(self.window.is_full)
        return together([recording, self.precision.full(), stepping, summed])

    @final
    def _summed(self, name: str | None) -> AbstractContextManager[None]:
        """Return the context of a backward pass whose gradients `update` sums over all ranks."""
        if not self.window.is_full or not self.is_due(name):
            return NO_CONTEXT
        return self.training_state.sums.overlapped(name or next(iter(self.steppers)))

    @final
    def is_due(self, name: str | None = None) -> bool:
        """Return whether an optimizer steps in the current step, by its ``every:``."""
        return (self.progress.step + 1) % choose_stepper(self.steppers, name).every == 0

    @final
    def only(self, name: str) -> AbstractContextManager[None]:
        """Return a context in which the parameters of other optimizers require no gradients."""
        return only(self.steppers, name)

    @final
    def measure(self, outputs: Any, batch: Any) -> None:
        """Update the metrics with the predictions for a batch."""
        metrics = self.training_state.phase_metrics
        if not metrics or self._n_samples == 0 or self.recovery.is_failing:
            return
        predictions, predict = outputs, self.predict
        is_yours = getattr(predict, "__func__", None) is not BaseTrainer.predict
        if is_yours or getattr(self._phase_loader, "target_scale", None) is not None:
            with torch.no_grad():
                more = (batch,) if self._predict_takes_batch else ()
                predictions, batch = self.in_own_unit(predict(outputs, *more), batch)
        target = target_of(batch, self.batch_rules)
        update_all(metrics, predictions, target, batch, self._n_samples)

    @final
    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all ranks, concatenated along the first dimension, on each rank.

        All ranks must call it. Their tensors may differ in the size of the first dimension. That of
        a rank which has no sample of the batch, and has borrowed one, is left out.
        """
        if not self.world.is_active:
            return tensor
        if self._n_samples == 0:
            tensor = tensor[:0]
        parts = self.world.all_gather(tensor.detach().cpu())
        return torch.cat(parts).to(tensor.device)

    @final
    def in_own_unit(self, predictions: Any, batch: Any) -> tuple[Any, Any]:
        """Return predictions and batch with standardised targets converted to their own unit."""
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

    # --- Tools for your __init__ -----------------------------------------------------------------

    @final
    def register(self, name: str, value: Any) -> None:
        """Save an object in checkpoints and restore it on resume.

        Args:
            value: an object with ``state_dict`` and ``load_state_dict``, or a dict of such objects.

        Raises:
            ConfigError: the name is taken, or the object lacks one of these methods.
        """
        if not hasattr(self, "stateful"):
            text = "call super().__init__(experiment) before self.register(...)"
            raise ConfigError([Problem("trainer", f"{type(self).__name__}: {text}")])
        try:
            self.stateful.update(checked_parts(name, value, self.stateful))
        except ValueError as error:
            text = f"{type(self).__name__}: {error}"
            raise ConfigError([self.config.problem(("trainer",), text)]) from None

    @final
    def build(self, kind: str, section: Any) -> Any:
        """Build a section of your own: ``self.build("loss", self.config["extra"]["auxiliary"])``.

        The section is checked as those of the config are. Losses, metrics, models and loaders are
        returned as the trainer's own are, on its device.

        Args:
            kind: model, loss, metric, data_loader, dataset, transform, callback or init.
            section: ``{type, args}`` or a name alone.

        Raises:
            ConfigError: the kind or name is unknown, or the arguments do not fit.
        """
        experiment: Experiment | None = getattr(self, "experiment", None)
        if experiment is None:
            text = "call super().__init__(experiment) before self.build(...)"
            raise ConfigError([Problem("", text)])
        assert experiment.build_section is not None  # `build_experiment` sets it
        return experiment.build_section(experiment, kind, section)

    # --- The run ---------------------------------------------------------------------------------

    @property  # type: ignore[misc]  # mypy takes a setter for an overload
    @final
    def folder(self) -> Path | None:
        """The run's folder; None before training and for runs that write no files."""
        return self.current_run.folder

    @folder.setter
    def folder(self, _: Any) -> None:
        self._refuse_assignment("folder")

    @property  # type: ignore[misc]  # mypy takes a setter for an overload
    @final
    def store(self) -> CheckpointStore | None:
        """The run's checkpoints."""
        return self.current_run.store

    @store.setter
    def store(self, _: Any) -> None:
        self._refuse_assignment("store")

    @property  # type: ignore[misc]  # mypy takes a setter for an overload
    @final
    def writers(self) -> Writers:
        """The writers of the run's numbers and images."""
        return self.current_run.log.writers

    @writers.setter
    def writers(self, _: Any) -> None:
        self._refuse_assignment("writers")

    @property  # type: ignore[misc]  # mypy takes a setter for an overload
    @final
    def world(self) -> World:
        """The processes that train the model: ``rank``, ``size`` and ``is_main``."""
        return self.experiment.world

    @world.setter
    def world(self, _: Any) -> None:
        self._refuse_assignment("world")

    @property
    def valid_metrics(self) -> dict[str, Any]:
        """The metrics of validation and test, by name."""
        return self.training_state.valid_metrics

    @valid_metrics.setter
    def valid_metrics(self, metrics: dict[str, Any]) -> None:
        self.training_state.valid_metrics = metrics

    @final
    def _refuse_assignment(self, name: str) -> None:
        """Raise an error that says what to use instead of an attribute of the run."""
        advice = INSTEAD_IN_TRAINERS[name]
        text = f"{type(self).__name__} sets self.{name}, which the run sets: {advice}"
        raise ConfigError([self.config.problem(("trainer", "type"), text)])

    @property
    @final
    def has_plain_step(self) -> bool:
        """Whether `train_step` is the default one, which trains one network."""
        return type(self).train_step is BaseTrainer.train_step

    # --- Parts of the loop -----------------------------------------------------------------------

    @final
    def _start_run(self, run: Run, stack: ExitStack) -> None:
        """Attach a run and start its callbacks; they end with ``stack``."""
        self.current_run, self.recovery.folder = run, run.folder
        if self.world.is_active:
            losses = [loss.function for loss in self.experiment.all_losses.values()]
            modules = [self.model, *(each for each in losses if isinstance(each, nn.Module))]
            self._buffer_means = BufferMeans(modules)
        self.callbacks.update(run.callbacks)
        for callback in self.callbacks.values():
            stack.callback(callback.on_end, self)
            callback.on_start(self)
        self._has_started = True
        self.clock.start()

    @final
    def _call_epoch_start(self) -> None:
        """Call ``begin_epoch``, then ``on_epoch_start`` of each callback."""
        self.begin_epoch()
        for callback in self.callbacks.values():
            # A callback may need its `on_start` or the folder; errors show when training starts.
            with nullcontext() if self._has_started else suppress(Exception):
                callback.on_epoch_start(self)

    @final
    def _micro_batches(self, bar: ProgressBar) -> Iterator[Any]:
        """Yield the micro-batches left in the epoch; call `end_step` after the last one of a step.

        Yields each with its number of samples, the list that collects the values of its batch,
        and the context to run it in. No reference to a batch is kept while the next one loads.
        """
        progress, window, state = self.progress, self.window, self.training_state
        world, captures = self.world, self.capture.is_used
        is_plain = self.precision.autocast() is NO_CONTEXT and self.offload() is NO_CONTEXT
        first, count = progress.batches_total, self.experiment.batches_left(progress)
        for batch in self.recovery.batches(self._training_batches, first, count):
            position = progress.batches_total
            window.place(position - first, count)
            if captures:
                self.capture.start(progress.step + 1)
            results: list[StepValues] = []
            parts = window.parts(batch, position)
            del batch
            for part, n_samples in parts:
                context: AbstractContextManager[Any] = NO_CONTEXT
                if position == 0 or not is_plain:
                    guard = self.current_run.guard_first_step() if position == 0 else NO_CONTEXT
                    context = together([self.precision.autocast(), self.offload(), guard])
                yield part, n_samples, results, context
            del parts
            part = None  # frees the memory of this batch before the next one is read
            if world.is_active:
                self._end_batch()
                if window.is_full:
                    if window.outcome is Outcome.LOST:
                        self.recovery.agree_lost()
                    window.receive()
            progress.advance(window.n_counted if world.is_active else window.n_samples)
            if results:
                several = len(results) > 1
                state.last_values = means_of(results, self.device) if several else results[0].values
            self._last_results = results
            bar.update()
            if window.is_full:
                self.end_step(state.last_values)

    @final
    def _summarise(self, phase: str, meters: Meters) -> Values:
        """Return the means and metrics of a phase by name; those of classes by class name."""
        self.recovery.refuse_late()
        classes = class_names(getattr(self._phase_loader, "dataset", None)) or ()
        return summarise(phase, meters, self.training_state.phase_metrics, self.world, classes)

    @final
    def _wait_for_all(self, kind: Kind) -> None:
        """Wait for work of rank 0 alone, longer than a rank is waited for in a step."""
        if self.world.is_active:
            self.world.agree(kind, self.progress.step)

    @final
    def _of_all_ranks(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values of the last batch over all ranks, on rank 0."""
        if not self.world.is_active:
            return values
        sums = Meters()
        for part in self._last_results:
            part.add_to(sums)
        states = self.world.gather(sums.state_dict())
        if states is None:
            return values
        sums.load_state_dict(Meters.merged(states))
        return sums.compute()

    @final
    def _training_batches(self, first: int, count: int) -> Iterator[Any]:
        """Yield training batches on the device; a window is read whole before its first batch."""
        batches = self.train_loader.batches(first, count)
        return self._copy_to_device(self.window.read_ahead(batches, first))

    @final
    def _copy_to_device(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Copy batches to the device, ahead of their use by ``memory.prefetch``."""
        rules = self.config["batch"]
        if rules["weight"] is not None:
            batches = checked_weights(batches, rules)
        batches = feed(batches, self.device, self.config["memory"]["prefetch"], self.clock)
        has_graphs = uses_cuda_graphs(self.config["memory"]["compile"], self.device)
        return mark_steps(batches) if has_graphs else batches

    @final
    def _update_sampler(self, part: Any, values: StepValues) -> None:
        """Pass the losses of each sample to a sampler that learns from them."""
        sampler = self.training_state.sampler
        assert sampler is not None
        ids = ids_of(part, self.config["batch"])
        record_sample_losses(sampler, ids, values, self.progress.batches_total)

    @final
    def try_step(self, batch: Any) -> Values:
        """Run a training step for a check; the caller restores the state (see `trial`)."""
        with self.precision.autocast(), self.offload():
            return self.train_step(batch)

    @final
    def _repeat_step(self, part: Any) -> Values:
        """Run a failed step again and restore the state; Recovery looks for the cause."""
        with trial(self.training_state, self):
            return self.try_step(part)
