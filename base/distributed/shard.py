"""FSDP2: parameters, gradients and optimizer states divided over the processes by rows.

Each process holds consecutive rows of each tensor and gathers the others for the layers that it
runs. torch represents such a tensor as a `DTensor` with the shape of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from base.errors import ConfigError, Problem, listed
from base.network.patterns import Pattern, match_modules

if TYPE_CHECKING:
    from base.distributed.group import World

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Division(NamedTuple):
    """One of the processes that a tensor is divided over."""

    rank: int
    size: int

    def of(self, n_rows: int) -> tuple[int, int]:
        """Return the first row of this process, and the row after its last."""
        each = -(-n_rows // self.size)
        return min(self.rank * each, n_rows), min((self.rank + 1) * each, n_rows)


@dataclass(frozen=True, slots=True)
class Rows:
    """Consecutive rows of a tensor that is divided along its first dimension.

    Args:
        tensor: the rows, (n_rows, ...).
        first: the number of the first of them.
        shape: the shape of the whole tensor.
    """

    tensor: Tensor
    first: int
    shape: tuple[int, ...]


def is_sharded(value: Any) -> bool:
    """Return whether a value is a tensor that is divided over the processes."""
    return isinstance(value, Tensor) and hasattr(value, "placements")


def local_part(tensor: Any) -> Tensor:
    """Return the rows of a sharded tensor that this process holds; other tensors as they are."""
    local: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return local


def class_name(module: nn.Module) -> str:
    """Return the name of a module's class, which sharding replaces by a subclass."""
    kind = type(module)
    is_replaced = any(base.__name__ == "FSDPModule" for base in kind.__bases__)
    return kind.__bases__[1].__name__ if is_replaced else kind.__name__


def whole(tensor: Any) -> Tensor:
    """Return a sharded tensor with the rows of all processes, which must call it together."""
    complete: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor
    return complete


def rows_of(tensor: Any) -> Rows:
    """Return the rows of a sharded tensor that this process holds, without a copy.

    Raises:
        ValueError: the tensor is not divided along its first dimension.
    """
    if not all(placement.is_shard(0) for placement in tensor.placements):
        raise ValueError(f"a tensor placed as {tensor.placements}, not divided by rows")
    first, _ = _division_of(tensor).of(tensor.shape[0])
    return Rows(tensor.detach().to_local(), first, tuple(tensor.shape))


def sharded_like(like: Any, value: Tensor | Rows) -> Tensor:
    """Return a sharded tensor with a copy of the rows that this process holds of another one.

    Args:
        like: a sharded tensor of the same shape.
        value: the whole tensor, or the rows of this process.
    """
    from torch.distributed.tensor import DTensor

    first, end = _division_of(like).of(like.shape[0])
    if isinstance(value, Rows):
        assert (value.first, len(value.tensor)) == (first, end - first)
        rows = value.tensor
    else:
        rows = value[first:end]
    rows = rows.detach().to(like.to_local().device, copy=True)
    return DTensor.from_local(
        rows, like.device_mesh, like.placements, run_check=False,
        shape=like.shape, stride=like.stride(),
    )  # fmt: skip


def shard_model(model: nn.Module, patterns: Pattern | None, world: World, device: str) -> list[str]:
    """Divide the parameters of a model over the processes; return the names of its units.

    The parameters of a unit are gathered together when it runs, and freed after it. What belongs
    to no unit is gathered for the whole call of the model. Gradients are summed over the processes
    in the backward pass. Buffers remain whole.

    Args:
        patterns: the units; None takes the repeated layers, see `choose_units`.
        device: the kind of the model's device.

    Raises:
        ConfigError: a unit cannot be divided.
        NoMatch: a pattern matches no module.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    names = choose_units(model) if patterns is None else match_modules(model, patterns)
    _refuse_shared(model, names)
    if scalars := [name for name, p in model.named_parameters() if not p.dim()]:
        text = f"{listed(scalars)} has no dimension to divide: give it the shape (1,)"
        raise _error(text)
    mesh = world.mesh(device)
    for name in [*reversed(names), ""]:  # inner units come before those that hold them
        try:
            fully_shard(model.get_submodule(name), mesh=mesh, reshard_after_forward=True)
        except (ValueError, NotImplementedError, AssertionError) as error:
            raise _error(f"{name or 'the model'} cannot be divided: {error}") from error
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A loss is divided by the denominators of all processes, so gradients are summed.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
    world.is_sharded = True
    return names


def choose_units(model: nn.Module) -> list[str]:
    """Return the names of the repeated blocks that hold the most parameters together.

    These are the modules of one class that is used several times, such as the blocks of a
    transformer: of all these classes the one with the most parameters, and of equal ones the
    outermost. Layers that have no layers in them count only if no block is repeated. The list is
    empty for a model that repeats nothing.
    """
    by_class: dict[type[nn.Module], list[str]] = {}
    sizes: dict[type[nn.Module], tuple[bool, int]] = {}
    for name, module in model.named_modules():
        kind = type(module)
        is_inner = any(name.startswith(f"{outer}.") for outer in by_class.get(kind, ()))
        if name and not issubclass(kind, CONTAINERS) and not is_inner:
            by_class.setdefault(kind, []).append(name)
            n_before = sizes.get(kind, (False, 0))[1]
            numbers = sum(parameter.numel() for parameter in module.parameters())
            sizes[kind] = (any(True for _ in module.children()), n_before + numbers)
    repeated = [kind for kind, names in by_class.items() if len(names) > 1 and sizes[kind][1]]
    return by_class[max(repeated, key=sizes.__getitem__)] if repeated else []


def _refuse_shared(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse a unit with a parameter that is also used outside of it, which would be separated."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for unit in names:
        for used in owners.values():
            inside = [name for name in used if name.startswith(f"{unit}.")]
            if inside and len(inside) < len(used):
                text = f"{listed(used)} are one parameter, of which {unit} holds a part only"
                raise _error(f"{text}: choose units that hold all of them, or none")


def _division_of(tensor: Any) -> Division:
    mesh = tensor.device_mesh
    return Division(mesh.get_local_rank(), mesh.size())


def _error(text: str) -> ConfigError:
    return ConfigError([Problem("distributed.shard", text)])
