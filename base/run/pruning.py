"""A trial of a sweep with a pruner asks after each epoch whether to go on."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from base.callbacks import Callback
from base.system.trial import Trial, answer_file, question_file, read_message, write_message

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer

log = logging.getLogger("kindling")

PATIENCE_SECONDS = 60.0  # for an answer, before training goes on without it


class StopIfPruned(Callback):
    """Stops the run after an epoch if the sweep answers so, as SIGTERM does: saved and resumable.

    The last epoch is not asked about, nor one without the monitored value.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial = trial

    def on_epoch_end(self, trainer: BaseTrainer, values: Mapping[str, float]) -> None:
        """Report the monitored value, and wait for the answer."""
        progress, monitor = trainer.progress, trainer.monitor
        is_last = progress.step >= trainer.experiment.total_steps or monitor.is_exhausted
        if is_last or monitor.is_off or monitor.key not in values:
            return
        epoch, sweep, number = progress.epoch + 1, self.trial.sweep, self.trial.number
        write_message(question_file(sweep, number), epoch=epoch, value=values[monitor.key])
        deadline = time.monotonic() + PATIENCE_SECONDS
        while trainer.signals.stop is None and time.monotonic() < deadline:
            answer = read_message(answer_file(sweep, number))
            if answer.get("epoch") == epoch:
                if answer["stop"]:
                    log.info(f"pruned by the sweep after epoch {epoch}")
                    trainer.signals.stop = signal.SIGTERM
                return
            time.sleep(0.01)
        if trainer.signals.stop is None:
            log.warning("the sweep does not answer; training continues without its pruner")
