"""Detects layers created in ``forward``, which would never be trained, on the first batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_forward_pre_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from base.errors import TrainingError
from base.network.shape_errors import explain_shape_errors, is_compiled

TORCH = Path(torch.__file__).parent
REGISTRATION = ("__init__", "__setattr__", "add_module", "register_buffer", "register_parameter")
ADVICE = "such layers are never trained: create them in __init__ and only call them in forward"


@contextmanager
def guard_first_batch(model: nn.Module, input_text: str | None = None) -> Iterator[None]:
    """Check the first batch for new layers, and explain shape errors.

    Args:
        input_text: a description of the inputs, for shape errors.
    """
    with explain_shape_errors(model, input_text), forbid_new_layers(model):
        yield


@contextmanager
def forbid_new_layers(model: nn.Module) -> Iterator[None]:
    """Refuse layers created in the model's ``forward``, which each call would reinitialize.

    Meant for the first batch. Layers with parameters or buffers are errors, and so are parameters
    set on a module, and calls of a dropout that is not part of the model. ``nn.ReLU()(x)`` has no
    parameters and is allowed, and so is a parameter that is not stored. Objects created by torch,
    or outside of the model's methods, as in a loss, are ignored.

    Raises:
        TrainingError: lists each such layer and the line that creates it.
    """
    found = _NewLayers(model)
    try:
        with found.watched():
            yield
    except Exception as error:
        # A new layer often fails at once: its weights are not on the model's device.
        if fault := found.error():
            raise fault from error
        raise  # `from error` would make it its own cause
    if fault := found.error():
        raise fault


class _NewLayers:
    """The new layers and parameters of a model's forward, each with the line that creates it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = {id(module) for module in model.modules()}
        self._parameters = {id(parameter) for parameter in model.parameters()}
        self._found: dict[int, tuple[Any, str]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Record new layers within the block, using torch's global module hooks."""
        with ExitStack() as stack:
            handles = [
                register_module_parameter_registration_hook(self._note_parameter),
                register_module_buffer_registration_hook(self._note_buffer),
                register_module_module_registration_hook(self._note_child),
            ]
            if not is_compiled(self._model):
                handles.append(register_module_forward_pre_hook(self._note_call))
            for handle in handles:
                stack.callback(handle.remove)
            yield

    def error(self) -> TrainingError | None:
        """Return an error that lists all new layers, or None."""
        found = dict(self._found)
        for thing, _ in self._found.values():
            if isinstance(thing, nn.Module):  # its parts are not listed
                parts = [*list(thing.modules())[1:], *thing.parameters()]
                found = {key: value for key, value in found.items() if key not in map(id, parts)}
        if not found:
            return None
        named = [*self._model.named_modules(), *self._model.named_parameters()]
        names = {id(thing): name for name, thing in named}
        lines = [
            (f"{names[key]}: " if key in names else "") + f"{_description(thing)} {line}"
            for key, (thing, line) in found.items()
        ]
        # A layer created in each call has its name only in the last call.
        lines = [line for line in lines if not any(each.endswith(f": {line}") for each in lines)]
        return TrainingError("\n".join([*dict.fromkeys(lines), ADVICE]))

    def _note_parameter(self, module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if id(parameter) not in self._parameters:
            self._note(parameter)

    def _note_buffer(self, module: nn.Module, name: str, buffer: Tensor | None) -> None:
        if id(module) not in self._modules:  # a module of the model may store results
            self._note(buffer)

    def _note_child(self, module: nn.Module, name: str, child: nn.Module | None) -> None:
        if id(child) in self._found:  # its container is listed instead
            self._note(child)

    def _note(self, registered: Any) -> None:
        frame: FrameType | None = sys._getframe(2)
        while frame and frame.f_code.co_name in REGISTRATION:
            if frame.f_code.co_name == "__init__":  # of the layer and its containers
                registered = frame.f_locals.get("self", registered)
            frame = frame.f_back
        if frame is None or _is_of_torch(frame):
            return
        owner: FrameType | None = frame
        while owner and id(owner.f_locals.get("self")) not in self._modules:
            owner = owner.f_back
        if owner is not None:
            text = f"is created in {_method(owner)} ({_line(frame)})"
            self._found.setdefault(id(registered), (registered, text))

    def _note_call(self, module: nn.Module, args: Any) -> None:
        if not isinstance(module, _DropoutNd) or id(module) in self._modules or not module.training:
            return
        frame: FrameType | None = sys._getframe(1)
        while frame and _is_of_torch(frame):
            frame = frame.f_back
        if frame is not None and id(frame.f_locals.get("self")) in self._modules:
            text = f"is called in {_method(frame)} ({_line(frame)}) and is not part of the model"
            self._found.setdefault(id(module), (module, f"{text}: model.eval() does not reach it"))


def _is_of_torch(frame: FrameType) -> bool:
    return TORCH in Path(frame.f_code.co_filename).parents


def _line(frame: FrameType) -> str:
    return f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno}"


def _method(frame: FrameType) -> str:
    return f"{type(frame.f_locals['self']).__name__}.{frame.f_code.co_name}"


def _description(thing: Any) -> str:
    if isinstance(thing, nn.Module):
        is_leaf = next(thing.children(), None) is None
        return repr(thing) if is_leaf else type(thing).__name__
    return f"a parameter of shape {tuple(thing.shape)}"
