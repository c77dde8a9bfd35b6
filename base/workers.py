"""Manners of the workers of torch's DataLoader: how they start, are watched, and end."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import Any
from weakref import WeakSet

from base.batch_reader import Batch, raise_failure
from base.errors import DataError


def watched(iterator: Any, seconds: float, name: str) -> Iterator[Batch]:
    """Give an iterator's batches; the death of a worker, or a wait too long, is a `DataError`."""
    watchdog = _Watchdog(getattr(iterator, "_workers", []), seconds)
    _ITERATORS.add(iterator)
    try:
        while True:
            watchdog.deadline = time.monotonic() + (seconds or math.inf)
            batch = next(iterator, _END)
            watchdog.deadline = math.inf
            if batch is _END:
                return
            yield raise_failure(batch)
            del batch  # the reader of it may be through with it before the next one is here
    except (RuntimeError, OSError, EOFError) as error:  # how it shows that a worker is no more
        watchdog.kill_workers()
        found = f"no batch for {seconds:g} s" if watchdog.has_bitten else str(error)
        raise DataError(f"reading {name}: {found}; its workers were ended") from error
    finally:
        watchdog.stop()


def as_it_is(batch: Batch) -> Batch:
    return batch


def leave_signals_to_the_parent(_: int) -> None:
    """Keep on working when a signal meant for the run reaches the whole process group.

    The parent stops its workers itself, by a second SIGTERM where one does not listen.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def stop_workers(iterator: Any) -> None:
    """Stop the workers of an iterator of torch's DataLoader, if it has any."""
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


class _Watchdog:
    """Kill workers that give no batch until the deadline.

    torch's own timeout does not see a worker that stopped after it announced a batch: the memory
    is then asked of the worker itself, and the question waits for ever.
    """

    def __init__(self, workers: list[Any], seconds: float) -> None:
        self.deadline = math.inf
        self.has_bitten = False
        self._workers = workers
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(seconds / 4,), daemon=True)
        if workers and seconds:
            self._thread.start()

    def kill_workers(self) -> None:
        """End the workers, deaf or not."""
        _kill(self._workers)

    def stop(self) -> None:
        """Watch no longer."""
        self._is_over.set()

    def _watch(self, seconds: float) -> None:
        while not self._is_over.wait(min(seconds, 1)):
            if time.monotonic() > self.deadline:
                self.has_bitten = True
                for worker in self._workers:
                    worker.kill()
                return


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        with suppress(RuntimeError):  # torch reports their death from a signal handler
            worker.kill()
            worker.join()


def _kill_all() -> None:
    for iterator in list(_ITERATORS):
        _kill(getattr(iterator, "_workers", []))


_END = object()
# The traceback of an error that nobody catches keeps iterators alive to the end of the process,
# where multiprocessing sends each worker one SIGTERM, which it takes for the group's, and waits.
_ITERATORS: WeakSet[Any] = WeakSet()
Finalize(None, _kill_all, exitpriority=10)
