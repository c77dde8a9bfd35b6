"""BaseModel: an ``nn.Module`` that finds, freezes, replaces and counts its parts by pattern.

Each method is also a function, for models that are a plain ``nn.Module``.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from torch import nn

from base.names.final_methods import refuse_overridden
from base.network.layers import NoForward
from base.network.patterns import Pattern, match_modules, match_parameters

Factory = nn.Module | type[nn.Module] | Callable[[nn.Module], nn.Module]


def find_modules(model: nn.Module, pattern: Pattern) -> dict[str, nn.Module]:
    """Return the modules that match, by dotted name."""
    return {name: model.get_submodule(name) for name in match_modules(model, pattern)}


def find_parameters(model: nn.Module, pattern: Pattern) -> dict[str, nn.Parameter]:
    """Return the parameters that match, by dotted name."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in match_parameters(model, pattern)}


def freeze_parameters(model: nn.Module, pattern: Pattern) -> list[str]:
    """Stop training the parameters that match, such as ``stem.*``; return their names."""
    found = find_parameters(model, pattern)
    for parameter in found.values():
        parameter.requires_grad_(False)
    return list(found)


def unfreeze_parameters(model: nn.Module, pattern: Pattern) -> list[str]:
    """Train the parameters that match; return their names."""
    found = find_parameters(model, pattern)
    for parameter in found.values():
        parameter.requires_grad_(True)
    return list(found)


def replace_modules(model: nn.Module, pattern: Pattern, new: Factory) -> list[str]:
    """Replace the modules that match; return their names.

    ``new`` is a module (each further match gets a copy), a class without required arguments, or a
    function of the old module. A new module gets the device and the mode of the old one. A match
    inside another match is replaced with it; a shared module is replaced at all its places.
    """
    found = find_modules(model, pattern)
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            places.setdefault(id(child), []).append((parent, name))

    replaced: list[str] = []
    for name, old in found.items():
        if any(name.startswith(f"{outer}.") for outer in replaced):
            continue
        module = _make(new, old, is_first=not replaced).train(old.training)
        reference = next(chain(old.parameters(), model.parameters()), None)
        if reference is not None:
            module.to(reference.device)
        for parent, attribute in places[id(old)]:
            setattr(parent, attribute, module)
        replaced.append(name)
    return replaced


def _make(new: Factory, old: nn.Module, is_first: bool) -> nn.Module:
    if isinstance(new, nn.Module):
        return new if is_first else copy.deepcopy(new)
    module = new() if isinstance(new, type) else new(old)
    if not isinstance(module, nn.Module):
        raise TypeError(f"a replacement must be a module, not {type(module).__name__}")
    return module


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Return the number of elements of the parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def check_model(model: nn.Module) -> None:
    """Check that no trainable parameter is in a plain list or dict, where torch does not find it.

    Raises:
        ValueError: names each such attribute and what to use instead.
    """
    known = {id(thing) for thing in (*model.modules(), *model.parameters())}
    lines = []
    for name, owner in model.named_modules():
        for attribute, value in vars(owner).items():
            if attribute in _TORCH_ATTRIBUTES or not isinstance(value, _CONTAINERS):
                continue
            hidden = [thing for thing in _in_containers(value) if id(thing) not in known]
            if any(p.requires_grad for thing in hidden for p in _parameters_of(thing)):
                is_module = any(isinstance(thing, nn.Module) for thing in hidden)
                container = "Module" if is_module else "Parameter"
                container += "Dict" if isinstance(value, dict) else "List"
                kinds = ", ".join(sorted({type(thing).__name__ for thing in hidden}))
                place = f"{name}.{attribute}" if name else attribute
                lines.append(
                    f"{place} of {type(owner).__name__} is a plain {type(value).__name__} of "
                    f"{kinds}, whose parameters torch does not find; make it an nn.{container}"
                )
    if lines:
        raise ValueError("\n".join([*lines, "(freeze a module that is hidden on purpose)"]))


_CONTAINERS = (list, tuple, dict)
_TORCH_ATTRIBUTES = ("_modules", "_parameters", "_flat_weights")  # the last is an LSTM's


def _in_containers(value: Any, levels: int = 4) -> Iterator[nn.Module | nn.Parameter]:
    """Yield the modules and parameters in lists, tuples and dicts, nested ones too."""
    if isinstance(value, nn.Module | nn.Parameter):
        yield value
    elif isinstance(value, _CONTAINERS) and levels:
        for each in value.values() if isinstance(value, dict) else value:
            yield from _in_containers(each, levels - 1)


def _parameters_of(thing: nn.Module | nn.Parameter) -> Iterator[nn.Parameter]:
    return thing.parameters() if isinstance(thing, nn.Module) else iter([thing])


class BaseModel(nn.Module):
    """Base of all models: write ``__init__`` and ``forward``.

    >>> model.find({"type": "Conv2d"})  # the modules that match, by name
    >>> model.freeze("stem.*")          # stop training these parameters; model.unfreeze("stem.*")
    >>> model.replace("head", nn.Linear(64, 3))
    """

    find = find_modules
    find_parameters = find_parameters
    freeze = freeze_parameters
    unfreeze = unfreeze_parameters
    replace = replace_modules
    n_parameters = count_parameters

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_overridden(cls, {})

    @abstractmethod
    def forward(self, *inputs: Any) -> Any:
        """Return the outputs for a batch of inputs."""
        raise NoForward(f"{type(self).__name__} needs a method `forward`")

    def __str__(self) -> str:
        n_trainable = self.n_parameters(trainable_only=True)
        return f"{super().__str__()}\nTrainable parameters: {n_trainable}"
