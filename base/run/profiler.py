"""``profile:``: a trace of some training steps, and a table of their slowest operators."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from base.callbacks import Callback
from base.errors import ConfigError
from logger.files import write_whole

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

log = logging.getLogger("kindling")

WARM_UP = 3
"""Steps at the start of an epoch that are not recorded: they start workers and fill caches."""


def check_profile(trainer: BaseTrainer) -> None:
    """Check that there are steps to record.

    Raises:
        ConfigError: an epoch is beyond the last one, or is shorter than the warm-up.
    """
    section, experiment = trainer.config["profile"], trainer.experiment
    if section is None:
        return
    late = [str(epoch) for epoch in section["epochs"] if epoch > experiment.n_epochs]
    text = ""
    if late:
        text = f"epoch {', '.join(late)}: the last of this training is {experiment.n_epochs}"
    elif experiment.steps_per_epoch <= WARM_UP:
        text = f"an epoch has {experiment.steps_per_epoch} steps; the first {WARM_UP} are left out"
    if text:
        raise ConfigError([trainer.config.problem(("profile", "epochs"), text)])


class Profiler(Callback):
    """Records some steps of the given epochs; the numbers of the run do not change.

    Args:
        epochs: counted from 1.
        steps: the number of steps to record after the warm-up, at most.
    """

    def __init__(self, epochs: Sequence[int], steps: int) -> None:
        self.epochs, self.steps = set(epochs), steps
        self._running: Any = None

    def on_step_end(self, trainer: BaseTrainer) -> None:
        """Start after the first step of an epoch; stop with the last step to record."""
        epoch = trainer.progress.epoch + 1
        if not trainer.experiment.batches_left(trainer.progress):
            self.on_end(trainer)  # validation is not recorded
        elif self._running is not None:
            self._running.step()
        elif epoch in self.epochs:
            self.epochs.remove(epoch)
            self._start(trainer, epoch)

    def on_end(self, trainer: BaseTrainer) -> None:
        """Write what was recorded, also if the run was stopped."""
        running, self._running = self._running, None
        if running is not None:
            running.stop()

    def _start(self, trainer: BaseTrainer, epoch: int) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it logs its own steps to stderr
        from torch.profiler import ProfilerActivity, profile, schedule

        assert trainer.folder is not None
        path = trainer.folder / "report" / "profile" / f"epoch_{epoch}"
        first = trainer.progress.step + WARM_UP  # the step that just ended is one of them
        is_cuda = trainer.device.type == "cuda"

        def write(recorded: Any) -> None:
            try:
                _write(recorded, path, "CUDA" if is_cuda else None)
            except (OSError, RuntimeError) as error:  # a missing trace must not end the run
                log.warning("no profile in %s: %s", path.parent, error)
                return
            log.info(
                f"profile of epoch {epoch}, steps {first} to {trainer.progress.step}: the slowest"
                f" operators are in {path}.txt; open {path}.json.gz at https://ui.perfetto.dev"
            )

        running = profile(
            activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * is_cuda],
            schedule=schedule(wait=0, warmup=WARM_UP - 1, active=self.steps, repeat=1),
            on_trace_ready=write,
            acc_events=True,  # torch 2.10 warns without it, although there is one cycle
        )
        running.start()
        self._running = running  # set last: stopping a profiler that did not start crashes


def _write(recorded: Any, path: Path, accelerator: str | None) -> None:
    cpu, averages = torch.autograd.DeviceType.CPU, recorded.key_averages()
    operators = [one for one in averages if one.device_type == cpu and not one.is_user_annotation]
    lines = list(_table(operators, "CPU", "self_cpu_time_total"))
    if accelerator is not None:
        lines += ["", *_table(operators, accelerator, "self_device_time_total")]
    path.parent.parent.mkdir(exist_ok=True)
    write_whole(path.with_suffix(".txt"), ("\n".join(lines) + "\n").encode())
    part = path.with_name(f".{path.name}.json.gz")
    recorded.export_chrome_trace(str(part))
    part.replace(path.with_suffix(".json.gz"))


def _table(operators: list[Any], device: str, key: str) -> Iterator[str]:
    """Yield a line for each of the ten slowest operators on a device, by their own time."""
    total = sum(getattr(one, key) for one in operators) or 1.0
    yield f"{'operator':<56} {'calls':>9} {f'{device} ms':>12} {'share':>7}"
    for one in sorted(operators, key=lambda one: -getattr(one, key))[:10]:
        microseconds = getattr(one, key)
        shown = f"{microseconds / 1000:>12,.2f} {microseconds / total:>7.1%}"
        yield f"{one.key[:56]:<56} {one.count:>9,} {shown}"
