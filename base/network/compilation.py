"""Compiles the networks that a trainer calls: ``memory.compile``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from base.network.layers import Networks
from base.system.torch_compat import call_to_compile

WITH_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")
MOST_SIZES = 3
"""Sizes of an argument that have graphs of their own, in training and in evaluation: those of whole
batches, of the last one, and of the last part. One that has more is not as long as the batch."""
MOST_GRAPHS = 64
"""torch counts the graphs of all networks together, and computes without one beyond 8."""


def uses_cuda_graphs(mode: bool | str, device: torch.device) -> bool:
    """Return whether a mode of ``memory.compile`` replays CUDA graphs, whose outputs are reused."""
    return device.type == "cuda" and mode in WITH_CUDA_GRAPHS


def compile_networks(model: nn.Module, mode: bool | str, device: torch.device) -> list[str]:
    """Compile a model, or each of its networks if it is not called itself; return a note.

    Parameters keep their names. Compiling takes place at the first call.
    """
    networks = called_networks(model)
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, MOST_GRAPHS)
    for network in networks.values():
        call = call_to_compile(network)
        compiled: Any = torch.compile(call, mode=mode if isinstance(mode, str) else None)
        network._compiled_call_impl = CompiledCall(compiled, uses_cuda_graphs(mode, device))
    return [] if "" in networks else [f"compiled: {', '.join(networks)}"]


def called_networks(model: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """Return the modules that a trainer calls, by name: those in containers without a forward."""
    if type(model).forward is not nn.Module.forward and not isinstance(model, Networks):
        return {prefix: model}
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        found.update(called_networks(child, f"{prefix}.{name}".lstrip(".")))
    return found


def is_never_called(model: nn.Module) -> bool:
    """Return whether there are compiled networks, and none of them has been called yet."""
    calls = (module._compiled_call_impl for module in model.modules())
    known = [call for call in calls if isinstance(call, CompiledCall)]
    return bool(known) and not any(call.has_run for call in known)


class CompiledCall:
    """The call of a compiled network.

    torch compiles for the exact sizes of the first call, and for any size once they differ, which
    is slower. The first dimension of each argument, which is mostly that of the batch, gets a graph
    for each of a few sizes instead; other dimensions do not.

    Args:
        has_reused_outputs: whether the next call overwrites the outputs, which are copied then.
    """

    def __init__(self, compiled: Callable[..., Any], has_reused_outputs: bool) -> None:
        self.compiled, self.has_reused_outputs = compiled, has_reused_outputs
        self.has_run = False
        self._sizes: defaultdict[tuple[int, bool], set[int]] = defaultdict(set)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.has_run = True
        values, is_training = (*args, *kwargs.values()), torch.is_grad_enabled()
        leaves = ((value,) if isinstance(value, Tensor) else tree_leaves(value) for value in values)
        for place, leaf in enumerate(chain.from_iterable(leaves)):
            if isinstance(leaf, Tensor) and leaf.dim():
                sizes = self._sizes[place, is_training]
                if len(sizes) < MOST_SIZES:
                    sizes.add(len(leaf))
                if len(leaf) in sizes:
                    torch._dynamo.mark_static(leaf, 0)
        outputs = self.compiled(*args, **kwargs)
        return tree_map(_copied, outputs) if self.has_reused_outputs else outputs


def _copied(output: Any) -> Any:
    return output.clone() if isinstance(output, Tensor) else output


def mark_steps(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield batches; what CUDA graphs computed for a batch may be overwritten after it.

    Without the mark torch decides so itself, after any backward pass: too early if another network
    still waits for its own, as the generator of a GAN does.
    """
    for batch in batches:
        held = [batch]
        del batch
        torch.compiler.cudagraph_mark_step_begin()
        yield held.pop()  # keep no reference while the next one is read
