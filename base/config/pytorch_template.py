"""Translate a config in pytorch-template's format into ours, places kept."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from base.config.fields import Field, ListOf, Section, Validation
from base.config.first_generation import is_first_generation, modernise
from base.config.schema import ROOT
from base.config.tree import Node, dotted
from base.errors import Problem


def is_template(root: Node, path: Path) -> bool:
    """Return whether a file is written in pytorch-template's format."""
    trainer = root.value.get("trainer", root).value
    in_trainer = isinstance(trainer, dict) and not trainer.keys().isdisjoint(_RENAMED)
    in_json = path.suffix == ".json" and "arch" in root.value
    if "n_gpu" in root.value or ((in_trainer or in_json) and _OURS.isdisjoint(root.value)):
        return True
    return (_OURS - {"model"}).isdisjoint(root.value) and is_first_generation(root, path)


def translate(root: Node, source: str) -> tuple[Node, list[str]]:
    """Return the config in our form, and notes for the log.

    Keys of that format are checked strictly, keys of our own form are used if they fit, and the
    rest goes to `extra` in the same shape. Keys that begin with `_` are comments.
    """
    root, notes = modernise(root)
    taken, extra = _split(root, ROOT)
    unread = list(extra)
    for name, node in root.value.items():
        new = _RENAMED.get(name, name)
        kind = _section_of(ROOT.keys[new].field) if new in taken and name not in extra else None
        if kind is not None and isinstance(taken[new].value, dict):
            section, own = _split(taken[new], kind)
            taken[new] = Node(section, node.where)
            unread += [dotted((name, key)) for key in own]
            extra |= {name: Node(own, node.where)} if own else {}
        elif kind is not None and isinstance(taken[new].value, list):
            own_items = _split_items(taken, new, kind)
            unread += [dotted((name, i, key)) for i, own in enumerate(own_items) for key in own]
            items = Node([Node(own, node.where) for own in own_items], node.where)
            extra |= {name: items} if any(own_items) else {}

    notes += [f"kept in extra, unused by Kindling: {', '.join(unread)}"] if unread else []
    notes += [note for name in extra for note in _near_misses(name, root.value.get(name, root))]
    name = root.value.get("name", root).value
    if isinstance(name, str) and name != _one_folder(name):
        notes.append(f"name {name!r} is {_one_folder(name)!r} here, for one folder")
    n_gpu = root.value.get("n_gpu", root).value
    if isinstance(n_gpu, int) and n_gpu > 1:
        command = f"torchrun --nproc-per-node {n_gpu} train.py -c {shlex.quote(source)}"
        notes.append(
            f"n_gpu is {n_gpu}: a process drives one device, so this run uses one; several are "
            f"started with `{command}`, which is not built yet"
        )
    given = taken["extra"].value if "extra" in taken else {}
    return Node({**taken, "extra": Node({**given, **extra}, root.where)}, root.where), notes


def _section_of(kind: Field) -> Section | None:
    """Return the form of a section that names something, or of each in a list of them."""
    kind = kind.item if isinstance(kind, ListOf) else kind
    return kind if isinstance(kind, Section) and kind.names else None


def _split_items(taken: dict[str, Node], name: str, kind: Section) -> list[dict[str, Node]]:
    """Split each section of a list; return the entries that are the user's own, item by item."""
    items, own_items = [], []
    for item in taken[name].value:
        section, own = _split(item, kind) if isinstance(item.value, dict) else (item.value, {})
        items.append(Node(section, item.where))
        own_items.append(own)
    taken[name] = Node(items, taken[name].where)
    return own_items


def _split(node: Node, section: Section) -> tuple[dict[str, Node], dict[str, Node]]:
    """Return what a section of ours takes, translated, and the entries that are the user's own."""
    taken: dict[str, Node] = {}
    own: dict[str, Node] = {}
    hidden = {new for old, new in _RENAMED.items() if old in node.value}
    for name, child in node.value.items():
        new = _RENAMED.get(name, name)
        change = _CHANGES.get(name, lambda value: value)
        problems: list[Problem] = []
        section.check_entry(name, child, (), Validation(problems, references=True))
        if name.startswith("_"):
            continue
        is_section = section is ROOT and _is_section(new, child)
        if new in section.keys and (name in {*_STRICT, *_RENAMED} or is_section):
            taken[new] = Node(change(child.value), child.where)
        elif name in hidden or problems or (name in _WORDS and isinstance(child.value, str)):
            own[name] = child
        else:
            taken[name] = child
    return taken, own


def _near_misses(name: str, node: Node) -> list[str]:
    """Say why a section that looks like one of ours is the user's own."""
    kind = ROOT.keys[name].field if name in _OURS - {"model"} else None
    is_alike = isinstance(node.value, dict) and not node.value.keys().isdisjoint(
        getattr(kind, "keys", ())
    )
    problems: list[Problem] = []
    if is_alike:
        ROOT.check_entry(name, node, (name,), Validation(problems, references=True))
    return [f"{name} is not used as Kindling's section of this name: {p}" for p in problems]


def _is_section(name: str, node: Node) -> bool:
    """Return whether an entry is a section of ours, whatever else it holds."""
    if name not in ("model", "valid_data_loader", "test_data_loader"):
        return False
    return isinstance(node.value, dict) and "type" in node.value


def _one_folder(name: Any) -> Any:
    """Return a name of nested folders as that of one."""
    return re.sub(r"[/\\]+", "_", name.strip("/\\")) if isinstance(name, str) else name


def _monitor(value: Any) -> Any:
    if not (match := re.fullmatch(r"(min|max)\s+(val_|valid_|train_)?([^\s/]+)", str(value))):
        return value
    return f"{match[1]} {'valid' if (match[2] or '').startswith('val') else 'train'}/{match[3]}"


def _early_stop(value: Any) -> Any:
    if isinstance(value, float):
        value = int(value) if value.is_integer() else value
    is_off = value == "inf" or (isinstance(value, int | float) and not 0 < value < 1e9)
    return None if is_off else value


_RENAMED = {
    "arch": "model",
    "n_gpu": "device",
    "save_period": "save_every",
    "tensorboardX": "tensorboard",
    "len_epoch": "epoch_steps",
}
_STRICT = {"name", "data_loader", "optimizer", "loss", "metrics", "lr_scheduler", "trainer"}
_STRICT |= {"epochs", "save_dir", "verbosity", "monitor", "early_stop", "type", "args"}
_OURS = {"model", "init", "batch", "optimizers", "memory", "callbacks", "inherit", "extra"}
_WORDS = {"init", "capture", "weights"}  # where a lone word is likely one of the project's own
_CHANGES: dict[str, Callable[[Any], Any]] = {
    "name": _one_folder,
    "n_gpu": lambda value: "cpu" if value == 0 else "auto",
    "lr_scheduler": lambda value: value or None,
    "save_period": lambda value: f"{value} epochs" if isinstance(value, int) else value,
    "monitor": _monitor,
    "early_stop": _early_stop,
}
