"""Sums gradients over all ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from base.distributed.agreement import Kind
from base.distributed.group import World

BUCKET_BYTES = 25 << 20


def sum_gradients(parameters: Sequence[Tensor], world: World, step: int) -> None:
    """Replace the gradient of each parameter by its sum over all ranks.

    A parameter without a gradient on any rank keeps none. One that some ranks lack counts as 0
    there. The sums are equal to the bit on all ranks.
    """
    for bucket in buckets(parameters):
        sum_bucket(bucket, world, step)


def buckets(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Divide parameters into groups of one dtype and device, of about `BUCKET_BYTES` each."""
    by_kind: dict[tuple[torch.dtype, torch.device], list[list[Tensor]]] = defaultdict(lambda: [[]])
    sizes: dict[tuple[torch.dtype, torch.device], int] = defaultdict(int)
    for parameter in parameters:
        kind = (parameter.dtype, parameter.device)
        if sizes[kind] + parameter.nbytes > BUCKET_BYTES and by_kind[kind][-1]:
            by_kind[kind].append([])
            sizes[kind] = 0
        by_kind[kind][-1].append(parameter)
        sizes[kind] += parameter.nbytes
    return [bucket for groups in by_kind.values() for bucket in groups if bucket]


def sum_bucket(bucket: Sequence[Tensor], world: World, step: int) -> None:
    """Sum the gradients of parameters of one dtype and device over all ranks, in one operation."""
    import torch.distributed as dist

    with torch.no_grad():
        found = [parameter.grad is not None for parameter in bucket]
        flags = torch.tensor(found, dtype=bucket[0].dtype, device=bucket[0].device)
        flat = torch.cat([*(_gradient(p).reshape(-1) for p in bucket), flags])
        with world.watched(Kind.UPDATE, step):
            dist.all_reduce(flat)
        n_entries = sum(parameter.numel() for parameter in bucket)
        reached = flat[n_entries:].tolist()
        for parameter, part, n_ranks in zip(bucket, _split(flat, bucket), reached, strict=True):
            if n_ranks:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(part.view_as(parameter))


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _split(flat: Tensor, like: Iterable[Tensor]) -> Iterable[Tensor]:
    first = 0
    for tensor in like:
        yield flat[first : first + tensor.numel()]
        first += tensor.numel()
