"""Moves batches to the device, one after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from base.data.batch import in_pinned_memory, tensors_in, to_device
from base.errors import OutOfMemoryError
from base.system.resources import ignored_out_of_memory, is_out_of_memory


class LapClock(Protocol):
    """Splits time into parts. `base.training.epoch_time.Clock` implements it."""

    def lap(self, part: str) -> None: ...

    def end_step(self, device_is_idle: bool) -> None: ...


def feed(
    batches: Iterator[Any], device: torch.device, prefetch: int, clock: LapClock
) -> Iterator[Any]:
    """Yield batches on the device, keeping no reference to them.

    Args:
        prefetch: on a GPU, the number of batches to copy in advance, from pinned memory and in
            parallel with the computation. At most that many are held besides the one in use.
        clock: measures the time spent waiting for data and copying.
    """
    clock.lap("compute")
    if device.type == "cpu":  # nothing to copy
        for batch in batches:
            clock.lap("data")
            yield batch
            del batch  # frees it before the next one is read
            clock.lap("compute")
        return
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
    """Copies batches to the device one by one."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.kind = device, device.type

    def begin(self, batch: Any) -> Any:
        """Start a copy and return the argument of `finish`."""
        try:
            return to_device(batch, self.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            cause = str(error).strip().partition("\n")[0][:200]
            text = f"out of memory while a batch was copied to {self.device}: lower"
            text += " data_loader.args.batch_size, or memory.prefetch, the batches copied ahead"
            raise OutOfMemoryError(f"{text} ({cause})") from error

    def finish(self, copied: Any) -> Any:
        """Return the batch, ready for use."""
        return copied

    def is_out_of_work(self) -> bool:
        """Return, without waiting, whether the GPU has finished all queued work."""
        return self.kind == "cuda" and torch.cuda.current_stream(self.device).query()


class CopiesAhead(Copies):
    """Copies batches to a GPU on a separate stream, in parallel with the computation.

    A batch for which there is no memory is copied when its turn comes: earlier ones are freed then.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)

    def begin(self, batch: Any) -> Any:
        # Data that live on the GPU were computed there, on the main stream.
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with ignored_out_of_memory(), torch.cuda.stream(self.stream):
            return to_device(in_pinned_memory(batch), self.device), self.stream.record_event()
        return batch, None

    def finish(self, copied: Any) -> Any:
        batch, event = copied
        if event is None:
            return super().begin(batch)
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(event)
        for tensor in tensors_in(batch):
            tensor.record_stream(stream)  # its memory is not reused before the step ends
        return batch
