"""What makes a fault inside of a running `train.py`: each is called there before the script begins.

They are objects, not closures, because they are sent to another process.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from multiprocessing.util import Finalize
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar

import pytest
from faults.disk import DiskCalls

FOREVER = pytest.MonkeyPatch()  # of a process that will not be used for anything else


class Both:
    """Prepare several faults."""

    def __init__(self, *faults: Callable[[], object]) -> None:
        self.faults = faults

    def __call__(self) -> None:
        for fault in self.faults:
            fault()


@dataclass(frozen=True)
class CountCalls:
    """Write into a file how many calls changed the disk; of writes only each `every`-th counts."""

    note: Path
    every: int = 1

    def __call__(self) -> None:
        calls = DiskCalls(FOREVER, 0, lambda _: None, every=self.every)
        Finalize(None, lambda: self.note.write_bytes(b"%d" % calls.count), exitpriority=0)


@dataclass(frozen=True)
class DieAtCall:
    """Be killed at the call number `at` that changes the disk."""

    at: int
    every: int = 1

    def __call__(self) -> None:
        DiskCalls(
            FOREVER, self.at, lambda _: os.kill(os.getpid(), signal.SIGKILL), every=self.every
        )


@dataclass(frozen=True)
class FailAtCall:
    """Let a call that changes the disk fail with an error's number, or each from it on."""

    at: int
    number: int
    lasting: bool = False
    every: int = 1

    def __call__(self) -> None:
        def act(_: DiskCalls) -> None:
            raise OSError(self.number, os.strerror(self.number))

        DiskCalls(FOREVER, self.at, act, self.lasting, self.every)

    @property
    def text(self) -> str:
        """What an error of this number is called."""
        return os.strerror(self.number)


@dataclass(frozen=True)
class FailsToWrite:
    """Let files of this name fail to be synced, as a full disk and a broken one do."""

    name: str
    number: int

    def __call__(self) -> None:
        fsync = os.fsync

        def outer(descriptor: int) -> None:
            if f".{self.name}." in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                raise OSError(self.number, os.strerror(self.number))
            fsync(descriptor)

        FOREVER.setattr(os, "fsync", outer)


@dataclass(frozen=True)
class FailAtFile:
    """Let the call number `at` that makes, opens to write or renames something below a folder fail.

    Python itself reports these calls (`sys.addaudithook`), wherever they are made. How many were
    made is written into a file.
    """

    at: int
    number: int
    below: Path
    note: Path
    lasting: bool = False

    def __call__(self) -> None:
        count, counts = 0, list[str]()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event not in ("open", "os.mkdir", "os.rename"):
                return
            path = arguments[0]
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            if not isinstance(path, str | Path):
                return
            absolute = Path.cwd().joinpath(path)
            if self.below not in (absolute, *absolute.parents):
                return
            count += 1
            counts.append(f"{event} {path}")
            if count == self.at or (self.lasting and count > self.at):
                raise OSError(self.number, os.strerror(self.number), str(path))

        sys.addaudithook(hook)
        Finalize(None, lambda: self.note.write_text("\n".join(counts)), exitpriority=0)


@dataclass(frozen=True)
class SlowDisk:
    """Let each write of a checkpoint take so many seconds."""

    seconds: float

    def __call__(self) -> None:
        write = os.write

        def slow(descriptor: int, data: memoryview) -> int:
            time.sleep(self.seconds)
            return write(descriptor, data)

        calls = DiskCalls(FOREVER, 0, lambda _: None)
        calls.write = slow  # type: ignore[method-assign]


@dataclass(frozen=True)
class SignalIn:
    """Send itself a signal on the `at`-th entry of a function, and again so many seconds later.

    Args:
        function: as `module.Class.method`.
        delay: seconds that the function is held up before it.
    """

    number: int
    function: str
    at: int = 1
    again_after: float | None = None
    delay: float = 0.0
    NOTE: ClassVar[str] = ".signalled"

    def __call__(self) -> None:
        def act() -> None:
            time.sleep(self.delay)
            Path(self.NOTE).write_bytes(b"%f" % time.time())
            os.kill(os.getpid(), self.number)
            if self.again_after is not None:
                time.sleep(self.again_after)
                os.kill(os.getpid(), self.number)

        _on_entry(self.function, self.at, act)

    def sent(self, folder: Path) -> float:
        """Return when it was sent, in seconds of the system's clock."""
        return float((folder / self.NOTE).read_bytes())


