"""Workarounds for torch, each with its reason and the cost of removing it.

- `put_off_dynamo`: the first optimizer of a process, and torchvision, import torch's compiler.
  Without the change, each run starts 1.5 s later (CPU time, torch 2.14, 2 cores) and holds 150 MB
  more (docs/decisions/0011).
- `WorkerDeaths`: torch raises the death of a DataLoader's worker from a signal handler, wherever
  the main thread is. Without the change, it may interrupt a save or a callback. Without torch's
  handler, it is noticed up to 5 s later (0.1 s with it), and by a text that names no signal
  (docs/decisions/0014).
- `keep_freed_memory`: on the CPU glibc returns freed memory to the system at once. Without the
  change, a step of a small convolutional network took 13 % more CPU time (docs/decisions/0013).
- `AUTOCAST_CACHE`: autocast of torch 2.10 loses gradients. Without the change, a weight that is
  cast in ``no_grad`` first is not trained there, without an error.
- `begin_momentum`: fused SGD fails where a parameter receives its first gradient later than
  others, as after `freeze: until`. Without the change, that step raises a TypeError.
- `call_to_compile`: ``Module.compile`` of torch 2.10 leaves out a module whose ``forward`` is
  torch's own, such as a Sequential. Without the change, `memory.compile` does nothing there.

tests/base/system/test_torch_compat.py has a test for each, which fails once it is not needed.

Differences between the supported versions, 2.10 to the newest, that need no change here: after 2.10
the profiler no longer warns when it starts (``acc_events`` in run/profiler.py), and
``linear_cross_entropy``, the ``bias`` of BatchNorm, GroupNorm and InstanceNorm, and ``maximize`` of
LBFGS exist. With 2.10, names of these in a config are errors. 2.10 does not load a file of weights
that holds a deque or a subclass of list beside them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import inspect
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])

AUTOCAST_CACHE = TORCH >= (2, 11)
"""Whether autocast may cache the cast of a weight within a step.

In 2.10 a cast made under ``no_grad`` silently has no gradient in later uses either.
"""

DYNAMO = "torch._dynamo"
DYNAMO_UTILS = "torch._dynamo.utils"


def put_off_dynamo() -> None:
    """Replace torch._dynamo by a stand-in unless it is already imported."""
    if DYNAMO not in sys.modules:
        sys.modules[DYNAMO] = torch._dynamo = _LateDynamo()
        sys.modules[DYNAMO_UTILS] = _LateUtils()


def dynamo_is_imported() -> bool:
    """Return whether torch's compiler is imported, not only its stand-in."""
    module = sys.modules.get(DYNAMO)
    return module is not None and not isinstance(module, _LateDynamo)


@contextmanager
def without_compilation() -> Iterator[None]:
    """Run compiled models and functions eagerly, to save the time and files of compiling."""
    if not dynamo_is_imported():
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def call_to_compile(network: nn.Module) -> Callable[..., Any]:
    """Return the call of a network, which torch compiles although ``forward`` may be its own."""
    from torch._dynamo import eval_frame, external_utils, trace_rules

    is_entered = hasattr(eval_frame.OptimizedModule, "_should_wrap_module_call_impl")
    if is_entered or not trace_rules.check(network.forward):
        return network._call_impl
    wrapped: Callable[..., Any] = external_utils.wrap_inline(network._call_impl)
    return wrapped


