"""One message of fixed size in which all processes agree on what happens next.

Every collective operation of a training follows such a message. A process that fails sends its
next message as a failure, whatever the others are about to do, so that none waits for it in vain.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from array import array
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from base.errors import KindlingError, TrainingError
from base.system.signals import ENDS_WITH_ERROR

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Store

    from base.distributed.links import Links, Pending

PATIENCE_SECONDS = 1.5  # for the other ranks to report themselves after one is lost
LONG_WAIT = 10  # times the timeout: where one rank may work while the others wait


class Kind(Enum):
    """The point of a training at which a message is sent; the value describes the wait for it."""

    START = "the start of training"
    WINDOW = "the batches of a step"
    UPDATE = "the gradients"
    BUFFERS = "the buffers after a step"
    EPOCH = "the end of an epoch"
    VALID = "a batch of the evaluation"
    SAVE = "a checkpoint to be written"
    ALL_GATHER = "the values of all ranks"
    GATHER = "the values of the other ranks on rank 0"
    BROADCAST = "a value of rank 0"
    COPY = "tensors of rank 0"
    END = "the end of training"


NUMBERS = {kind: number for number, kind in enumerate(Kind, start=1)}
EXCHANGES = (Kind.ALL_GATHER, Kind.GATHER, Kind.BROADCAST, Kind.COPY)
PATIENT = (Kind.START, Kind.EPOCH, Kind.SAVE, Kind.END, *EXCHANGES)
FIELDS = (
    "kind", "step",  # of a rank that has not failed
    "failed",
    "oom_half",  # of a rank out of memory: half its number of samples
    "nonfinite",  # 1 if the loss is not finite
    "stop",  # the signal that asks to stop
    "save",  # 1 for a request to save
    "save_due",  # 1 if it is due by the clock of this rank
    "optimizer",  # the number of the optimizer that is about to step
    "begun", "stale",  # of the sums of gradients; see `GradientSums`
    "has_new",  # 1 for buffers that changed for the first time; see `BufferMeans`
    "n_samples", "found",  # of the window; see `Window`
)  # fmt: skip
PLACES = {field: place for place, field in enumerate(FIELDS)}
MAX_LOSSES = 34  # whose denominators follow the fields
WIDTH = len(FIELDS) + MAX_LOSSES  # of the row of numbers that a rank sends


class RankLostError(TrainingError):
    """A process of the group ended, or does not answer."""

    needs_advice = True


def out_of_step(places: Iterable[str]) -> RankLostError:
    """Return the error for ranks that do not make the same calls.

    Args:
        places: where each rank is.
    """
    text = "the ranks are at different points of the training, and each must make the same"
    text += " calls of `update`, `gather` and `save`: check what depends on the rank"
    return RankLostError(f"{text} ({'; '.join(places)})")


class PeerError(KindlingError):
    """Another process failed; rank 0 reports its error, the others exit without a word."""

    is_printed_once = True

    def __init__(
        self, rank: int, text: str, exit_code: int = 1, needs_advice: bool = False
    ) -> None:
        super().__init__(f"rank {rank}: {text}")
        self.exit_code, self.needs_advice = exit_code, needs_advice


class Message:
    """What all ranks sent: ``message["stop"]`` holds the numbers of that field, by rank.

    Args:
        numbers: the row of each rank, (size * `WIDTH`,).
    """

    def __init__(self, numbers: array[float]) -> None:
        self._numbers = numbers

    def __getitem__(self, field: str) -> array[float]:
        return self._numbers[PLACES[field] :: WIDTH]

    def ranks_with(self, field: str) -> list[int]:
        """Return the ranks for which a field is not 0."""
        return [rank for rank, number in enumerate(self[field]) if number]

    def denominators(self, n_losses: int) -> list[float]:
        """Return the sums of the first denominators over all ranks."""
        first, end = len(FIELDS), min(len(FIELDS) + n_losses, WIDTH)
        return [sum(self._numbers[place::WIDTH]) for place in range(first, end)]

    @property
    def stop_signal(self) -> int | None:
        """The signal that asks to stop, of the lowest rank that received one."""
        return next((int(number) for number in self["stop"] if number), None)

    @property
    def is_out_of_memory(self) -> bool:
        """Whether a rank is out of memory, so that this step is repeated or ends the training."""
        return any(self["oom_half"])


class Ticket:
    """A message on its way; `Agreement.finish` returns those of all ranks."""

    __slots__ = ("kind", "message", "patience", "received", "sent", "step", "work")

    def __init__(self, kind: Kind, step: int, sent: array[float], size: int) -> None:
        self.kind, self.step, self.sent = kind, step, sent
        self.received = array("d", bytes(8 * size * WIDTH))
        self.patience = 0.0  # in seconds
        self.work: Pending | None = None
        self.message: Message | None = None


class Agreement:
    """Sends and receives messages, in one order on all ranks.

    Args:
        group: the process group of the messages, on the CPU.
        links: connections that carry them in its place, if all ranks are on one machine.
        store: the key-value store of this attempt.
        timeout: the seconds to wait for a rank in a step.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        group: ProcessGroup,
        store: Store,
        timeout: float,
        links: Links | None = None,
    ) -> None:
        self.rank, self.size, self.timeout, self.links = rank, size, timeout, links
        self.group, self.store = group, store
        self._pending: deque[Ticket] = deque()
        self._has_failed = False
        self._has_begun = False  # the first steps compile, cache and connect: they may take longer
        self._options = [_options(timeout * factor) for factor in (1, LONG_WAIT)]
        about = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
        store.set(f"peer/{rank}", json.dumps(about))

    def begin(
        self, kind: Kind, step: int, denominators: Sequence[float] = (), **values: float
    ) -> Ticket:
        """Send a message without waiting for the others. Fields that are left out are 0."""
        values = {"kind": NUMBERS[kind], "step": step, **values}
        return self._send(kind, step, _row(values, denominators))

    def finish(self, ticket: Ticket) -> Message:
        """Wait for a message of all ranks, and for all that were sent before it.

        Raises:
            PeerError: another rank has failed.
            RankLostError: a rank ended, does not answer, or is at another point of the training.
        """
        message = self._resolve(ticket)
        self._refuse_failure(ticket, message)
        return message

    def agree(
        self, kind: Kind, step: int = 0, denominators: Sequence[float] = (), **values: float
    ) -> Message:
        """Send a message and wait for it."""
        return self.finish(self.begin(kind, step, denominators, **values))

    def fail(self, error: BaseException, text: str) -> None:
        """Report an error of this rank in the next message that the others expect.

        After it returns, all ranks know; it returns at once if they already did. A rank that a
        signal interrupts waits for them for `PATIENCE_SECONDS` only.
        """
        if not self.note_failure(error, text):
            return
        with suppress(KindlingError, RuntimeError):
            ticket = self._send(Kind.END, 0, _row({"failed": 1}, ()))
            if isinstance(error, KeyboardInterrupt):
                _wait_briefly(ticket)
            else:
                self._resolve(ticket)

    def note_failure(self, error: BaseException, text: str) -> bool:
        """Note an error of this rank for the others to find when it is gone.

        Returns:
            whether they do not know of it already.
        """
        if self._has_failed or isinstance(error, PeerError | RankLostError):
            return False
        self._has_failed = True
        is_interrupt = isinstance(error, KeyboardInterrupt)
        code = 128 + _signal_of(error) if is_interrupt else getattr(error, "exit_code", 1)
        needs_advice = not isinstance(error, KindlingError | KeyboardInterrupt)
        about = {"text": text, "exit_code": code, "needs_advice": needs_advice}
        with suppress(RuntimeError):  # the store is gone, with the process that held it
            self.store.set(f"failed/{self.rank}", json.dumps(about))
        return True

    def fail_out_of_memory(self, step: int, half: int, **values: float) -> Message:
        """Report that this rank is out of memory at a step, as the next message that is expected.

        Args:
            half: half the number of samples that did not fit.
            values: more fields.
        """
        values = {"kind": NUMBERS[Kind.UPDATE], "step": step, "oom_half": half, **values}
        return self.finish(self._send(Kind.UPDATE, step, _row(values, ())))

    def failures(self) -> list[PeerError]:
        """Return the failures that other ranks reported."""
        found = []
        with suppress(RuntimeError):  # the store is gone, with the process that held it
            for rank in range(self.size):
                if rank != self.rank and self.store.check([f"failed/{rank}"]):
                    found.append(PeerError(rank, **json.loads(self.store.get(f"failed/{rank}"))))
        return found

    def lost(
        self, error: BaseException, what: str, step: int, seconds: float | None = None
    ) -> RankLostError | PeerError:
        """Return the error for a collective operation that failed: which rank, where, for what.

        Args:
            seconds: how long the rank was waited for; None for the timeout.
        """
        if found := self.failures():
            self._has_failed = True
            return found[0]
        absent = missing = self._missing_ranks(f"waits for {what} at step {step}")
        waited = "timed out" in str(error).lower()
        if absent and not waited:  # the others are at work, and do not know yet
            missing = [rank for rank in absent if self._process_here(rank) is None]
        if missing is None:
            text = f"the launcher's store, and with it rank 0's machine, is gone at step {step}"
        elif missing:
            who = ", ".join(f"rank {rank}{self._describe(rank)}" for rank in missing)
            how = f"has not answered for {seconds or self.timeout:g} s" if waited else "is gone"
            text = f"{who} {how} at step {step}, while the others waited for {what}"
        elif waited:
            places = (self.store.get(f"present/{rank}").decode() for rank in range(self.size))
            return out_of_step([f"rank {rank} {place}" for rank, place in enumerate(places)])
        else:
            text = f"the connection between ranks broke at step {step}, waiting for {what}"
            text += f" ({str(error).splitlines()[0][:120]})"
        self._end_stopped(missing or [])
        lost = RankLostError(text)
        lost.reporter = min({*range(self.size)} - {*(absent or [])})
        return lost

    def _send(self, kind: Kind, step: int, row: array[float]) -> Ticket:
        ticket = Ticket(kind, step, row, self.size)
        is_long = kind in PATIENT or not self._has_begun
        self._has_begun = self._has_begun or kind is Kind.UPDATE
        ticket.patience = self.timeout * (LONG_WAIT if is_long else 1)
        try:
            if self.links is not None:
                ticket.work = self.links.all_gather(ticket.received, row, ticket.patience)
            else:
                sent, received = map(_as_tensor, (row, ticket.received))
                options = self._options[is_long]
                ticket.work = self.group._allgather_base(received, sent, options)
        except RuntimeError as error:
            raise self.lost(error, kind.value, step) from error
        self._pending.append(ticket)
        return ticket

    def _resolve(self, ticket: Ticket) -> Message:
        """Wait for all messages up to this one, in their order."""
        while ticket.message is None:
            first = self._pending.popleft()
            assert first.work is not None
            try:
                first.work.wait()
            except RuntimeError as error:
                raise self.lost(error, first.kind.value, first.step, first.patience) from error
            first.message = Message(first.received)
            if first is not ticket:
                self._refuse_failure(first, first.message)
        return ticket.message

    def _refuse_failure(self, ticket: Ticket, message: Message) -> None:
        if any(message["failed"]):
            self._has_failed = True
            raise next(iter(self.failures()), PeerError(message.ranks_with("failed")[0], "failed"))
        # A rank out of memory reports it before it knows which optimizer is next.
        keys = ["kind", "step"] if message.is_out_of_memory else ["kind", "step", "optimizer"]
        if len({*zip(*(message[key] for key in keys), strict=True)}) > 1:
            self._has_failed = True
            kinds = dict(zip(NUMBERS.values(), NUMBERS, strict=True))
            places = zip(message["kind"], message["step"], message["optimizer"], strict=True)
            raise out_of_step(
                f"rank {rank} at step {step:.0f}, {_describe(kinds[int(kind)], int(number))}"
                for rank, (kind, step, number) in enumerate(places)
            )

    def _missing_ranks(self, place: str) -> list[int] | None:
        """Return the ranks that do not report themselves; None if the store is gone too.

        Args:
            place: what this rank reports.
        """
        try:
            self.store.set(f"present/{self.rank}", place)
            ends = time.monotonic() + PATIENCE_SECONDS
            while True:
                keys = {rank: f"present/{rank}" for rank in range(self.size)}
                missing = [rank for rank, key in keys.items() if not self.store.check([key])]
                if not missing or time.monotonic() > ends:
                    return missing
                time.sleep(0.1)
        except RuntimeError:
            return None

    def _describe(self, rank: int) -> str:
        with suppress(Exception):
            about = json.loads(self.store.get(f"peer/{rank}"))
            return f" ({about['host']}, pid {about['pid']})"
        return ""

    def _end_stopped(self, missing: Sequence[int]) -> None:
        """Kill lost ranks on this machine: torchrun waits 30 s for a stopped process to exit."""
        for rank in missing:
            if (pid := self._process_here(rank)) is not None:
                ENDS_WITH_ERROR.set()
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _process_here(self, rank: int) -> int | None:
        """Return the number of the process of a rank; None if it has ended, or is elsewhere."""
        with suppress(Exception):
            about = json.loads(self.store.get(f"peer/{rank}"))
            is_here = about["host"] == socket.gethostname()
            if is_here and about["started"] and _started(about["pid"]) == about["started"]:
                return int(about["pid"])
        return None


