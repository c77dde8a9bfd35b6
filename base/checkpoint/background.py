"""Saving beside the training: a copy of the state, and one thread that writes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from base.errors import CheckpointError
from base.system.signals import SAVER


def in_background(is_wanted: bool | str, device: torch.device) -> bool:
    """Decide where the config says ``auto``: on a CPU that computes, a thread only competes."""
    return device.type != "cpu" if is_wanted == "auto" else bool(is_wanted)


class Background:
    """Does one piece of work at a time beside the training; what fails is raised here, later."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._is_copied, self._is_done = threading.Event(), threading.Event()
        self._hooks: list[RemovableHandle] = []

    def start(
        self,
        work: Callable[[], Any],
        copy: Callable[[], Any] = lambda: None,
        optimizers: Iterable[Optimizer] = (),
    ) -> None:
        """Begin with a piece of work; wait for the one before.

        Args:
            copy: done before it, while these optimizers make no step and load no state.
        """
        self.wait()
        self._is_copied.clear()
        self._is_done.clear()
        thread = threading.Thread(target=self._do, args=(copy, work), name=SAVER)
        thread.start()
        self._thread = thread
        for optimizer in optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._hold))
            self._hooks.append(optimizer.register_load_state_dict_pre_hook(self._hold))

    def check(self) -> None:
        """Raise what went wrong, if something has by now; does not wait."""
        if self._is_done.is_set():
            self.wait()
        elif self._is_copied.is_set():
            self._let_go()

    def wait(self) -> None:
        """Wait until the work is done; raise what went wrong in it, once."""
        if self._thread is not None:
            self._is_done.wait()  # a Ctrl-C in `join` would let Python take the thread for ended
            self._thread.join()
        self._thread = None
        self._let_go()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def end(
        self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None
    ) -> None:
        """Wait at the end of a run, unless a second Ctrl-C is what ends it."""
        if kind is None or not issubclass(kind, KeyboardInterrupt):
            self.wait()

    def _do(self, copy: Callable[[], Any], work: Callable[[], Any]) -> None:
        try:
            copy()
            self._is_copied.set()
            work()
        except BaseException as error:
            self._error = error
        finally:
            self._is_copied.set()
            self._is_done.set()

    def _hold(self, *_: Any) -> None:
        self._is_copied.wait()

    def _let_go(self) -> None:
        """Take the hooks away; not within one, as torch walks over them then."""
        while self._hooks:
            self._hooks.pop().remove()


def changed_by_steps_alone(owners: Mapping[str, Any]) -> dict[str, Optimizer]:
    """Return those of torch's own optimizers; one from elsewhere may change its state anywhere."""
    return {
        name: one
        for name, one in owners.items()
        if isinstance(one, Optimizer) and type(one).__module__.split(".")[:2] == ["torch", "optim"]
    }


class Snapshot:
    """Copies all tensors of a plain state into CPU memory, which is kept for the next copy.

    Tensors that share their numbers share them in the copy too. Of one on a GPU the copy is pinned.
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._copied: dict[int, Tensor] = {}
        self._rest: list[dict[str, Any]] = []  # whose entry "state" is still to be copied
        self._versions: list[tuple[Tensor, int]] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []  # of memory and what belongs into it

    def take(self, state: Any) -> Any:
        """Return the state with copies for tensors; good until the next call."""
        copied = self.begin({"all": state})["all"]
        self.finish()
        return copied

    def begin(self, state: Mapping[str, Any], later: Collection[str] = ()) -> dict[str, Any]:
        """Return the state with copies for all tensors but those that `finish` copies.

        Args:
            later: entries that are the states of optimizers. Where all is on the CPU, the tensors
                of these may wait, if nothing else in the state shares their numbers.
        """
        self._copied, self._rest, self._versions, self._pairs = {}, [], [], []
        copied: dict[str, Any] = dict(state)
        for name, value in state.items():
            tensors = list(_tensors_in(value.get("state"))) if name in later else []
            if tensors and not any(_must_not_wait(tensor) for tensor in tensors):
                self._versions += [(tensor, tensor._version) for tensor in tensors]
                copied[name] = {**self._copy({**value, "state": None}), "state": value["state"]}
                self._rest.append(copied[name])
            else:
                copied[name] = self._copy(value)
        self._copy_pairs()
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()  # the copies were queued behind the step
        return copied

    def finish(self) -> None:
        """Copy the rest of what `begin` was given.

        Raises:
            CheckpointError: it was changed since.
        """
        for part in self._rest:
            part["state"] = self._copy(part["state"])
        self._copy_pairs()
        if any(tensor._version != version for tensor, version in self._versions):
            raise CheckpointError(
                "checkpoint not written: an optimizer's state was changed, not by its step, before "
                "it was copied: call trainer.store.wait() before, or set trainer.async_save=false"
            )
        self._rest, self._versions = [], []
        del self._kept[len(self._copied) :]

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
            self._copied[key] = self._buffer(content)
            if content.device.type == "cpu":
                self._pairs.append((self._copied[key], content))
            else:
                self._copied[key].copy_(content, non_blocking=True)
        numbers = self._copied[key].untyped_storage()
        shape = (tensor.storage_offset(), tensor.shape, tensor.stride())
        return torch.empty(0, dtype=tensor.dtype).set_(numbers, *shape)

    def _copy_pairs(self) -> None:
        """Copy all at once: a thread beside the training then asks for Python's lock once."""
        if self._pairs:
            torch._foreach_copy_(
                [to for to, _ in self._pairs], [content for _, content in self._pairs]
            )
            self._pairs.clear()

    def _buffer(self, content: Tensor) -> Tensor:
        """Return memory as large as this, that of the last copy where it is."""
        place = len(self._copied)
        if place == len(self._kept) or len(self._kept[place]) != len(content):
            buffer = torch.empty(len(content), dtype=torch.uint8, pin_memory=content.is_cuda)
            self._kept[place : place + 1] = [buffer]
        return self._kept[place]


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(item)


def _must_not_wait(tensor: Tensor) -> bool:
    """Tell whether a copy is queued on a device, or whether its changes are not counted."""
    is_plain = tensor.device.type == "cpu" and tensor.layout is torch.strided
    return not is_plain or tensor.is_inference()
