"""``memory.inplace``: runs activations in place if nothing else reads their inputs."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import pairwise
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from base.network.output_sizes import SamePad
from base.network.shape_errors import is_compiled

# Their gradient can be computed exactly from their output.
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU)
# Their output is a new tensor that their backward pass does not read.
PRODUCERS = (_ConvNd, nn.Linear, _BatchNorm, nn.GroupNorm, nn.LayerNorm)

Pairs = tuple[tuple[str, str], ...]


def work_in_place(model: nn.Module) -> str:
    """Run activations in place where that is safe; return a note with their number.

    It is safe for a ReLU, ReLU6, Hardtanh or LeakyReLU that follows a convolution, Linear or norm
    layer in an ``nn.Sequential``, where only the activation reads the output of the previous layer.
    It applies only while the Sequential itself is called, not if a model calls its layers one by
    one to keep intermediate values, and not if either layer has a hook. Activations used in several
    places, and compiled models, are not changed.
    """
    if is_compiled(model):
        return "inplace: left to the compiler"
    n_places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    switches = [one for one in model.modules() if isinstance(getattr(one, "inplace", None), bool)]
    n_in_place = sum(bool(one.inplace) for one in switches)
    for module in model.modules():
        if not isinstance(module, nn.Sequential) or type(module).forward is not SEQUENTIAL:
            continue
        pairs = tuple(
            (before, name)
            for (before, producer), (name, layer) in pairwise(module._modules.items())
            if _is_new(producer) and _can_overwrite(layer) and n_places[id(layer)] == 1
        )
        if pairs:
            module.register_forward_pre_hook(partial(_switch_on, pairs))
            module.register_forward_hook(partial(_switch_off, pairs), always_call=True)
            n_in_place += len(pairs)
    return f"inplace: {n_in_place} of {len(switches)} activations"


SEQUENTIAL = nn.Sequential.forward


def _is_new(module: nn.Module | None) -> bool:
    is_ours = isinstance(module, SamePad) and type(module).forward is SamePad.forward
    return is_ours or (isinstance(module, PRODUCERS) and _is_called_as_torch_does(module))


def _can_overwrite(module: nn.Module | None) -> bool:
    if type(module) not in ACTIVATIONS or module is None or module.inplace:
        return False
    is_monotonic = not isinstance(module, nn.LeakyReLU) or module.negative_slope >= 0
    return is_monotonic and _is_called_as_torch_does(module)


def _is_called_as_torch_does(module: nn.Module) -> bool:
    """Return whether the forward is torch's, not changed by a subclass or by checkpointing."""
    return "forward" not in vars(module) and type(module).forward.__module__.startswith("torch.nn")


# Layers are given by name, so that a copy of the model switches its own layers.
def _switch_on(pairs: Pairs, sequential: nn.Sequential, *_: Any) -> None:
    layers: Any = sequential._modules
    for before, name in pairs:
        layers[name].inplace = not (_has_hooks(layers[before]) or _has_hooks(layers[name]))


def _switch_off(pairs: Pairs, sequential: nn.Sequential, *_: Any) -> None:
    layers: Any = sequential._modules
    for _before, name in pairs:
        layers[name].inplace = False


def _has_hooks(module: Any) -> bool:
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
