"""Saving beside the training: a copy of the state, and one thread that writes it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def in_background(is_wanted: bool | str, device: torch.device) -> bool:
    """Decide where the config says ``auto``: on a CPU that computes, a thread only competes."""
    return device.type != "cpu" if is_wanted == "auto" else bool(is_wanted)


class Background:
    """Does one piece of work at a time beside the training; what fails is raised here, later."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], Any]) -> None:
        """Begin with a piece of work; wait for the one before."""
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), name="saver")
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong, if something has by now; does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until the work is done; raise what went wrong in it, once."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _do(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error


class Snapshot:
    """Copies all tensors of a plain state into CPU memory, which is kept for the next copy.

    Tensors that share their numbers share them in the copy too. Of one on a GPU the copy is pinned.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._copied: dict[int, Tensor] = {}

    def take(self, state: Any) -> Any:
        """Return the state with copies for tensors; good until the next call."""
        self._copied = {}
        copied = self._copy(state)
        del self._kept[len(self._copied) :]
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()  # the copies were queued behind the step
        return copied

    def _copy(self, value: Any) -> Any:
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
        key = storage.data_ptr() if storage.nbytes() else -1
        if key not in self._copied:
            content = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            self._copied[key] = self._buffer(content).copy_(content, non_blocking=True)
        numbers = self._copied[key].untyped_storage()
        shape = (tensor.storage_offset(), tensor.shape, tensor.stride())
        return torch.empty(0, dtype=tensor.dtype).set_(numbers, *shape)

    def _buffer(self, content: Tensor) -> Tensor:
        """Return memory as large as this, that of the last copy where it is."""
        place = len(self._copied)
        if place == len(self._kept) or len(self._kept[place]) != len(content):
            buffer = torch.empty(len(content), dtype=torch.uint8, pin_memory=content.is_cuda)
            self._kept[place : place + 1] = [buffer]
        return self._kept[place]