@dataclass(frozen=True)
class HeldUp:
    """Let the `at`-th call of a function take so many seconds more."""

    seconds: float
    function: str
    at: int = 1

    def __call__(self) -> None:
        _on_entry(self.function, self.at, lambda: time.sleep(self.seconds))


def _on_entry(function: str, at: int, act: Callable[[], None], is_lasting: bool = False) -> None:
    """Call something before the `at`-th call of a function of this process, or from then on."""
    inner, count = resolve_name(function), 0

    def outer(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == at or (is_lasting and count > at):
            act()
        return inner(*arguments, **options)

    FOREVER.setattr(function, outer)


@dataclass(frozen=True)
class RaiseIn:
    """Raise an error on the `at`-th entry of a function, in each process that enters it so often.

    Args:
        function: as `module.Class.method`.
    """

    function: str
    at: int = 1
    NOTE: ClassVar[str] = ".raised"

    def __call__(self) -> None:
        def act() -> None:
            Path(self.NOTE).touch()
            raise RuntimeError("a fault of the test's own")

        _on_entry(self.function, self.at, act)


@dataclass(frozen=True)
class Raise:
    """Raise an error on the `at`-th entry of a function, named as `module.Class.method`."""

    error: BaseException
    function: str
    at: int = 1

    def __call__(self) -> None:
        def act() -> None:
            raise self.error

        _on_entry(self.function, self.at, act)


@dataclass(frozen=True)
class OtherCalls:
    """Let the trainer or the loader of this rank make other calls than those of the others.

    Args:
        what: "no update" or "a gather", from a step on, or "fewer batches" in an epoch.
    """

    what: str
    step: int = 7

    def __call__(self) -> None:
        import torch

        from base.base_data_loader import BaseDataLoader
        from base.base_trainer import BaseTrainer

        update, train_step = BaseTrainer.update, BaseTrainer.train_step
        batches = BaseDataLoader.batches

        def is_due(trainer: BaseTrainer) -> bool:
            return trainer.world.is_active and trainer.progress.step + 1 >= self.step

        def no_update(trainer: BaseTrainer, *arguments: Any, **options: Any) -> None:
            if not is_due(trainer):
                update(trainer, *arguments, **options)

        def gathers(trainer: BaseTrainer, batch: Any) -> Any:
            if is_due(trainer):
                trainer.gather(torch.zeros(1))
            return train_step(trainer, batch)

        def fewer(loader: BaseDataLoader, first: int, count: int) -> Any:
            yield from islice(batches(loader, first, count), 4)

        owner, name, new = {
            "no update": (BaseTrainer, "update", no_update),
            "a gather": (BaseTrainer, "train_step", gathers),
            "fewer batches": (BaseDataLoader, "batches", fewer),
        }[self.what]
        FOREVER.setattr(owner, name, new)


@dataclass(frozen=True)
class RaiseOsErrorIn:
    """Raise an OSError as user code might, in the second epoch."""

    where: str
    number: int
    PLACES: ClassVar[dict[str, tuple[str, int]]] = {
        "callback": ("base.callbacks.MemoryReport.on_epoch_end", 2),
        "transform": ("base.datasets.transforms.RandomShift.batch", 5),  # of groups of batches
        "loss": ("torch.nn.CrossEntropyLoss.forward", 12),
        "metric": ("base.training.metrics.SampleMean._update", 12),
    }

    def __call__(self) -> None:
        def act() -> None:
            raise OSError(self.number, os.strerror(self.number), "/somewhere/of/the/user")

        # After an error in a group of batches they are read again one by one.
        _on_entry(*self.PLACES[self.where], act, is_lasting=self.where == "transform")


@dataclass(frozen=True)
class WaitAtMost:
    """Let a batch of workers be waited for so many seconds at most, not for five minutes."""

    seconds: float

    def __call__(self) -> None:
        from base.data.workers import watched

        FOREVER.setattr(
            "base.base_data_loader.watched",
            lambda loader, _, name: watched(loader, self.seconds, name),
        )


@dataclass(frozen=True)
class Pace:
    """Let a step take so many seconds more, and add a byte to a file for each that is made."""

    seconds: float
    note: Path

    def __call__(self) -> None:
        from base.base_trainer import BaseTrainer

        inner = BaseTrainer.end_step

        def outer(trainer: BaseTrainer, values: Any) -> None:
            time.sleep(self.seconds)
            with self.note.open("ab") as file:
                file.write(b".")
            inner(trainer, values)

        FOREVER.setattr(BaseTrainer, "end_step", outer)


@dataclass(frozen=True)
class NoteSteps:
    """Add a line to a file for each step that is made: its number and the time of its end."""

    note: Path

    def __call__(self) -> None:
        from base.base_trainer import BaseTrainer

        inner = BaseTrainer.end_step

        def outer(trainer: BaseTrainer, values: Any) -> None:
            with self.note.open("a") as file:
                file.write(f"{trainer.progress.step + 1} {time.time()}\n")
            inner(trainer, values)

        FOREVER.setattr(BaseTrainer, "end_step", outer)


@dataclass(frozen=True)
class LossTimes:
    """Multiply the minimised loss of some steps, counted from 1 in this process."""

    factor: float
    steps: tuple[int, ...]

    def __call__(self) -> None:
        from base.base_trainer import BaseTrainer

        inner = BaseTrainer.compute_losses

        def outer(trainer: BaseTrainer, outputs: Any, batch: Any) -> Any:
            losses = inner(trainer, outputs, batch)
            if trainer.model.training and trainer.progress.step + 1 in self.steps:
                return {name: loss * self.factor for name, loss in losses.items()}
            return losses

        FOREVER.setattr(BaseTrainer, "compute_losses", outer)


@dataclass(frozen=True)
class Clock:
    """Let the clock that people set show another time at each look: back and forth."""

    jumps: tuple[float, ...]

    def __call__(self) -> None:
        import datetime
        import itertools

        jumps, true = itertools.cycle(self.jumps), time.time

        class Jumping(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return cls.fromtimestamp(time.time(), tz)

        FOREVER.setattr(time, "time", lambda: true() + next(jumps))
        FOREVER.setattr(datetime, "datetime", Jumping)


@dataclass(frozen=True)
class Removes:
    """Remove a file on the first entry of a function, named as `module.Class.method`."""

    path: Path
    function: str

    def __call__(self) -> None:
        _on_entry(self.function, 1, self.path.unlink)


class WithoutPrivilege:
    """Let permissions of files hold for the superuser too: drop what lets him pass them by."""

    def __call__(self) -> None:
        if os.geteuid() != 0:
            return
        # capset(2): version 3 has two words for each of effective, permitted, inheritable.
        version, override, search = 0x20080522, 1 << 1, 1 << 2
        header = (ctypes.c_uint32 * 2)(version, 0)
        sets = (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
        for place in range(2):
            sets[place] &= ~(override | search)
        assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


@dataclass(frozen=True)
class MemoryLimit:
    """Let one step ask for 256 MB more than the process has, and refuse what is above 64 MB.

    With no room at all oneDNN may be refused first, which says "could not create a primitive".
    """

    step: int

    def __call__(self) -> None:
        import torch

        from base.base_trainer import BaseTrainer

        inner = BaseTrainer.forward

        def outer(trainer: BaseTrainer, batch: Any) -> Any:
            if trainer.model.training and trainer.progress.step + 1 == self.step:
                pages = int(Path("/proc/self/statm").read_text().split()[0])
                limit = pages * resource.getpagesize() + (64 << 20)
                resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
                torch.empty(256 << 20, dtype=torch.uint8)
            return inner(trainer, batch)

        FOREVER.setattr(BaseTrainer, "forward", outer)
