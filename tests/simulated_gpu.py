"""A GPU without a GPU: tensors that are on `cuda:0` by name and compute on the CPU.

It counts what a host would wait for. The arithmetic is the CPU's, so a training on it must end with
the bits of one on the CPU. A copy to the host that does not block holds nonsense until an event
recorded after it has completed, as on a GPU.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
ROOT = Path(__file__).resolve().parent.parent
STAGED_BYTES = 64 << 10  # a larger copy from pageable memory waits, even if it is not to block

# Operations whose result the host needs, or whose shape depends on values.
WAITING = frozenset((
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2",
    "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount", "histc",
    "_ctc_loss.Tensor", "linalg_inv_ex", "repeat_interleave.Tensor", "segment_reduce",
    "multinomial", "embedding_renorm_", "_linalg_check_errors",
))  # fmt: skip


class OnGPU(Tensor):
    """A tensor of the simulated GPU; ``held`` holds its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> OnGPU:
        inner = inner.held if isinstance(inner, OnGPU) else inner
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=inner.device,
            requires_grad=requires_grad,
        )
        made.held = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return machine().compute(function, args, kwargs or {})

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        copy = kwargs.pop("copy", False)
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, blocks_not, form = torch._C._nn._parse_to(*args, **kwargs)
        options = {"dtype": dtype or self.dtype, "non_blocking": blocks_not, "memory_format": form}
        if device is None or device.type == "cuda":
            return super().to(**options, copy=copy)
        with machine().leaving():
            return torch.ops.aten._to_copy(self, **options, device=device)

    def cpu(self) -> Tensor:
        return self.to("cpu")

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        return self

    def tolist(self) -> Any:
        return self.to("cpu").tolist()

    def numpy(self) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, *_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __deepcopy__(self, memo: dict[int, Any]) -> OnGPU:
        made = OnGPU(self.held.clone(), self.requires_grad)
        if getattr(self, "_is_param", False):
            made._is_param = True
        memo[id(self)] = made
        return made

    def __repr__(self) -> str:
        return f"OnGPU({self.held!r})"

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def record_stream(self, stream: Any) -> None: ...


