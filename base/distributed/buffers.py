"""Keeps buffers equal on all ranks, such as the statistics of BatchNorm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from base.distributed.agreement import Kind
from base.distributed.group import World

if TYPE_CHECKING:
    from base.distributed.links import Pending


class Sum(NamedTuple):
    """The changes of buffers of one dtype and device, on their way to their sum."""

    names: list[str]
    flat: Tensor
    work: Pending


class BufferMeans:
    """Averages the floating-point buffers that steps change over all ranks.

    A buffer becomes ``before + sum(share * (buffer - before))``, so that one which is equal on all
    ranks keeps its value to the bit, infinite values too. Buffers that no step changes are not
    sent. Buffers that are not saved (``persistent=False``) remain those of each rank.

    Args:
        modules: the model and the losses that are modules, with equal buffers on all ranks.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        # Walking through the modules takes long, so it is done once; they may add buffers later.
        self._owners = [
            (f"{number}.{prefix}", module)
            for number, root in enumerate(modules)
            for prefix, module in root.named_modules()
        ]
        self._before: dict[str, Tensor] = {}  # the buffers that steps change, after the last step
        # Before the first step, which a resumed run must compute as one that was not interrupted.
        self._start = {name: buffer.clone() for name, (_, buffer) in self._buffers().items()}
        # Some kernels of BatchNorm write without a trace in the version.
        self._seen = {
            name: _version_of(buffer)
            for name, (module, buffer) in self._buffers().items()
            if not isinstance(module, _NormBase)
        }

    def average(self, world: World, share: float, step: int) -> None:
        """Average the buffers after a step that all ranks made.

        Args:
            share: the share of this rank in the samples of the step; the shares sum to 1.
        """
        buffers = {name: buffer for name, (_, buffer) in self._buffers().items()}
        if not buffers:
            return
        new = [
            name
            for name, buffer in buffers.items()
            if name not in self._before and self._seen.get(name) != _version_of(buffer)
        ]
        assert world.agreement is not None
        ticket = world.agreement.begin(Kind.BUFFERS, step, has_new=bool(new))
        sums = self._begin_sums({name: buffers[name] for name in self._before}, share, world)
        has_new = any(world.agreement.finish(ticket)["has_new"])
        self._finish(sums, buffers, world, step)
        start, self._start = self._start, {}
        if has_new:
            names = sorted({*chain(*world.all_gather(new))})
            added = {name: buffers[name] for name in names}
            later = [name for name in names if name not in start]
            self._before |= {name: start[name] for name in names if name in start}
            self._before |= {name: added[name].detach().clone() for name in later}
            world.broadcast_tensors([self._before[name] for name in later])
            self._finish(self._begin_sums(added, share, world), buffers, world, step)

    def _begin_sums(self, buffers: Mapping[str, Tensor], share: float, world: World) -> list[Sum]:
        """Begin to sum the changes of buffers over all ranks."""
        by_kind: dict[tuple[torch.dtype, torch.device], list[str]] = defaultdict(list)
        for name, buffer in buffers.items():
            by_kind[buffer.dtype, buffer.device].append(name)
        sums = []
        with torch.no_grad():
            for names in by_kind.values():
                flat = torch.cat([self._change_of(name, buffers[name], share) for name in names])
                sums.append(Sum(names, flat, world.begin_sum(flat)))
        return sums

    def _finish(
        self, sums: Iterable[Sum], buffers: Mapping[str, Tensor], world: World, step: int
    ) -> None:
        """Add the sums to the buffers."""
        with torch.no_grad():
            for names, flat, work in sums:
                with world.watched(Kind.BUFFERS, step):
                    work.wait()
                first = 0
                for name in names:
                    before, buffer = self._before[name], buffers[name]
                    change = flat[first : first + buffer.numel()].view_as(buffer)
                    before.copy_(torch.where(change == 0, before, before + change))
                    buffer.copy_(before)
                    first += buffer.numel()

    def _change_of(self, name: str, buffer: Tensor, share: float) -> Tensor:
        before = self._before[name]
        if share == 0:
            return torch.zeros_like(before).reshape(-1)
        return torch.where(buffer == before, 0, share * (buffer - before)).reshape(-1)

    def _buffers(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """Return the saved floating-point buffers with their modules, by name."""
        return {
            f"{owner}.{name}": (module, buffer)
            for owner, module in self._owners
            if module._buffers
            for name, buffer in module._buffers.items()
            if buffer is not None
            and buffer.is_floating_point()
            and name not in module._non_persistent_buffers_set
        }


def _version_of(buffer: Tensor) -> tuple[int, int]:
    return id(buffer), buffer._version
