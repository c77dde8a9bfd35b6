"""What becomes of a step that cannot be made: the policies ``on_nonfinite`` and ``on_oom``.

Each acts before an optimizer has used anything of the step. See docs/reliability.md.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from base.checkpoint.background import Snapshot
from base.checkpoint.store import restore
from base.data.batch import tensors_in
from base.data.device_feed import feed
from base.errors import OutOfMemoryError, TrainingError
from base.run.micro_batch import tell_batch_norm
from base.system.resources import is_out_of_memory
from base.system.seeding import capture_random_state, isolated_random_state, restore_random_state
from base.system.signals import resume_command
from base.training.nonfinite import first_nonfinite, refuse_bad_weights
from base.training.optimizers import learning_rates
from base.training.progress import Stateful
from base.training.registration import is_among
from base.training.results import StepValues
from base.training.run_log import keep_config
from base.training.trials import keep_buffers, trial, try_step

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

log = logging.getLogger("kindling")

# What a rollback leaves as it is: where the run is, what it has logged, the rates of its schedules.
KEPT = (
    "progress", "monitor", "meters", "random", "bad_samples", "epoch_rows", "train_sampler",
    "metric.", "callback.", "schedule.", "scaler.",
)  # fmt: skip
TOLD_EVERY = 10  # skipped steps
SINGLE_VALUE = "Expected more than 1 value per channel"  # what torch's normalisation layers say


class NonFiniteError(TrainingError):
    """A loss or a gradient is not finite; no optimizer has used it."""


def refuse_nonfinite(trainer: BaseTrainer) -> None:
    """Raise NonFiniteError if a loss since the last call was not finite."""
    if not trainer.finite.all_finite():
        raise NonFiniteError(f"the loss is not finite {_at_step(trainer)}")


class Recovery:
    """Undoes a step that cannot be made, and goes on as the config says.

    A trainer calls::

        for batch in recovery.batches(first, count):
            with recovery.of(part): ...   # what an error in there means is decided here
            recovery.before_update(...)   # before an optimizer uses its gradients
            recovery.end_step()
        recovery.keep()                   # where a state is saved
    """

    def __init__(self, trainer: BaseTrainer) -> None:
        settings = trainer.settings
        self.trainer = trainer
        self.on_nonfinite, self.limit = settings.on_nonfinite, settings.max_nonfinite
        self.halves = settings.on_oom == "halve"
        self._part: Any = None
        self._begin: dict[str, Any] = {}  # of the step: how to go back there
        self._has_updated = False
        self._snapshot, self._good_step = Snapshot(), 0
        self._good: dict[str, Any] = {}

    def of(self, part: Any) -> Recovery:
        """Return the context in which a batch, or a part of one, is computed."""
        self._part = part
        acts = self.halves or self.on_nonfinite != "stop"
        if acts and not self._begin and self.trainer.model.training:
            self._note_begin()
        return self

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: object, error: BaseException | None, frames: TracebackType | None
    ) -> bool:
        part, self._part = self._part, None
        if error is None:
            return False
        if isinstance(error, NonFiniteError):
            self._after_nonfinite(error, part)
        elif is_out_of_memory(error):
            self._after_oom(error, part)
        elif SINGLE_VALUE in str(error) and self.trainer.model.training:
            text = "batch %d of the epoch, or a part of it, has a single sample, on which BatchNorm"
            text = f"{text % (self.trainer.progress.batch + 1)} cannot be trained: leave a short"
            text += " last batch out (`drop_last: true`), or take another batch_size"
            raise TrainingError(f"{text} ({error})") from error
        else:
            return False
        return True

    def batches(self, first: int, count: int) -> Iterator[Any]:
        """Give the batches left of an epoch; those of a step that is made again once more."""
        end = first + count
        yield from self._feed(first, count)
        while self.trainer.window.fate == "again":
            first = self._rewind()
            yield from self._feed(first, end - first)

    def _feed(self, first: int, count: int) -> Iterator[Any]:
        trainer = self.trainer
        batches = trainer.train_loader.batches(first, count)
        return feed(trainer, trainer.window.read_ahead(batches, first))

    def before_update(self, parameters: Iterable[Tensor], is_scaled: bool) -> None:
        """Note that an optimizer steps; look at its gradients unless fp16's scaler does.

        Raises:
            NonFiniteError: names the first parameter whose gradient is not finite.
        """
        if self.on_nonfinite != "stop" and not is_scaled:
            mine = set(map(id, parameters))
            named = self.trainer.model.named_parameters()
            name = first_nonfinite(((name, p.grad) for name, p in named if id(p) in mine), True)
            if name is not None:
                where = _at_step(self.trainer)
                raise NonFiniteError(
                    f"the gradient of {name}, or its square, is not finite {where}"
                )
        self._has_updated = True

    def end_step(self) -> bool:
        """Forget the begin of the step; return whether it was made, not dropped."""
        self._begin, self._has_updated = {}, False
        if self.trainer.experiment.sampler_state is not None:
            self.trainer.experiment.sampler_state.keep_step()
        is_made = self.trainer.window.fate != "dropped"
        if is_made:
            self.trainer.progress.skipped_in_a_row = 0
        return is_made

    def keep(self) -> None:
        """Look at the weights; copy what a rollback goes back to into CPU memory, if one may come.

        Raises:
            TrainingError: the weights are not finite.
        """
        refuse_bad_weights(self.trainer)
        if self.on_nonfinite == "rollback":
            states = {name: one.state_dict() for name, one in self._going_back().items()}
            self._good, self._good_step = self._snapshot.take(states), self.trainer.progress.step
            self.trainer.epoch_start.note_kept()

    # --- What is undone ---------------------------------------------------------------------------

    def _note_begin(self) -> None:
        trainer = self.trainer
        losses = [loss.function for loss in trainer.losses.values()]
        modules = [trainer.model, *(loss for loss in losses if isinstance(loss, nn.Module))]
        self._begin["buffers"] = keep_buffers(m for root in modules for m in root.modules())
        if self.halves:
            self._begin["random"] = capture_random_state()
            self._begin["progress"] = trainer.progress.state_dict()

    def _drop(self) -> None:
        """Drop gradients and records of the step, and put buffers back to before it."""
        for stepper in self.trainer.steppers.values():
            stepper.clear()
        self.trainer.capture.remove()
        if self.trainer.experiment.sampler_state is not None:
            self.trainer.experiment.sampler_state.drop_step()
        self.trainer.finite.all_finite()  # forget what was seen
        if self._begin:
            self._begin["buffers"]()

    def _rewind(self) -> int:
        """Go back to the begin of the step; return its first batch."""
        trainer = self.trainer
        restore_random_state(self._begin["random"])
        trainer.progress.load_state_dict(self._begin["progress"])
        self._begin, trainer.window.fate = {}, ""
        gc.collect()  # the error, which held all that was computed, is gone by now
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()
        return trainer.progress.batches_total

    def _going_back(self) -> dict[str, Stateful]:
        stateful = self.trainer.stateful.items()
        return {name: one for name, one in stateful if not is_among(name, KEPT)}

    def _go_back(self) -> None:
        """Give weights, averages and optimizers the last good state, but for their rates."""
        optimizers = self.trainer.optimizers.values()
        groups = [optimizer.state_dict()["param_groups"] for optimizer in optimizers]
        restore(self._going_back(), self._good)
        self.trainer.epoch_start.replay(KEPT)
        for optimizer, now in zip(optimizers, groups, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "param_groups": now})

    # --- What is decided --------------------------------------------------------------------------

    def _after_nonfinite(self, error: NonFiniteError, part: Any) -> None:
        progress, action = self.trainer.progress, self.on_nonfinite
        self._drop()
        if action == "stop":
            raise TrainingError(
                f"{error}{second_look(self.trainer, part)}. Nothing of this step is saved and the "
                "last checkpoint is good: lower the rate, clip with `optimizer: {clip_norm: 1.0}`, "
                "look at the data, or pass such steps over with trainer.on_nonfinite=skip"
            ) from error
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        progress.rollbacks += action == "rollback"
        count = progress.rollbacks if action == "rollback" else progress.skipped_in_a_row
        if count > self.limit:
            what = "rollbacks" if action == "rollback" else "steps in a row that were skipped"
            raise TrainingError(
                f"{error}{second_look(self.trainer, part)}. It comes after {self.limit} {what}, as "
                "many as trainer.max_nonfinite allows: lower the rate, or look at the data"
            ) from error
        if action == "rollback" or progress.skipped % TOLD_EVERY == 1:
            text = "%s%s: skipped (%d so far)"
            log.warning(text, error, second_look(self.trainer, part), progress.skipped)
        if action == "rollback":
            self._go_back()
            log.warning("back to the weights of step %d, on with the next batch", self._good_step)
        self.trainer.window.fate = "dropped"

    def _after_oom(self, error: BaseException, part: Any) -> None:
        trainer = self.trainer
        n_samples = trainer.window.count(part)
        cause = str(error).strip().partition("\n")[0][:200]
        number, half = trainer.progress.step + 1, (n_samples + 1) // 2
        if not trainer.model.training:
            told = f"out of memory in the evaluation of {n_samples} samples"
            advice = "make its batches smaller, data_loader.args.batch_size"
            raise OutOfMemoryError(f"{told}: {advice} ({cause})") from error
        told = f"out of memory at step {number} with {n_samples} samples at a time"
        if n_samples == 1:
            text = "not even one sample fits; docs/memory.md says what else saves some"
            raise OutOfMemoryError(f"{told}: {text} ({cause})") from error
        if not self.halves:
            raise OutOfMemoryError(
                f"{told}. Checkpoints are untouched: go on with memory.micro_batch={half} (the "
                f"same steps in more parts), let it be found by trainer.on_oom=halve, or lower "
                f"data_loader.args.batch_size; docs/memory.md says what else saves some ({cause})"
            ) from error
        self._drop()
        trainer.window.micro_batch = half
        trainer.config.resolve("memory", "micro_batch", value=half)
        if trainer.folder is not None:
            keep_config(trainer.config, trainer.folder)
        kept = f"micro_batch {half} from here on; to keep it, memory.micro_batch={half}"
        if self._has_updated:
            go_on = "" if trainer.folder is None else f": {resume_command(trainer.folder)}"
            text = "an optimizer had begun to use this step, which cannot be made again here"
            raise OutOfMemoryError(f"{told}; {text}. {kept}, which a resume has{go_on}") from error
        log.warning("%s: %s", told, kept)
        tell_batch_norm(trainer)
        trainer.window.fate, trainer.window.is_full = "again", False


def second_look(trainer: BaseTrainer, part: Any) -> str:
    """Make the forward and backward pass once more; say which values and layer are not finite.

    Random numbers are from a seed of its own: dropout may have been another. All is put back.
    """
    if part is None or any(m._compiled_call_impl is not None for m in trainer.model.modules()):
        return ""  # which may not be looked into
    if any(not one.isfinite().all() for one in tensors_in(part) if one.is_floating_point()):
        return "; the batch itself holds numbers that are not finite"
    name = first_nonfinite(trainer.model.named_parameters())
    if name is not None:
        return f"; {name} was not finite before this step, which an earlier one has done"
    names = {id(m): name or "the model" for name, m in trainer.model.named_modules()}
    found: list[str] = []

    def look(module: nn.Module, args: Any, output: Any) -> None:
        outputs = (o for o in tensors_in(output) if o.is_floating_point())
        if not found and id(module) in names and not all(o.isfinite().all() for o in outputs):
            found.append(f"the output of {names[id(module)]} ({type(module).__name__})")

    handle = register_module_forward_hook(look)
    try:
        with trial(trainer), isolated_random_state(trainer.config["seed"]):
            values = StepValues(try_step(trainer, part), 1).values
    except Exception as error:  # the first fault is what is to be told
        return f"; a second look at it failed: {type(error).__name__}"
    finally:
        handle.remove()
    shown = ", ".join(
        f"{k} {float(v):g}" for k, v in values.items() if torch.as_tensor(v).dim() < 1
    )
    first = found[0] if found else "no layer's output, but what is computed from them"
    return f"; on a second look {shown}; the first that is not finite: {first}"


def _at_step(trainer: BaseTrainer) -> str:
    last = ", ".join(f"{name} {float(value):g}" for name, value in trainer.run_log.last.items())
    rates = ", ".join(f"{k} {v:g}" for k, v in learning_rates(trainer.optimizers).items())
    step = trainer.progress.step + 1
    return f"at step {step} ({rates}; the step before it: {last or 'none'})"
