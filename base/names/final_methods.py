"""Raises an error when a subclass that overrides final methods is defined.

``@final`` only informs type checkers. Python itself allows a subclass to override the method.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from base.errors import ConfigError, Problem
from base.names.discovery import project_root
from base.system.places import ENGINE

_PORTING = "docs/from-pytorch-template.md, section 4, ports it"

_ENGINES = "choose another name; this one is of the engine's loop"

INSTEAD_IN_TRAINERS = {
    "train": "override train_step(batch) for a step, begin_epoch() for the start of an epoch",
    "train_epoch": "override train_step(batch) for a step, begin_epoch() for the start of an epoch",
    "validate": "override valid_step(batch); `trainer.validate_every` sets the interval",
    "evaluate": "override valid_step(batch), or predict(outputs) for what metrics see",
    "end_step": "add a callback with on_step_end(trainer)",
    "end_epoch": "add a callback with on_epoch_end(trainer, values)",
    "is_finished": "write `trainer.epochs`, `trainer.steps` or `trainer.early_stop` in the config",
    "save": "add state to checkpoints with self.register(name, thing) in __init__",
    "register": "call it in __init__, after super().__init__(experiment)",
    "backward": "call self.backward(loss) in your own train_step(batch)",
    "update": "call self.update() in your own train_step(batch)",
    "is_due": "call it in your own train_step(batch)",
    "only": "call it in your own train_step(batch)",
    "measure": "override predict(outputs) to change the inputs of metrics",
    "build": "call it in __init__: self.build(kind, section) builds the object of a section",
    "total": "override compute_losses(outputs, batch); the weights are those of the config",
    "try_step": "override train_step(batch) for a step",
    "gather": "call it in your own train_step or valid_step, on all ranks",
    "world": "choose another name; torchrun and `-d` set the processes",
    "folder": "choose another name; `trainer.save_dir` in the config sets the folder",
    "store": "choose another name; checkpoints keep what self.register(name, thing) adds",
    "writers": "choose another name; `trainer.writers` in the config adds writers",
    "_start_run": _ENGINES,
    "_call_epoch_start": _ENGINES,
    "_micro_batches": _ENGINES,
    "_training_batches": _ENGINES,
    "_copy_to_device": _ENGINES,
    "_update_sampler": _ENGINES,
    "_repeat_step": _ENGINES,
    "_refuse_assignment": _ENGINES,
    "_evaluated": _ENGINES,
    "_measure_statistics": _ENGINES,
    "_summarise": _ENGINES,
    "_highest_rate": _ENGINES,
    "_end_batch": _ENGINES,
    "_report_step": _ENGINES,
    "_around_backward": _ENGINES,
    "_summed": _ENGINES,
    "_wait_for_all": _ENGINES,
    "_of_all_ranks": _ENGINES,
    "in_own_unit": "override predict(outputs) to change the inputs of metrics",
}
"""What a user's trainer should override instead of a final method."""

OF_PYTORCH_TEMPLATE = {
    "_train_epoch": f"override train_step(batch), which handles one batch; {_PORTING}",
    "_valid_epoch": f"override valid_step(batch), which handles one batch; {_PORTING}",
    "_save_checkpoint": "add state to checkpoints with self.register(name, thing) in __init__",
    "_resume_checkpoint": "state added with self.register(name, thing) is resumed too",
}
"""Methods of pytorch-template's trainers that are never called here, and their replacements."""


def refuse_overridden(
    cls: type[Any], advice: Mapping[str, str], never_called: Mapping[str, str] | None = None
) -> None:
    """Check that a new class overrides no final method of its base classes.

    Call it in ``__init_subclass__``. Methods of mixins are checked too.

    Args:
        advice: what to override instead, by method name.
        never_called: methods that only another template calls, and what to do instead.

    Raises:
        ConfigError: lists each such method with its class, its file and line, and advice.
    """
    faults = [
        f"{_shown(cls, giver)} overrides {owner.__name__}.{name}, which is final"
        f"{': ' * (name in advice)}{advice.get(name, '')}"
        for name, giver, owner in _overridden(cls)
    ]
    faults += [
        f"{_shown(cls, giver)} defines {name}, which is never called here: {instead}"
        for name, instead in (never_called or {}).items()
        for giver in cls.__mro__
        if name in vars(giver)
    ]
    if faults:
        where = _place_of_class_statement()
        raise ConfigError([Problem(where, fault) for fault in faults])


def final_names(cls: type[Any]) -> set[str]:
    """Return the names of all final methods of a class."""
    return {name for each in cls.__mro__ for name, it in vars(each).items() if _is_final(it)}


def _overridden(cls: type[Any]) -> Iterator[tuple[str, type[Any], type[Any]]]:
    """Yield the name of each overridden final method, the overriding class and its owner."""
    for number, owner in enumerate(cls.__mro__):
        for name, member in vars(owner).items():
            if _is_final(member):
                yield from (
                    (name, each, owner) for each in cls.__mro__[:number] if name in vars(each)
                )


def _is_final(member: Any) -> bool:
    if isinstance(member, property):
        member = member.fget
    member = getattr(member, "__func__", member)  # unwrap a classmethod or staticmethod
    return not isinstance(member, type) and getattr(member, "__final__", False) is True


def _shown(cls: type[Any], giver: type[Any]) -> str:
    return cls.__name__ if giver is cls else f"{cls.__name__}, by way of {giver.__name__},"


def _place_of_class_statement() -> str:
    """Return the file and line of the class statement being executed: ``trainer/mine.py:12``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_inner(frame):
        frame = frame.f_back
    if frame is None:
        return ""
    path = Path(frame.f_code.co_filename)
    if path.is_relative_to(project_root()):
        path = path.relative_to(project_root())
    return f"{path.as_posix()}:{frame.f_lineno}"


def _is_inner(frame: FrameType) -> bool:
    """Return whether a frame belongs to class creation: this module or a metaclass."""
    path = Path(frame.f_code.co_filename)
    is_ours = path.is_relative_to(ENGINE) and frame.f_code.co_name == "__init_subclass__"
    return (
        is_ours
        or path == Path(__file__)
        or frame.f_code.co_name in ("__new__", "__init_subclass__")
    )
