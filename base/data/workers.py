"""Starts, watches and stops the workers of torch's DataLoader."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from multiprocessing.util import Finalize, get_temp_dir
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch

from base.data.protocols import Batch
from base.data.reading import raise_failure
from base.errors import DataError
from base.system.seeding import derive_seed, seed_cpu_streams
from base.system.torch_compat import WorkerDeaths, WorkerDied


def watched(loader: Any, seconds: float, name: str) -> Generator[Batch, None, None]:
    """Yield the batches of torch's loader. Stop its workers if iteration ends early.

    Raises:
        DataError: a worker died, or no batch arrived within the timeout.
    """
    make_folder_of_sockets()
    others = set(active_children())
    iterator = getattr(loader, "_iterator", None)  # with persistent workers
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
                del batch  # frees it before the next one arrives
    except (WorkerDied, RuntimeError, OSError, EOFError) as error:  # a worker died
        watchdog.kill_workers()
        found = f"no batch for {seconds:g} s" if watchdog.timed_out else str(error)
        raise DataError(f"reading {name}: {found}; its workers were killed") from error
    finally:
        watchdog.stop()
        if not is_whole:
            stop_workers(iterator)
        if iterator is None:  # a signal arrived while workers were starting
            _kill([child for child in active_children() if child not in others])


@contextmanager
def reporting_deaths(name: str) -> Iterator[None]:
    """Raise an error here if a worker of a user's loader dies.

    Raises:
        DataError: a worker died.
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
    """Create the temporary folder for sockets in this process, which removes it on exit.

    Workers then share it. A killed worker would leave a folder of its own behind.
    """
    get_temp_dir()


def identity(batch: Batch) -> Batch:
    return batch


def begin_worker(_: int) -> None:
    """Leave the handling of signals, and of lost connections, to the parent.

    A signal sent to the run reaches the whole process group. The parent stops its workers itself,
    with a second SIGTERM if needed, and reports why it closed the connection.
    """
    sys.excepthook = _hide_connection_errors
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class SeededByRank:
    """A `worker_init_fn` that gives the workers of each rank random streams of their own.

    All ranks seed their loaders alike, so that they draw the same order.
    """

    def __init__(self, rank: int, wrapped: Callable[[int], None] | None) -> None:
        self.rank, self.wrapped = rank, wrapped

    def __call__(self, number: int) -> None:
        seed_cpu_streams(derive_seed(torch.initial_seed(), "rank", self.rank))
        if self.wrapped is not None:
            self.wrapped(number)


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
            if worker.is_alive():  # SIGTERM does not reach a stopped process
                worker.kill()
                worker.join()


class _Watchdog:
    """Kills workers that deliver no batch before the deadline.

    torch's timeout does not cover a worker that stops after announcing a batch: the parent then
    requests the memory from that worker and waits forever.
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
        """Watch the workers of this iterator, if any."""
        if iterator is None:
            return
        _ITERATORS.add(iterator)
        _DEATHS.replace_handler()
        self._workers = getattr(iterator, "_workers", [])
        if self._workers and self._seconds < math.inf and not self._thread.is_alive():
            self._thread.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Enforce the deadline while the block waits for workers."""
        self.deadline = time.monotonic() + self._seconds
        try:
            with _DEATHS.raised():
                yield
        finally:
            self.deadline = math.inf

    def kill_workers(self) -> None:
        """Kill the workers with SIGKILL."""
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
        with suppress(RuntimeError, WorkerDied):  # torch reports dead workers from a signal handler
            worker.kill()
            worker.join()
    _DEATHS.forget()


def _kill_all() -> None:
    for iterator in list(_ITERATORS):
        _kill(getattr(iterator, "_workers", []))


_END, _DEATHS = object(), WorkerDeaths()
# The traceback of an uncaught error keeps iterators alive until the process exits. There
# multiprocessing sends each worker one SIGTERM, which workers ignore, and waits for them.
_ITERATORS: WeakSet[Any] = WeakSet()
Finalize(None, _kill_all, exitpriority=10)
