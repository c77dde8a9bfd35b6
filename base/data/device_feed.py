"""Batches on the device, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from base.data.batch import tensors_in, to_device


class LapClock(Protocol):
    """Divides time into parts; `base.training.epoch_time.Clock` is one."""

    def lap(self, part: str) -> None: ...

    def end_step(self, device_is_idle: bool) -> None: ...


def feed(
    batches: Iterator[Any], device: torch.device, prefetch: int, clock: LapClock
) -> Iterator[Any]:
    """Yield batches on the device; none is kept here.

    Args:
        prefetch: on a GPU, how many batches are copied ahead of their turn, from pinned memory and
            beside the computation; that many lie there at most, besides the one in use.
        clock: counts the time spent on waiting for data and on copies.
    """
    clock.lap("compute")
    n_ahead = prefetch if device.type == "cuda" else 0
    copies = CopiesAhead(device) if n_ahead else Copies(device)
    copied: deque[Any] = deque()
    for batch in batches:
        clock.lap("data")
        copied.append(copies.begin(batch))
        del batch
        clock.lap("copy")
        if len(copied) > n_ahead:
            yield copies.finish(copied.popleft())
            clock.end_step(copies.is_out_of_work())
    while copied:
        yield copies.finish(copied.popleft())
        clock.end_step(copies.is_out_of_work())


class Copies:
    """Bring batches to the device, each in its turn."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.kind = device, device.type

    def begin(self, batch: Any) -> Any:
        """Begin to copy; return what `finish` takes."""
        return batch if self.kind == "cpu" else to_device(batch, self.device)

    def finish(self, copied: Any) -> Any:
        """Return the batch, ready for the computation."""
        return copied

    def is_out_of_work(self) -> bool:
        """Tell, without waiting, whether a GPU has done all that it was given."""
        return self.kind == "cuda" and torch.cuda.current_stream(self.device).query()


class CopiesAhead(Copies):
    """Bring batches to a GPU on a stream of their own, beside the computation."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)

    def begin(self, batch: Any) -> Any:
        # What data in memory on the GPU are made of was computed there, on the main stream.
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            return to_device(batch, self.device), self.stream.record_event()

    def finish(self, copied: Any) -> Any:
        batch, event = copied
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(event)
        for tensor in tensors_in(batch):
            tensor.record_stream(stream)  # its memory is not used again before the step is over
        return batch