class _LateDynamo(ModuleType):
    """A stand-in for torch._dynamo, which imports it on first use of anything but two functions.

    An optimizer and torchvision's transforms exclude functions from compilation (`disable`). An
    optimizer calls a function that does nothing outside of compiled code (`graph_break`).
    """

    def __init__(self) -> None:
        super().__init__(DYNAMO)
        self._marked: list[Callable[..., Any]] = []
        self._disabled: list[_LateDisable] = []

    def graph_break(self, msg: str = "") -> None:
        """Do nothing, like the real function outside of compiled code."""

    def disable(self, fn: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Return a function that is called as it is until something can compile it."""
        if not inspect.isfunction(fn):
            return self._import().disable(fn, *args, **kwargs)
        if kwargs.get("wrapping", True):
            self._disabled.append(_LateDisable(fn, args, kwargs))
            return self._disabled[-1].function
        self._marked.append(fn)
        return fn

    def __getattr__(self, name: str) -> Any:
        # Code that inspects all modules looks up special names.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(self._import(), name)

    def _import(self) -> ModuleType:
        if sys.modules.get(DYNAMO) is self:
            del sys.modules[DYNAMO], torch._dynamo
            sys.modules.pop(DYNAMO_UTILS, None)
        real = importlib.import_module(DYNAMO)
        for function in self._marked:
            vars(function).pop("__dynamo_disable", None)  # torch then marks it for the compiler
        for late in self._disabled:
            late.settle(real)
        vars(self).update(vars(real))  # for code that holds this stand-in
        return real


class _LateUtils(ModuleType):
    """A stand-in for torch._dynamo.utils, of which torchvision imports one function."""

    def __init__(self) -> None:
        super().__init__(DYNAMO_UTILS)

    def is_compile_supported(self, device_type: Any) -> Any:
        """Ask the real function."""
        return self._import().is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._import(), name)

    def _import(self) -> ModuleType:
        stand_in = sys.modules.get(DYNAMO)
        if isinstance(stand_in, _LateDynamo):
            stand_in._import()
        return importlib.import_module(DYNAMO_UTILS)


class _LateDisable:
    """Calls a function as it is until dynamo is imported, then as dynamo's ``disable`` wraps it."""

    def __init__(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        self._target, self._fn, self._arguments = fn, fn, (args, kwargs)

        @functools.wraps(fn)
        def call(*values: Any, **named: Any) -> Any:
            return self._target(*values, **named)

        self.function = call

    def settle(self, dynamo: Any) -> None:
        """Wrap the function; compiled code calls ``self.function`` and does not enter it."""
        args, kwargs = self._arguments
        self._target = dynamo.disable(self._fn, *args, **kwargs)
        dynamo.decorators.skip(self.function)


class WorkerDied(Exception):  # noqa: N818  (named after the event)
    """torch's error for a dead DataLoader worker, as a separate class.

    torch raises a RuntimeError, which `threading.Condition.notify` mistakes for an error of its
    lock and ignores.
    """


class WorkerDeaths:
    """Raises the error for a dead worker only while a batch is awaited."""

    def __init__(self) -> None:
        self._is_awaited = False
        self._error: WorkerDied | None = None
        self._handler_of_torch: Any = None

    def replace_handler(self) -> None:
        """Handle SIGCHLD before torch's handler, if torch has set one."""
        handler = getattr(signal, "SIGCHLD", None) and signal.getsignal(signal.SIGCHLD)
        module = getattr(handler, "__module__", "")
        is_of_torch = module == "torch.utils.data._utils.signal_handling"
        if is_of_torch and threading.current_thread() is threading.main_thread():
            self._handler_of_torch = handler
            signal.signal(signal.SIGCHLD, self._handle)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raise the error for a worker that dies in this block, or died before it.

        Raises:
            WorkerDied: with torch's message.
        """
        self._is_awaited = True
        try:
            self._raise_kept()
            yield
            self._raise_kept()
        except WorkerDied:
            self._error = None
            raise
        finally:
            self._is_awaited = False

    def _raise_kept(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def forget(self) -> None:
        """Discard an error that was not raised yet."""
        self._error = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        try:
            self._handler_of_torch(number, frame)
        except RuntimeError as error:
            self._error = WorkerDied(str(error))
            if self._is_awaited and not _is_forking(frame):
                raise self._error from None


def _is_forking(frame: FrameType | None) -> bool:
    """Return whether a process is being started, when Python ignores errors in its hooks."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "multiprocessing.popen_fork":
            return frame.f_code.co_name == "_launch"
        frame = frame.f_back
    return False


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
KEPT_BYTES, LARGEST_BYTES = 2**31 - 1, 2**30  # kept at the end of the heap; allocated from the heap


def keep_freed_memory(device: torch.device) -> bool:
    """Make glibc keep freed memory for the next step, like torch on a GPU; return whether it can.

    By default glibc returns large blocks to the system immediately, and each training step on the
    CPU maps and clears its pages again (see mallopt(3)). The process then stays as large as its
    largest step.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    is_set = mallopt(M_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES)
    return bool(is_set)


def begin_momentum(optimizer: Optimizer) -> None:
    """Add the momentum of parameters that receive their first gradient later than others."""
    if not isinstance(optimizer, SGD) or not optimizer.state:
        return
    for group in optimizer.param_groups:
        if not (group["fused"] and group["momentum"]):
            continue
        for p in group["params"]:
            if p.grad is None or optimizer.state.get(p, {}).get("momentum_buffer") is not None:
                continue
            # The first momentum is the gradient; torch computes it from this one.
            gradient = -p.grad if group["maximize"] else p.grad
            gradient = gradient + group["weight_decay"] * p.detach()
            before = gradient * (group["dampening"] / group["momentum"])
            optimizer.state[p]["momentum_buffer"] = before
