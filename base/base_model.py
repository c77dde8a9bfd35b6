"""BaseModel: an ``nn.Module`` that finds, freezes, replaces and counts its parts by pattern.

Each verb is a function, for models that are plain ``nn.Module``, and a method of BaseModel.
"""

from __future__ import annotations

import copy
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from base.errors import TrainingError
from base.names.final_methods import refuse_overridden
from base.network.layers import NoForward
from base.network.patterns import Pattern, match_modules, match_parameters
from base.network.shape_errors import explain_shape_errors

Factory = nn.Module | type[nn.Module] | Callable[[nn.Module], nn.Module]


def find_modules(model: nn.Module, pattern: Pattern) -> dict[str, nn.Module]:
    """Return the modules that match, by dotted name."""
    return {name: model.get_submodule(name) for name in match_modules(model, pattern)}


def find_parameters(model: nn.Module, pattern: Pattern) -> dict[str, nn.Parameter]:
    """Return the parameters that match, by dotted name."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in match_parameters(model, pattern)}


def freeze_parameters(model: nn.Module, pattern: Pattern) -> list[str]:
    """Stop training the parameters that match, as ``stem.*``; return their names."""
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
    """Put new modules in the place of those that match; return their names.

    ``new`` is a module (each further place gets a copy), a class that needs no arguments, or a
    function that is given the old module. A new module goes to the old one's device and mode.
    A match inside another match goes with it; a shared module is replaced at all its places.
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
        near = next(chain(old.parameters(), model.parameters()), None)
        if near is not None:
            module.to(near.device)
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
    """Return how many numbers the parameters hold; shared ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def check_model(model: nn.Module) -> None:
    """Make sure that nothing to be trained hides in plain lists or dicts, where torch finds none.

    Raises:
        ValueError: names each such attribute and what to use instead.
    """
    known = {id(thing) for thing in (*model.modules(), *model.parameters())}
    lines = []
    for name, owner in model.named_modules():
        for attribute, value in vars(owner).items():
            if attribute in _OF_TORCH or not isinstance(value, _CONTAINERS):
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
        raise ValueError("\n".join([*lines, "(one that is meant to stay hidden must be frozen)"]))


_CONTAINERS = (list, tuple, dict)
_OF_TORCH = ("_modules", "_parameters", "_flat_weights")  # the last: what an LSTM's kernel is given


def _in_containers(value: Any, levels: int = 4) -> Iterator[nn.Module | nn.Parameter]:
    """Yield the modules and parameters in lists, tuples and dicts, one in the other too."""
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


@contextmanager
def forbid_new_layers(model: nn.Module) -> Iterator[None]:
    """Catch layers that the model makes in ``forward``: they start anew at each call, untrained.

    Meant for the first batch. Layers with parameters, buffers or dropout are faults, and so are
    lone parameters; ``nn.ReLU()(x)`` has nothing to learn and passes. What torch makes for itself,
    and what is made outside of the model's own methods, as in a loss, is left alone.

    Raises:
        TrainingError: names each such layer, the line that makes it, and where it belongs.
    """
    owners = {id(module) for module in model.modules()}
    made: list[tuple[Any, str]] = []
    init, create = nn.Module.__init__, nn.Parameter.__new__

    def init_and_note(module: nn.Module, *args: Any, **kwargs: Any) -> None:
        init(module, *args, **kwargs)
        made.extend(_made_in_forward(module, owners))

    def create_and_note(cls: Any, *args: Any, **kwargs: Any) -> Any:
        parameter = create(cls, *args, **kwargs)
        made.extend(_made_in_forward(parameter, owners))
        return parameter

    nn.Module.__init__ = init_and_note  # type: ignore[assignment]
    nn.Parameter.__new__ = create_and_note  # type: ignore[method-assign]
    try:
        yield
    except Exception as error:
        # A layer made late often fails at once: its weights are not on the model's device.
        raise (_late_layers(model, made) or error) from error
    finally:
        nn.Module.__init__, nn.Parameter.__new__ = init, create  # type: ignore[method-assign]
    if fault := _late_layers(model, made):
        raise fault


@contextmanager
def guard_first_batch(model: nn.Module, input_text: str | None = None) -> Iterator[None]:
    """Catch on the first batch what would go wrong on each: new layers, shapes that do not fit.

    Args:
        input_text: what the inputs are, for errors of shape.
    """
    with explain_shape_errors(model, input_text), forbid_new_layers(model):
        yield


def _made_in_forward(made: Any, owners: set[int]) -> list[tuple[Any, str]]:
    """Return the new layer and the line that makes it, if that line serves the model's forward."""
    frame: FrameType | None = sys._getframe(2)
    while frame and frame.f_code.co_name == "__init__":  # of the layer, and of those around it
        made = frame.f_locals.get("self", made)
        frame = frame.f_back
    if frame is None or Path(torch.__file__).parent in Path(frame.f_code.co_filename).parents:
        return []
    line = f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno}"
    while frame and id(frame.f_locals.get("self")) not in owners:
        frame = frame.f_back
    if frame is None:
        return []
    owner = type(frame.f_locals["self"]).__name__
    return [(made, f"made in {owner}.{frame.f_code.co_name} ({line})")]


def _late_layers(model: nn.Module, made: list[tuple[Any, str]]) -> TrainingError | None:
    found = {id(thing): (thing, line) for thing, line in made if _has_state(thing)}
    for thing, _ in list(found.values()):
        if isinstance(thing, nn.Module):  # its parts are told with it
            parts = [*list(thing.modules())[1:], *thing.parameters()]
            found = {key: value for key, value in found.items() if key not in set(map(id, parts))}
    if not found:
        return None
    names = {id(thing): name for name, thing in [*model.named_modules(), *model.named_parameters()]}
    lines = [
        (f"{names[key]}: " if key in names else "") + f"{_in_words(thing)} is {line}"
        for key, (thing, line) in found.items()
    ]
    # Made anew in each of several calls, it bears its name in the last one only.
    lines = [line for line in lines if not any(each.endswith(f": {line}") for each in lines)]
    advice = "such layers are never trained: make them in __init__ and only call them in forward"
    return TrainingError("\n".join([*dict.fromkeys(lines), advice]))


def _has_state(thing: Any) -> bool:
    if not isinstance(thing, nn.Module):
        return True
    has_dropout = any(isinstance(part, _DropoutNd) for part in thing.modules())
    return has_dropout or any(True for _ in (*thing.parameters(), *thing.buffers()))


def _in_words(thing: Any) -> str:
    if isinstance(thing, nn.Module):
        is_leaf = next(thing.children(), None) is None
        return repr(thing) if is_leaf else type(thing).__name__
    return f"a parameter of shape {tuple(thing.shape)}"
