"""Signal handlers that set a flag, which the loop reads after each step.

Nothing is saved inside a handler, as it may interrupt torch anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from base.errors import KindlingError
from base.system.processes import local_size, rank

FORCE_WITHIN_SECONDS = 2.0
SEVERAL = re.compile(r"all|.*,.*\d|(cpu|auto|n_gpu):(?!1$)\d+")  # after `-d`
SAME_WITHIN_SECONDS = 0.5  # a Ctrl-C that both the terminal and torchrun send
ENDS_WITH_ERROR = threading.Event()
"""Set before this process ends a lost rank: a SIGTERM of the launcher may not replace the error."""
SAVER = "saver"  # the name of the thread that writes checkpoints


def resume_command(folder: Path) -> str:
    """Return the command that resumes a run, in as many processes as this one is of."""
    path = shlex.quote(str(folder))
    size = os.environ.get("WORLD_SIZE", "1")
    if rank() is None or size == "1":
        return f"python train.py -r {path}"
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-d", "--device")
    name = parser.parse_known_args(sys.argv[1:])[0].device
    device = f" -d {shlex.quote(name)}" if name else ""
    is_here = local_size() == int(size)
    if is_here and name and SEVERAL.fullmatch(name):
        return f"python train.py -r {path}{device}"
    options = f"--standalone --nproc-per-node {size}" if is_here else "..."
    return f"torchrun {options} train.py -r {path}{device}"


def exit_now(code: int) -> NoReturn:
    """Exit the process without waiting for threads: of a checkpoint, or of a process group.

    An incomplete checkpoint is not valid, and is removed at the next start. The threads of a
    process group would abort the interpreter at its end.
    """
    is_of_several = rank() is not None and code != 0
    if is_of_several or any(thread.name == SAVER for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


class InterruptedRunError(KindlingError):
    """A signal stopped the training, and its state was saved."""

    is_printed_once = True

    def __init__(self, number: int | None, folder: Path | None, step: int) -> None:
        name = signal.Signals(number or signal.SIGTERM).name
        resume = "" if folder is None else f"; resume by: {resume_command(folder)}"
        super().__init__(f"stopped by {name} after step {step}, and saved{resume}")
        self.exit_code = 128 + (number or signal.SIGTERM)


class SignalFlags:
    """Makes SIGINT and SIGTERM request a stop, and SIGUSR1 a checkpoint, within a block.

    A second Ctrl-C within two seconds raises KeyboardInterrupt immediately, unless torchrun repeats
    the first one. Outside of the main thread (a notebook's server, a test) no handler is set.
    """

    def __init__(self) -> None:
        self.stop: int | None = None
        self.save = False
        self._last_interrupt = -FORCE_WITHIN_SECONDS
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalFlags:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
                number = getattr(signal, name, None)
                if number is not None:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            if handler is not None:  # handlers not set by Python cannot be restored
                signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGUSR1", None):
            self.save = True
            return
        now = time.monotonic()
        since = now - self._last_interrupt
        if number == signal.SIGINT and since < FORCE_WITHIN_SECONDS:
            if rank() is not None and since < SAME_WITHIN_SECONDS:
                return
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            self._last_interrupt = now
        self.stop = number
