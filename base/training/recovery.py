"""How failed steps are handled: the policies ``on_nonfinite`` and ``on_oom``.

Each acts before an optimizer has used anything of the step. See docs/reliability.md.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from base.checkpoint.background import Snapshot
from base.checkpoint.state_dicts import load_state_dicts
from base.config import Config
from base.data.batch import tensors_in
from base.distributed.agreement import Kind, Message
from base.distributed.group import ALONE, World
from base.errors import OutOfMemoryError, TrainingError
from base.system.resources import is_out_of_memory
from base.system.seeding import capture_random_state, isolated_random_state, restore_random_state
from base.system.signals import resume_command
from base.training.accumulation import Outcome, warn_of_batch_norm
from base.training.epoch_start import EpochStart
from base.training.nonfinite import first_nonfinite, refuse_bad_weights
from base.training.optimizer_step import Stepper
from base.training.parameter_groups import learning_rates
from base.training.progress import Stateful
from base.training.results import StepValues
from base.training.run_log import write_config
from base.training.state import TrainingState, matches_name
from base.training.trials import KeptCopies, keep_buffers

log = logging.getLogger("kindling")

# State that a rollback does not restore: the progress, logged values, learning rates.
NOT_ROLLED_BACK = (
    "progress", "monitor", "meters", "random", "bad_samples", "epoch_rows", "train_sampler",
    "metric.", "callback.", "schedule.", "scaler.",
)  # fmt: skip
LOGGED_EVERY = 10  # skipped steps
MOST_BATCHES_AHEAD = 2
"""Batches queued behind the newest loss that is known to be finite. They keep the GPU busy while
the host waits for it, and are held until then, for a message that names the layer."""
SINGLE_VALUE = "Expected more than 1 value per channel"  # raised by torch's normalisation layers
# Of torch, about the backward pass of a compiled network.
SECOND_PASS = ("non-empty donated buffers", "does not currently support double backward")

Read = Callable[[int, int], Iterator[Any]]
"""Yields batches on the device, given the position of the first one and their number."""


class LossFacts(NamedTuple):
    """What a message about a non-finite loss needs, if it is read steps later."""

    progress: dict[str, Any]
    rates: dict[str, float]
    last_values: Mapping[str, Any]
    part: Any


class NonFiniteError(TrainingError):
    """A loss or gradient is not finite; no optimizer has used it."""


class PeerOutOfMemoryError(OutOfMemoryError):
    """Another rank is out of memory in this step, which no rank makes.

    Args:
        half: half the number of samples that did not fit.
    """

    def __init__(self, ranks: list[int], half: int) -> None:
        super().__init__(f"rank {', '.join(map(str, ranks))} is out of memory")
        self.half = half


class Recovery:
    """Undoes a failed step and continues as the config says.

    A trainer calls::

        for batch in recovery.batches(read, first, count):
            recovery.begin_attempt(part)      # if recovery.notes_attempts
            try: ...                          # the step, on a part of the batch
            except BaseException as error:
                if not recovery.handle(error, part): raise
            recovery.before_update(...)       # before an optimizer steps
            recovery.end_step()
        recovery.keep()                       # when a checkpoint is saved

    Args:
        settings: the config's ``trainer:`` section.
        run_again: runs a trial step on a part of a batch; returns its values.
        world: the ranks that make each step together, with the same verdict on all.
    """

    def __init__(
        self,
        state: TrainingState,
        settings: SimpleNamespace,
        config: Config,
        epoch_start: EpochStart,
        run_again: Callable[[Any], Mapping[str, Any]],
        world: World = ALONE,
    ) -> None:
        self.world, self._has_agreed = world, False
        self.state, self.config, self.epoch_start = state, config, epoch_start
        self.on_nonfinite, self.limit = settings.on_nonfinite, settings.max_nonfinite
        self.halves = settings.on_oom == "halve"
        self._undoes = self.halves or self.on_nonfinite != "stop"
        self.folder: Path | None = None  # the folder of the run
        self.run_again = run_again
        self._was_nonfinite = False  # the loss of this rank
        self._half = 0  # half the number of samples that did not fit on this rank
        self._begin: dict[str, Any] = {}  # restores the start of the step
        self._has_updated = False
        self._snapshot, self._good_step = Snapshot(), 0
        self._copies = KeptCopies()  # of the buffers, at the start of the step
        self._good: dict[str, Any] = {}
        self._part: Any = None  # in progress, if its losses are read late
        if self.on_nonfinite == "stop" and not world.is_active:
            state.finite.read_late(state.optimizers.values(), state.device)
        self.notes_attempts = self._undoes or state.finite.reads_late
        """Whether `begin_attempt` must be called."""

    def begin_attempt(self, part: Any) -> None:
        """Note the state at the start of a step, before a batch or a part of one is computed."""
        if self.state.finite.reads_late:
            self._part = part
        if self._undoes and not self._begin and self.state.model.training:
            self._note_begin()

    def batches(self, read: Read, first: int, count: int) -> Iterator[Any]:
        """Yield the remaining batches of an epoch, and again those of a repeated step."""
        end, window = first + count, self.state.window
        while first < end:
            for batch in read(first, end - first):
                yield batch
                del batch  # frees it before the next one is read
                if self._part is not None:
                    self._part = None
                    self.refuse_late(waits=False)
                if window.outcome is Outcome.REPEATED:
                    break
            else:
                return
            first = self._rewind()

    def refuse_nonfinite(self) -> None:
        """Raise NonFiniteError if a loss since the last call was not finite."""
        finite = self.state.finite
        if finite.reads_late and finite.must_wait:
            self.refuse_late()
        if not finite.all_finite():
            raise NonFiniteError(f"the loss is not finite {self._at_step()}")

    def refuse_late(self, waits: bool = True) -> None:
        """Raise an error for a non-finite loss of this step or an earlier one that is read late.

        Args:
            waits: whether to wait for the device, which is needed before anything is written;
                otherwise it waits for the losses before the last `MOST_BATCHES_AHEAD` batches.

        Raises:
            TrainingError: a loss was not finite; weights and optimizers are those before its step.
        """
        finite, progress = self.state.finite, self.state.progress
        if not finite.reads_late:
            return
        first = progress.batches_total - MOST_BATCHES_AHEAD
        finite.wait(lambda facts: waits or facts.progress["batches_total"] < first)
        facts: LossFacts | None = finite.first_late()
        if facts is not None:
            progress.load_state_dict(facts.progress)
            self.state.last_values = facts.last_values
            error = NonFiniteError(f"the loss is not finite {self._at_step(facts.rates)}")
            self._after_nonfinite(error, facts.part)

    @property
    def is_failing(self) -> bool:
        """Whether this rank has had a loss in this step that is not finite; `agree` undoes it."""
        if not self.world.is_active or self.on_nonfinite == "stop":
            return False
        return not self.state.finite.is_finite()

    def agree(self, name: str | None) -> None:
        """Agree with the other ranks that an optimizer steps, and sum its gradients over all ranks.

        Args:
            name: the optimizer; None if `update` makes no step.

        Raises:
            NonFiniteError: the loss of a rank is not finite.
            PeerOutOfMemoryError: a rank is out of memory.
        """
        if name is None:
            self._agree(None, self.state.progress.step + 1)
            return
        self.state.sums.begin(name)
        message = self._agree(name, self.state.progress.step + 1)
        optimizer = self.state.steppers[name].optimizer
        self.state.window.correct(optimizer, sum(message["found"]))
        self.state.sums.finish(name, message)

    def _agree(self, name: str | None, step: int) -> Message:
        """Return what all ranks sent; raise the same error on all if the step of one failed."""
        state, agreement = self.state, self.world.agreement
        assert agreement is not None
        state.window.receive()
        is_finite = state.finite.all_finite()
        self._was_nonfinite = not is_finite
        ticket = agreement.begin(
            Kind.UPDATE,
            step,
            (),
            nonfinite=not is_finite,
            optimizer=-1 if name is None else list(state.steppers).index(name),
            found=state.window.found,
            **state.sums.fields(name, state.window.is_deferred),
        )
        self._has_agreed = True
        message = agreement.finish(ticket)
        self._refuse_out_of_memory(message)
        if ranks := message.ranks_with("nonfinite"):
            state.sums.discard(message)
            raise NonFiniteError(f"the loss is not finite on {_named(ranks)} {self._at_step()}")
        return message

    def agree_lost(self) -> None:
        """Report at the end of a window that this rank ran out of memory; prepare the repetition.

        Raises:
            OutOfMemoryError: the step cannot be repeated.
        """
        assert self.world.agreement is not None
        self.state.window.receive()
        self._has_agreed = True
        message = self.world.agreement.fail_out_of_memory(
            self.state.progress.step + 1, self._half, **self.state.sums.fields(None)
        )
        try:
            self._refuse_out_of_memory(message)
        except PeerOutOfMemoryError as error:
            self._after_oom(error, None)

    def _refuse_out_of_memory(self, message: Message) -> None:
        if message.is_out_of_memory:
            self.state.sums.discard(message)
            ranks = message.ranks_with("oom_half")
            raise PeerOutOfMemoryError(ranks, int(max(message["oom_half"])))

    def before_update(self, stepper: Stepper) -> None:
        """Record that an optimizer steps; check its gradients unless the scaler of fp16 does.

        Raises:
            NonFiniteError: a gradient is not finite. It names the first such parameter.
        """
        if self.on_nonfinite != "stop" and not stepper.is_scaled:
            mine = set(map(id, stepper.parameters))
            named = self.state.model.named_parameters()
            name = first_nonfinite(((name, p.grad) for name, p in named if id(p) in mine), True)
            if self.world.is_sharded:  # each rank has checked its rows
                name = next(filter(None, self.world.all_gather(name)), None)
            if name is not None:
                where = self._at_step()
                raise NonFiniteError(
                    f"the gradient of {name}, or its square, is not finite {where}"
                )
        self._has_updated = True

    def end_step(self) -> bool:
        """Discard the start of the step; return whether the step was made."""
        state = self.state
        if state.finite.reads_late:
            self.refuse_late(waits=state.capture.is_recording)  # what is recorded is written next
        is_made = state.window.outcome is not Outcome.DROPPED
        if self.world.is_active:
            if is_made and not self._has_agreed:
                # A step without an update: a failed rank waits for this message.
                self._agree(None, state.progress.step)
            self._has_agreed = False
        self._begin, self._has_updated = {}, False
        if state.sampler is not None:
            state.sampler.keep_step(self.world)
        if is_made:
            state.progress.skipped_in_a_row = 0
        return is_made

    def keep(self) -> None:
        """Check the weights; copy the state for a rollback to CPU memory if rollbacks are enabled.

        Raises:
            TrainingError: the weights are not finite.
        """
        self.refuse_late()
        refuse_bad_weights(self.state.model, self.state.progress.step)
        if self.on_nonfinite == "rollback":
            states = {name: one.state_dict() for name, one in self._rolled_back().items()}
            self._good, self._good_step = self._snapshot.take(states), self.state.progress.step
            self.epoch_start.note_kept()

    def handle(self, error: BaseException, part: Any) -> bool:
        """Handle an error of a step; return whether training continues.

        Raises:
            TrainingError, OutOfMemoryError: training stops. The message says what to do.
        """
        if isinstance(error, Exception):  # an interrupt does not wait for the device
            self._refuse_late_cause()
        if self.world.is_sharded:
            self.world.refuse_lost_ranks(error, self.state.progress.step + 1)
        if isinstance(error, NonFiniteError):
            self._after_nonfinite(error, part)
        elif is_out_of_memory(error) or isinstance(error, PeerOutOfMemoryError):
            self._after_oom(error, part)
        elif SINGLE_VALUE in str(error) and self.state.model.training:
            number = self.state.progress.batch + 1
            text = f"batch {number} of the epoch, or a part of it, has a single sample, which"
            text += " BatchNorm cannot train on: drop a short last batch"
            text += " (`drop_last: true`), or change batch_size"
            raise TrainingError(f"{text} ({error})") from error
        elif any(words in str(error) for words in SECOND_PASS):
            text = "memory.compile: a compiled network has one backward pass, without"
            text += " `retain_graph=True` and without second derivatives: set memory.compile=false"
            raise TrainingError(f"{text} ({str(error).partition('.')[0]})") from error
        else:
            return False
        return True

    def _refuse_late_cause(self) -> None:
        """Raise an error for a non-finite loss that may be the cause of another error."""
        try:
            self.refuse_late()
        except TrainingError:
            raise
        except Exception:  # of a device that has failed, as the error at hand says better
            return

    # --- Undoing a step ---------------------------------------------------------------------------

    def _note_begin(self) -> None:
        state = self.state
        losses = [loss.function for loss in state.losses.values()]
        modules = [state.model, *(loss for loss in losses if isinstance(loss, nn.Module))]
        parts = (module for root in modules for module in root.modules())
        self._begin["buffers"] = keep_buffers(parts, self._copies)
        if self.halves:
            self._begin["random"] = capture_random_state()
            self._begin["progress"] = state.progress.state_dict()

    def _drop(self) -> None:
        """Discard gradients and records of the step; restore the buffers."""
        for stepper in self.state.steppers.values():
            stepper.clear()
        self.state.capture.remove()
        if self.state.sampler is not None:
            self.state.sampler.drop_step()
        self.state.finite.all_finite()  # reset
        if self._begin:
            self._begin["buffers"]()

    def _rewind(self) -> int:
        """Go back to the start of the step; return its first batch."""
        restore_random_state(self._begin["random"])
        self.state.progress.load_state_dict(self._begin["progress"])
        self._begin = {}
        self.state.window.restart()
        gc.collect()  # frees the tensors that the error referenced
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        return self.state.progress.batches_total

    def _rolled_back(self) -> dict[str, Stateful]:
        stateful = self.state.stateful.items()
        return {name: one for name, one in stateful if not matches_name(name, NOT_ROLLED_BACK)}

    def _roll_back(self) -> None:
        """Restore weights, averages and optimizers, but keep the learning rates."""
        optimizers = self.state.optimizers.values()
        groups = [optimizer.state_dict()["param_groups"] for optimizer in optimizers]
        load_state_dicts(self._rolled_back(), self._good)
        self.epoch_start.replay(NOT_ROLLED_BACK)
        for optimizer, now in zip(optimizers, groups, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "param_groups": now})

    # --- Policies ---------------------------------------------------------------------------------

    def _after_nonfinite(self, error: NonFiniteError, part: Any) -> None:
        progress, action = self.state.progress, self.on_nonfinite
        self._drop()
        if action == "stop":
            raise TrainingError(
                f"{error}{self._locate_nonfinite(part)}. Nothing of this step is saved "
                "and the last checkpoint is good: lower the learning rate, clip gradients with "
                "`optimizer: {clip_norm: 1.0}`, check the data, or skip such steps with "
                "trainer.on_nonfinite=skip"
            ) from error
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        progress.rollbacks += action == "rollback"
        count = progress.rollbacks if action == "rollback" else progress.skipped_in_a_row
        if count > self.limit:
            what = "rollbacks" if action == "rollback" else "skipped steps in a row"
            raise TrainingError(
                f"{error}{self._locate_nonfinite(part)}. It comes after {self.limit} {what}, the "
                "limit of trainer.max_nonfinite: lower the learning rate, or check the data"
            ) from error
        if action == "rollback" or progress.skipped % LOGGED_EVERY == 1:
            where = self._locate_nonfinite(part)  # by all ranks
            self._warn("%s%s: skipped (%d so far)", error, where, progress.skipped)
        if action == "rollback":
            self._roll_back()
            text = "restored the weights of step %d; training continues with the next batch"
            self._warn(text, self._good_step)
        self.state.window.drop()

    def _after_oom(self, error: BaseException, part: Any) -> None:
        window, progress = self.state.window, self.state.progress
        cause = str(error).strip().partition("\n")[0][:200]
        if isinstance(error, PeerOutOfMemoryError):
            half, n_samples = error.half, 2 * error.half
        else:
            n_samples = window.n_samples if self.world.is_active else window.count(part)
            half = (n_samples + 1) // 2
        number = progress.step + 1
        if not self.state.model.training:
            text = f"out of memory in the evaluation of {n_samples} samples"
            advice = "lower data_loader.args.batch_size"
            raise OutOfMemoryError(f"{text}: {advice} ({cause})") from error
        where = f"out of memory at step {number} with {n_samples} samples at a time"
        if n_samples == 1:
            text = "one sample does not fit; see docs/memory.md for other ways to save memory"
            raise OutOfMemoryError(f"{where}: {text} ({cause})") from error
        if not self.halves:
            raise OutOfMemoryError(
                f"{where}. Checkpoints are intact: resume with memory.micro_batch={half} (the same "
                f"steps in more parts) or trainer.on_oom=halve, or lower "
                f"data_loader.args.batch_size; see docs/memory.md for other ways to save memory "
                f"({cause})"
            ) from error
        if self.world.is_active and not isinstance(error, PeerOutOfMemoryError):
            self._half = half
            window.lose()  # `agree_lost` follows at the end of the window
            return
        self._drop()
        window.micro_batch = half
        self.config.resolve("memory", "micro_batch", value=half)
        if self.folder is not None and self.world.is_main:
            write_config(self.config, self.folder)
        kept = f"micro_batch {half} from now on; to keep it, set memory.micro_batch={half}"
        if self._has_updated:
            go_on = "" if self.folder is None else f": {resume_command(self.folder)}"
            text = "an optimizer has stepped already, so the step cannot be repeated here"
            raise OutOfMemoryError(f"{where}; {text}. {kept}; a resume uses it{go_on}") from error
        self._warn("%s: %s", where, kept)
        if self.world.is_main:
            batch_size = getattr(self.state.train_loader, "batch_size", None)
            warn_of_batch_norm(self.state.model, half, batch_size)
        window.repeat()

    def _warn(self, text: str, *values: Any) -> None:
        """Log what all ranks have agreed on, once."""
        if self.world.is_main:
            log.warning(text, *values)

    def _locate_nonfinite(self, part: Any) -> str:
        if self.world.is_sharded:
            return ""  # the ranks would have to run the step together
        with isolated_random_state(self.config["seed"]), self.world.paused():
            text = locate_nonfinite(self.state.model, part, self.run_again)
        if not self.world.is_active:
            return text
        found = self.world.all_gather(text if self._was_nonfinite else "")
        return next(filter(None, found), text)

    def loss_facts(self) -> LossFacts:
        """Return what a message needs about a loss of this step that is read steps later."""
        state = self.state
        rates = learning_rates(state.optimizers)
        return LossFacts(dict(vars(state.progress)), rates, state.last_values, self._part)

    def _at_step(self, rates: Mapping[str, float] | None = None) -> str:
        values = self.state.last_values.items()
        last = ", ".join(f"{name} {float(value):g}" for name, value in values)
        rates = learning_rates(self.state.optimizers) if rates is None else rates
        shown = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        step = self.state.progress.step + 1
        return f"at step {step} ({shown}; the step before it: {last or 'none'})"


def _named(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def locate_nonfinite(
    model: nn.Module, part: Any, run_again: Callable[[Any], Mapping[str, Any]]
) -> str:
    """Run the step again; return a description of the first layer and values that are not finite.

    The caller sets the random state, so dropout may differ. ``run_again`` restores all state.
    """
    if part is None or any(m._compiled_call_impl is not None for m in model.modules()):
        return ""  # hooks do not see the layers of a compiled model
    if any(not one.isfinite().all() for one in tensors_in(part) if one.is_floating_point()):
        return "; the batch itself holds NaN or infinite values"
    name = first_nonfinite(model.named_parameters())
    if name is not None:
        return f"; {name} was not finite before this step, because of an earlier one"
    names = {id(m): name or "the model" for name, m in model.named_modules()}
    found: list[str] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        outputs = (o for o in tensors_in(output) if o.is_floating_point())
        if not found and id(module) in names and not all(o.isfinite().all() for o in outputs):
            found.append(f"the output of {names[id(module)]} ({type(module).__name__})")

    handle = register_module_forward_hook(note)
    try:
        values = StepValues(run_again(part), 1).values
    except Exception as error:  # report the first error instead
        return f"; running the step again failed: {type(error).__name__}"
    finally:
        handle.remove()
    shown = ", ".join(
        f"{k} {float(v):g}" for k, v in values.items() if torch.as_tensor(v).dim() < 1
    )
    first = found[0] if found else "a value computed from the outputs of layers"
    return f"; running the step again gives {shown}; first non-finite value: {first}"