def _options(seconds: float) -> Any:
    from torch.distributed.distributed_c10d import AllgatherOptions

    options = AllgatherOptions()
    options.timeout, options.asyncOp = timedelta(seconds=seconds), True
    return options


def _row(values: Mapping[str, float], denominators: Sequence[float]) -> array[float]:
    row = array("d", bytes(8 * WIDTH))
    for field, value in values.items():
        row[PLACES[field]] = value
    for place, value in enumerate(denominators, start=len(FIELDS)):
        row[place] = value
    return row


def _as_tensor(numbers: array[float]) -> Tensor:
    """Return a view of the memory of numbers."""
    return torch.frombuffer(numbers, dtype=torch.float64)


def _describe(kind: Kind, optimizer: int) -> str:
    """Return what a message is about; an optimizer of -1 means that none steps."""
    if kind is not Kind.UPDATE:
        return f"{kind.value}"
    return "no update" if optimizer < 0 else f"{kind.value} of optimizer {optimizer}"


def _wait_briefly(ticket: Ticket) -> None:
    """Let a message leave before this process ends."""
    assert ticket.work is not None
    ends = time.monotonic() + PATIENCE_SECONDS
    while not ticket.work.is_completed() and time.monotonic() < ends:
        time.sleep(0.01)


def _signal_of(error: BaseException) -> int:
    return int(getattr(error, "number", signal.SIGINT))


def _started(pid: int) -> str:
    """Return the start time of a process, which tells it from a later one with the same number.

    It is empty for a process that has ended.
    """
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def text_of(error: BaseException) -> Any:
    """Return what rank 0 prints for an error of another rank."""
    import traceback

    if isinstance(error, KeyboardInterrupt):
        name = signal.Signals(_signal_of(error)).name
        return f"stopped by {name}, nothing more was saved"
    if isinstance(error, KindlingError):
        return "\n".join(filter(None, (error.trace.rstrip(), str(error), error.advice)))
    return "".join(traceback.format_exception(error)).rstrip()
