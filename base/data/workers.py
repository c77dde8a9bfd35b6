"""Start-up, supervision and shutdown of the workers of torch's DataLoader."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from multiprocessing.util import Finalize, get_temp_dir
from types import TracebackType
from typing import Any
from weakref import WeakSet

from base.data.protocols import Batch
from base.data.reading import raise_failure
from base.errors import DataError
from base.system.torch_compat import WorkerDeaths, WorkerDied


def watched(loader: Any, seconds: float, name: str) -> Generator[Batch, None, None]:
    """Yield the batches of torch's loader; its workers are stopped where not all are taken.

    Raises:
        DataError: a worker has died, or there was no batch for so many seconds.
    """
    make_folder_of_sockets()
    others = set(active_children())
    iterator = getattr(loader, "_iterator", None)  # with workers that live on from the last loop
    watchdog = _Watchdog(iterator, seconds)
    is_whole = False
    try:
        with watchdog.waiting():
            iterator = iter(loader)
        watchdog.watch(iterator)
        while not is_whole:
            with watchdog.waiting():
                batch = next(iterator, _END)
            is_whole = batch is _END
            if not is_whole:
                yield raise_failure(batch)
                del batch  # it may be freed before the next one is here
    except (WorkerDied, RuntimeError, OSError, EOFError) as error:  # a worker died
        watchdog.kill_workers()
        found = f"no batch for {seconds:g} s" if watchdog.timed_out else str(error)
        raise DataError(f"reading {name}: {found}; its workers were killed") from error
    finally:
        watchdog.stop()
        if not is_whole:
            stop_workers(iterator)
        if iterator is None:  # a signal came while its workers were started
            _kill([each for each in active_children() if each not in others])


@contextmanager
def reporting_deaths(name: str) -> Iterator[None]:
    """Raise the death of a worker of a user's own loader here, and nowhere else.

    Raises:
        DataError: a worker has died.
    """
    _DEATHS.replace_handler()
    make_folder_of_sockets()
    try:
        with _DEATHS.raised():
            yield
    except (WorkerDied, RuntimeError) as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(f"reading by {name}: {error}") from error


def make_folder_of_sockets() -> None:
    """Make the temporary folder in which processes open sockets, which this one removes at its end.

    Workers then use it too. One of their own would be left behind where a worker is killed.
    """
    get_temp_dir()


def identity(batch: Batch) -> Batch:
    return batch


def begin_worker(_: int) -> None:
    """Leave signals, and reports of a lost connection, to the parent.

    A signal meant for the run reaches the whole process group; the parent stops its workers itself,
    by a second SIGTERM where one does not listen. It also says why it no longer takes what a thread
    here hands over.
    """
    sys.excepthook = _hide_connection_errors
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _hide_connection_errors(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def stop_workers(iterator: Any) -> None:
    """Stop the workers of an iterator of torch's DataLoader, if it has any."""
    if hasattr(iterator, "_shutdown_workers"):
        workers = list(getattr(iterator, "_workers", ()))
        iterator._shutdown_workers()
        for worker in workers:
            if worker.is_alive():  # SIGTERM does not reach one that was stopped
                worker.kill()
                worker.join()


class _Watchdog:
    """Kill workers that give no batch until the deadline.

    torch's own timeout does not see a worker that stopped after it announced a batch: the memory
    is then asked of the worker itself, and the question waits for ever.
    """

    def __init__(self, iterator: Any, seconds: float) -> None:
        self.deadline = math.inf
        self.timed_out = False
        self._seconds = seconds or math.inf
        self._workers: list[Any] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.watch(iterator)

    def watch(self, iterator: Any) -> None:
        """Watch over the workers of this iterator, if it has any."""
        if iterator is None:
            return
        _ITERATORS.add(iterator)
        _DEATHS.replace_handler()
        self._workers = getattr(iterator, "_workers", [])
        if self._workers and self._seconds < math.inf and not self._thread.is_alive():
            self._thread.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for the workers inside of the block, until the deadline."""
        self.deadline = time.monotonic() + self._seconds
        try:
            with _DEATHS.raised():
                yield
        finally:
            self.deadline = math.inf

    def kill_workers(self) -> None:
        """Kill the workers, whether they listen or not."""
        _kill(self._workers)

    def stop(self) -> None:
        """Stop watching."""
        self._is_over.set()

    def _watch(self) -> None:
        while not self._is_over.wait(min(self._seconds / 4, 1)):
            if time.monotonic() > self.deadline:
                self.timed_out = True
                for worker in self._workers:
                    worker.kill()
                return


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        with suppress(RuntimeError, WorkerDied):  # torch reports their death from a signal handler
            worker.kill()
            worker.join()
    _DEATHS.forget()


def _kill_all() -> None:
    for iterator in list(_ITERATORS):
        _kill(getattr(iterator, "_workers", []))


_END, _DEATHS = object(), WorkerDeaths()
# The traceback of an error that nobody catches keeps iterators alive to the end of the process,
# where multiprocessing sends each worker one SIGTERM, which it takes for the group's, and waits.
_ITERATORS: WeakSet[Any] = WeakSet()
Finalize(None, _kill_all, exitpriority=10)