class Event:
    """Completes when the GPU has finished what was queued before `record`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.at = 0

    def record(self, stream: Any = None) -> None:
        self.at = machine().n_queued

    def query(self) -> bool:
        if machine().n_done >= self.at:
            machine().complete(self.at)
        return machine().n_done >= self.at

    def synchronize(self) -> None:
        machine().wait("Event.synchronize")
        machine().complete(self.at)

    def wait(self, stream: Any = None) -> None: ...


class Stream:
    def __init__(self, *_: Any, **__: Any) -> None: ...
    def wait_stream(self, other: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> Event:
        event = event or Event()
        event.record()
        return event

    def query(self) -> bool:
        return machine().n_done >= machine().n_queued

    def synchronize(self) -> None:
        machine().synchronize()


class Machine(TorchDispatchMode):
    """The host and its simulated GPU.

    Args:
        lag: the number of operations by which the GPU is behind the host.
    """

    def __init__(self, lag: float = 0) -> None:
        super().__init__()
        self.lag = lag
        self.waits: list[str] = []
        self.n_queued = self._n_synchronized = 0
        self._is_leaving = False
        self._pinned: set[int] = set()
        self._pending: list[
            tuple[int, Tensor, Tensor]
        ] = []  # copies to the host: when, where, what

    @property
    def n_done(self) -> float:
        return max(self._n_synchronized, self.n_queued - self.lag)

    def wait(self, what: str) -> None:
        """Note that the host waits, and where in the project."""
        frames = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(ROOT)]
        own = [f for f in frames if "tests" not in Path(f.filename).relative_to(ROOT).parts]
        where = ", ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in own[-4:])
        self.waits.append(f"{what} in {where}")

    def synchronize(self, *_: Any) -> None:
        self.wait("synchronize")
        self.complete(self.n_queued)

    def complete(self, at: float) -> None:
        """Let the GPU finish what was queued until then."""
        self._n_synchronized = max(self._n_synchronized, int(at))
        ready = [one for one in self._pending if one[0] <= self._n_synchronized]
        self._pending = [one for one in self._pending if one[0] > self._n_synchronized]
        for _, host, values in ready:
            host.copy_(values)

    @contextmanager
    def leaving(self) -> Iterator[None]:
        self._is_leaving = True
        try:
            yield
        finally:
            self._is_leaving = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return self.compute(function, args, kwargs or {})

    def compute(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation; its result is on the GPU if an argument or ``device`` is."""
        found = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        hosts = [x for x in found if not isinstance(x, OnGPU)]
        device, leaves, self._is_leaving = kwargs.get("device"), self._is_leaving, False
        to_gpu = device is not None and torch.device(device).type == "cuda"
        if kwargs.get("pin_memory"):
            args, kwargs = tree_map(plain, (args, {**kwargs, "pin_memory": False}))
            return self.pin(function(*args, **kwargs))
        if len(hosts) == len(found) and not to_gpu:
            return function(*args, **kwargs)
        self.n_queued += 1
        name = function._schema.name.removeprefix("aten::")
        if hosts and not to_gpu:
            _refuse_mixtures(name, hosts)
        self._note_wait(name, function._overloadname, args)
        kwargs = {**kwargs, "device": torch.device("cpu")} if to_gpu else kwargs
        if name in ("_to_copy", "copy_"):
            self._arrive_in_order(hosts)
        if name == "copy_" and hosts:
            return self._copied_between(*args, **kwargs)
        if name == "_to_copy" and hosts:
            self._note_upload(args[0], kwargs.get("non_blocking", False))
        plain_args, plain_kwargs = tree_map(plain, (args, kwargs))
        result = function(*plain_args, **plain_kwargs)
        if leaves:
            return self._download(result, kwargs.get("non_blocking"))
        return self._wrapped(function, args, kwargs, result)

    def _note_wait(self, name: str, overload: str, args: Any) -> None:
        if f"{name}.{overload}" in WAITING or name in WAITING:
            self.wait(name)
            self.complete(self.n_queued)
        if name in ("index", "index_put", "index_put_") and _selects_by_mask(name, args):
            self.wait(f"{name} by a mask")
        if name in ("index", "index_put", "index_put_"):
            for one in args[1]:
                if one is not None and not isinstance(one, OnGPU):
                    self.wait(f"{name}: a copy of {one.nbytes} bytes to the GPU")

    def _copied_between(self, to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """Copy from the host or to it, in place."""
        plain(to).copy_(plain(source))
        if isinstance(to, OnGPU):
            self._note_upload(source, non_blocking)
        else:  # to pageable memory it waits, whatever is asked for
            self._download(to, non_blocking and self.is_pinned(to))
        return to

    def _wrapped(self, function: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """Return results as tensors of the GPU; an argument that was written to, as itself."""
        returns = function._schema.returns
        if returns and returns[0].alias_info is not None and returns[0].alias_info.is_write:
            written = [
                kwargs.get(a.name, args[n] if n < len(args) else None)
                for n, a in enumerate(function._schema.arguments)
                if a.alias_info is not None and a.alias_info.is_write
            ]
            return written[0] if len(returns) == 1 else tuple(written)
        return tree_map(lambda x: OnGPU(x) if isinstance(x, Tensor) else x, result)

    def pin(self, tensor: Tensor) -> Tensor:
        self._pinned.add(tensor.untyped_storage().data_ptr())
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def _note_upload(self, source: Tensor, blocks_not: bool) -> None:
        is_pinned = self.is_pinned(source)
        if not blocks_not or (not is_pinned and source.nbytes > STAGED_BYTES):
            self.wait(f"a copy of {source.nbytes} bytes to the GPU")

    def _arrive_in_order(self, hosts: list[Tensor]) -> None:
        """Finish copies to these hosts: the GPU makes its copies one after the other."""
        for one in [one for one in self._pending if any(one[1] is host for host in hosts)]:
            self._pending.remove(one)
            one[1].copy_(one[2])

    def _download(self, host: Tensor, blocks_not: bool | None) -> Tensor:
        if not blocks_not:
            self.wait(f"a copy of {host.nbytes} bytes to the host")
            self.complete(self.n_queued)
            return host
        self._pending.append((self.n_queued, host, host.clone()))
        host.fill_(float("nan") if host.is_floating_point() else 0)
        return self.pin(host)


def _refuse_mixtures(name: str, hosts: list[Tensor]) -> None:
    """Raise an error, as a GPU would, for an operation on tensors of both devices."""
    may_mix = ("copy_", "_to_copy", "_foreach_copy_", "index", "index_put_", "set_")
    shapes = ", ".join(str(tuple(x.shape)) for x in hosts if x.dim())
    if shapes and name not in may_mix and not name.startswith("_fused"):
        raise RuntimeError(f"{name}: tensors {shapes} on the CPU and others on cuda:0")


def _selects_by_mask(name: str, args: Any) -> bool:
    masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
    is_fill = name != "index" and args[2].numel() == 1 and len(args[1]) == 1
    return bool(masks) and not is_fill


def plain(value: Any) -> Any:
    """Return the values of a tensor of the GPU on the CPU, without a wait; others unchanged."""
    return value.held if isinstance(value, OnGPU) else value


_current: list[Machine] = []


def machine() -> Machine:
    return _current[-1] if _current else Machine()  # for what outlives the GPU


@contextmanager
def simulated_gpu(lag: float = 0) -> Iterator[Machine]:
    """Let `cuda:0` exist inside the block."""
    with pytest.MonkeyPatch.context() as patch:
        patches: dict[str, Any] = {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "is_initialized": lambda: False,
            "Event": Event,
            "Stream": Stream,
            "stream": lambda stream: nullcontext(),
            "current_stream": lambda device=None: Stream(),
            "current_device": lambda: 0,
            "device_count": lambda: 1,
            "synchronize": lambda device=None: machine().synchronize(),
            "mem_get_info": lambda device=None: (1 << 36, 1 << 36),
            "get_device_capability": lambda device=None: (9, 0),
            "get_device_name": lambda device=None: "simulated",
            "memory_reserved": lambda device=None: 0,
            "memory_allocated": lambda device=None: 0,
            "max_memory_allocated": lambda device=None: 0,
            "reset_peak_memory_stats": lambda device=None: None,
        }
        patch.setattr(torch.accelerator, "synchronize", lambda: machine().synchronize())
        for name, value in patches.items():
            patch.setattr(torch.cuda, name, value)
        for check in (
            "_accelerator_graph_capture_health_check",
            "_cuda_graph_capture_health_check",
        ):
            patch.setattr(torch.optim.Optimizer, check, lambda optimizer: None, raising=False)
        for name in ("tensor", "as_tensor"):
            patch.setattr(torch, name, _made_on_cpu(getattr(torch, name)))
        patch.setattr("torch.nn.functional.one_hot", _one_hot)
        group = torch._C._group_tensors_by_device_and_dtype
        patch.setattr(torch._C, "_group_tensors_by_device_and_dtype", _grouped_on_gpu(group))
        # Also of other threads, which the mode does not see.
        patch.setattr(Tensor, "pin_memory", lambda tensor, *_: machine().pin(tensor.clone()))
        patch.setattr(Tensor, "is_pinned", lambda tensor, *_: machine().is_pinned(tensor))
        patch.setattr(torch, "autocast", _autocast_of_cpu(torch.autocast))
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        # Parameters that move are new objects: a plain tensor does not become another in place.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        _current.append(Machine(lag))
        try:
            with _current[-1]:
                yield _current[-1]
        finally:
            _current.pop()
            torch.__future__.set_overwrite_module_params_on_conversion(False)


def _autocast_of_cpu(autocast: Callable[..., Any]) -> Callable[..., Any]:
    """Autocast of the CPU: that is what computes."""

    def made(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu", *args, **kwargs)

    return made


def _grouped_on_gpu(group: Callable[..., Any]) -> Callable[..., Any]:
    """Groups of tensors by device; torch's C++ code takes them for tensors of the CPU."""

    def grouped(lists: Any, *args: Any, **kwargs: Any) -> Any:
        device = GPU if any(isinstance(x, OnGPU) for x in lists[0]) else torch.device("cpu")
        found = group(lists, *args, **kwargs)
        return {(device, dtype): lists for (_, dtype), lists in found.items()}

    return grouped


def _made_on_cpu(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.tensor`` and ``torch.as_tensor``: a CPU tensor, and a copy that blocks."""

    def made(data: Any, dtype: Any = None, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, OnGPU) or device is None or torch.device(device).type == "cpu":
            return data if isinstance(data, OnGPU) else make(data, dtype=dtype, **kwargs)
        return make(data, dtype=dtype, **kwargs).to(GPU)

    return made


def _one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """``F.one_hot`` with a number of classes, which does not read the values on a GPU."""
    found = torch.ops.aten.one_hot(plain(classes), num_classes)
    return OnGPU(found) if isinstance(classes, OnGPU) else found
