"""Writes checkpoints in a thread, from a copy of the state."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from base.distributed.shard import Rows, is_sharded, rows_of
from base.system.pinned_memory import exact_pinned_memory
from base.system.signals import SAVER


def saves_in_background(async_save: bool | str, device: torch.device) -> bool:
    """Resolve ``auto``: when training on a CPU, the thread would only compete for it."""
    return device.type != "cpu" if async_save == "auto" else bool(async_save)


class BackgroundWriter:
    """Runs one write at a time in a thread, and raises its error later, in the caller."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._is_done = threading.Event()

    def start(self, write: Callable[[], Any]) -> None:
        """Start a write, after the one before it has ended."""
        self.wait()
        self._is_done.clear()
        thread = threading.Thread(target=self._run, args=(write,), name=SAVER)
        thread.start()
        self._thread = thread

    def check(self) -> None:
        """Raise the error of a write that has ended; do not wait for one that has not."""
        if self._is_done.is_set():
            self.wait()

    def wait(self) -> None:
        """Wait until the write has ended; raise its error, once."""
        if self._thread is not None:
            self._is_done.wait()  # after a Ctrl-C in `join`, Python would consider the thread ended
            self._thread.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except BaseException as error:
            self._error = error
        finally:
            self._is_done.set()


class Snapshot:
    """Copies all tensors of a state into CPU memory, which the next copy reuses.

    Tensors that share memory share it in the copy too. Copies of CUDA tensors are pinned. Of a
    sharded tensor the `Rows` of this process are copied.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._views: list[Tensor] = []  # of each buffer, as the last tensor copied into it
        self._copied: dict[Any, Tensor] = {}  # device and address of a storage: its copy
        self._devices: set[torch.device] = set()  # with copies to wait for
        self._pairs: list[tuple[Tensor, Tensor]] = []  # (buffer, tensor to copy into it)

    @torch.no_grad()
    def take(self, state: Any) -> Any:
        """Return the state with copies of its tensors, which are valid until the next call."""
        self._copied, self._pairs, self._devices = {}, [], set()
        copied = self._copy(state)
        if self._pairs:  # in one call, so that the GIL is taken once
            buffers, contents = zip(*self._pairs, strict=True)
            torch._foreach_copy_(buffers, contents)
            self._pairs.clear()
        for device in self._devices:  # the copies were queued behind the step
            torch.cuda.current_stream(device).synchronize()
        del self._buffers[len(self._copied) :], self._views[len(self._copied) :]
        return copied

    def _copy(self, value: Any) -> Any:
        if is_sharded(value):
            value = rows_of(value)
        if isinstance(value, Rows):
            return replace(value, tensor=self._copy_tensor(value.tensor))
        if isinstance(value, Tensor):
            return self._copy_tensor(value)
        if isinstance(value, dict):
            copied: Any = type(value)()
            for key, item in value.items():
                copied[key] = self._copy(item)
            if hasattr(value, "_metadata"):
                copied._metadata = value._metadata
            return copied
        return type(value)(map(self._copy, value)) if type(value) in (list, tuple) else value

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided:
            return tensor.cpu().clone()
        storage = tensor.untyped_storage()
        key = (storage.device, storage.data_ptr()) if storage.nbytes() else None
        place = len(self._copied)
        if key not in self._copied and place < len(self._views):
            view, buffer = self._views[place], self._buffers[place]
            is_whole = storage.nbytes() == tensor.nbytes == buffer.nbytes
            if is_whole and _is_alike(view, tensor):
                self._copied[key] = buffer  # what follows, without its 20 us
                self._queue(view, tensor)
                return view
        if key not in self._copied:
            content = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            self._copied[key] = self._next_buffer(content)
            self._queue(self._copied[key], content)
        copied = self._copied[key].untyped_storage()
        shape = (tensor.storage_offset(), tensor.shape, tensor.stride())
        view = torch.empty(0, dtype=tensor.dtype).set_(copied, *shape)
        if len(self._copied) > place:
            self._views[place : place + 1] = [view]
        return view

    def _queue(self, buffer: Tensor, content: Tensor) -> None:
        if content.device.type == "cpu":
            self._pairs.append((buffer, content))
        else:
            buffer.copy_(content, non_blocking=content.is_cuda)
            self._devices |= {content.device} if content.is_cuda else set()

    def _next_buffer(self, content: Tensor) -> Tensor:
        """Return a buffer of the same size, reusing the last copy's if possible."""
        place = len(self._copied)
        if place == len(self._buffers) or len(self._buffers[place]) != len(content):
            with exact_pinned_memory() if content.is_cuda else nullcontext():
                buffer = torch.empty(len(content), dtype=torch.uint8, pin_memory=content.is_cuda)
            self._buffers[place : place + 1] = [buffer]
        return self._buffers[place]


def _is_alike(one: Tensor, other: Tensor) -> bool:
    is_same_kind = one.dtype == other.dtype and one.shape == other.shape
    return is_same_kind and one.stride() == other.stride()
