"""Translates configs in the formats of pytorch-template and its descendants."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from base.config.fields import Field, ListOf, Section, Validation
from base.config.schema import ROOT, loader_key
from base.config.tree import Node, dotted, problem_at, show
from base.errors import ConfigError, Problem

Entries = dict[str, Node]

_SPLIT_TYPES = ("model", "data_loader", "optimizer", "lr_scheduler", "loss")
_FLAT = ("optimizer", "lr_scheduler", "loss")  # whose further keys were their arguments
_ABOUT = ("module_name", "module", "module_path", "package", "file", "path")
_NAMES_OF_TYPE = ("name", "class", "class_name")
_NAMES_OF_ARGS = ("params", "kwargs", "arguments", "parameters")
_PARTS = {"train": "data_loader", "training": "data_loader"}
_PARTS |= dict.fromkeys(("valid", "val", "validation"), "valid_data_loader")
_PARTS |= {"test": "test_data_loader", "testing": "test_data_loader"}

# Keys that only pytorch-template's early configs have.
_OF_ROOT = ("cuda", "optimizer_type", "lr_scheduler_type", "lr_scheduler_freq", "model_type")
_OF_TRAINER = ("save_freq", "monitor_mode")


def is_first_generation(root: Node, path: Path) -> bool:
    """Return whether a file has keys of pytorch-template's early configs."""
    entries: Entries = root.value
    trainer = entries.get("trainer", Node(None)).value
    trainer = trainer if isinstance(trainer, dict) else {}
    if any(key in entries for key in _OF_ROOT) or any(key in trainer for key in _OF_TRAINER):
        return True
    if path.suffix != ".json":
        return False
    monitor = trainer.get("monitor", Node(None)).value
    is_theirs = isinstance(monitor, str) and "/" not in monitor and monitor != "off"
    has_loaders = any(loader_key(key) not in ("", key) for key in entries)
    model = entries.get("model", Node(None)).value
    names_module = isinstance(model, dict) and "module_name" in model
    return is_theirs or has_loaders or names_module or "save_period" in trainer


def modernise(root: Node) -> tuple[Node, list[str]]:
    """Return the config in the later form of the format, and notes for the log.

    Raises:
        ConfigError: an entry is ambiguous.
    """
    entries: Entries = dict(root.value)
    notes: list[str] = []
    problems: list[Problem] = []
    _name_loaders(entries, problems)
    _name_model(entries)
    for name in (*_SPLIT_TYPES, "arch"):
        _join_type(entries, name)
    for name in (*_SPLIT_TYPES, "arch", "valid_data_loader", "test_data_loader"):
        _complete(entries, name, notes)
    _name_device(entries, notes)
    _split_off(entries)
    _schedule_each_epoch(entries, problems)
    _translate_trainer(entries, notes, problems)
    if problems:
        raise ConfigError(problems)
    return Node(entries, root.where), notes


def _name_loaders(entries: Entries, problems: list[Problem]) -> None:
    """Rename `train_loader`, `val_loader` and the like, and the parts of `data_loader`."""
    names = ("data_loader", "data_loaders", "dataloader", "dataloaders", "loaders", "data")
    lone = next((key for key in names if _has_parts(entries, key)), None)
    if lone is not None:
        for part, node in entries.pop(lone).value.items():
            entries.setdefault(_PARTS[part], node)
    found: dict[str, list[str]] = {}
    for key in entries:
        if (new := loader_key(key)) and isinstance(entries[key].value, dict | str):
            found.setdefault(new, []).append(key)
    for new, keys in found.items():
        if new in keys:
            continue  # others belong to the project
        if len(keys) > 1:
            places = " and ".join(f"{key!r} at {entries[key].where}" for key in keys)
            text = f"missing; found {places}: rename the right one to `{new}`"
            problems.append(problem_at(entries[keys[0]].where, (new,), text))
        else:
            entries[new] = entries.pop(keys[0])
    if "data_loader" not in entries and not problems:
        candidates = [key for key, node in entries.items() if _may_be_loader(key, node)]
        if candidates:
            text = f"missing; is it {' or '.join(map(repr, candidates))}? Rename it `data_loader`"
            problems.append(problem_at(entries[candidates[0]].where, ("data_loader",), text))


def _has_parts(entries: Entries, key: str) -> bool:
    """Return whether a section consists of sections for training, validation and test."""
    value = entries.get(key, Node(None)).value
    are_parts = isinstance(value, dict) and "train" in value and value.keys() <= _PARTS.keys()
    return are_parts and all("type" in _of(node) for node in value.values())


def _may_be_loader(key: str, node: Node) -> bool:
    is_named = "data" in key.lower() or "loader" in key.lower()
    return is_named and isinstance(node.value, dict)


def _name_model(entries: Entries) -> None:
    """Join `arch: Net` with `model: {...}`, which holds its arguments."""
    arch, model = entries.get("arch"), entries.get("model")
    if arch is None or model is None or not isinstance(arch.value, str):
        return
    if isinstance(model.value, dict) and "type" not in model.value:
        entries["arch"] = _section(arch, entries.pop("model"))


def _join_type(entries: Entries, name: str) -> None:
    """Join `optimizer_type: Adam` with `optimizer: {lr: 0.1}`, and a word with `loss_args`."""
    kind, value = entries.get(f"{name}_type"), entries.get(name)
    is_plain = value is None or (isinstance(value.value, dict | None) and "type" not in _of(value))
    if kind is not None and kind.value in (None, "", "none", "None") and is_plain:
        entries.pop(f"{name}_type")
        entries[name] = Node(None, kind.where)
    elif kind is not None and isinstance(kind.value, str) and is_plain:
        entries.pop(f"{name}_type")
        given = Node(_of(value), kind.where if value is None else value.where)
        inner = given.value.get("args")
        is_args = [*given.value] == ["args"] and inner is not None and isinstance(inner.value, dict)
        entries[name] = _section(kind, inner if is_args and inner else given)
    for ending in ("_args", *(f"_{each}" for each in _NAMES_OF_ARGS)):
        args, value = entries.get(f"{name}{ending}"), entries.get(name)
        is_word = value is not None and isinstance(value.value, str)
        if args is not None and isinstance(args.value, dict) and is_word:
            assert value is not None
            entries[name] = _section(value, entries.pop(f"{name}{ending}"))


def _of(node: Node | None) -> dict[str, Node]:
    return dict(node.value) if node is not None and isinstance(node.value, dict) else {}


def _section(kind: Node, args: Node) -> Node:
    return Node({"type": kind, "args": args}, kind.where)


def _complete(entries: Entries, name: str, notes: list[str]) -> None:
    """Find the type and arguments of a section under other names."""
    node = entries.get(name)
    if node is None or not isinstance(node.value, dict) or not node.value:
        return
    value: Entries = dict(node.value)
    for key, others in (("type", _NAMES_OF_TYPE), ("args", _NAMES_OF_ARGS)):
        found = [other for other in others if other in value]
        fits = str if key == "type" else dict
        if key not in value and len(found) == 1 and isinstance(value[found[0]].value, fits):
            value = {key: value.pop(found[0]), **value}
            notes.append(f"{name}.{found[0]} is read as {name}.{key}")
    if name in _FLAT and "type" in value and "args" not in value:
        own = [key for key in value if not _is_known(name, key, value[key])]
        args = {key: value.pop(key) for key in own if key not in _ABOUT and key[:1] != "_"}
        value |= {"args": Node(args, node.where)} if args else {}
    entries[name] = Node(value, node.where)


def _is_known(name: str, key: str, child: Node) -> bool:
    """Return whether Kindling's section of this name has this key with such a value."""
    kind: Any = ROOT.keys[name].field
    section: Any = kind.item if isinstance(kind, ListOf) else kind
    problems: list[Problem] = []
    section.check_entry(key, child, (), Validation(problems, references=True))
    return key == "type" or (key in section.keys and not problems)


def _name_device(entries: Entries, notes: list[str]) -> None:
    """Translate `cuda: false` to the CPU. The command line selects a GPU by number."""
    count = entries.get("n_gpu", Node(0))
    if type(count.value) is not int:
        notes.append(f"n_gpu is {count.plain()}: choose the device with `-d`, such as `-d 1`")
    cuda, gpu = entries.get("cuda"), entries.get("gpu")
    if cuda is None or not isinstance(cuda.value, bool) or "device" in entries:
        return
    entries.pop("cuda")
    if "n_gpu" not in entries:
        entries["device"] = Node("auto" if cuda.value else "cpu", cuda.where)
    is_first = gpu is not None and gpu.plain() in (0, "0", [0])
    if is_first or (cuda.value and gpu is not None and isinstance(gpu.value, int | str | list)):
        number = entries.pop("gpu").plain()
        if not is_first:
            notes.append(f"gpu is {number}: choose the device with `-d`, such as `-d 1`")


def _split_off(entries: Entries) -> None:
    """Move `validation: {validation_split: 0.1}` to the loader."""
    validation, loader = entries.get("validation"), entries.get("data_loader")
    share = _of(validation).get("validation_split")
    args = _of(loader).get("args", Node({}))
    if share is None or loader is None or "type" not in _of(loader):
        return
    if not isinstance(args.value, dict) or "validation_split" in args.value:
        return
    full = Node({**args.value, "validation_split": share}, args.where)
    entries["data_loader"] = Node({**loader.value, "args": full}, loader.where)
    rest = {k: v for k, v in _of(validation).items() if k != "validation_split"}
    assert validation is not None
    entries.pop("validation")
    if rest:
        entries["validation"] = Node(rest, validation.where)


def _schedule_each_epoch(entries: Entries, problems: list[Problem]) -> None:
    """Drop `lr_scheduler_freq: 1`, the only supported frequency."""
    frequency = entries.get("lr_scheduler_freq")
    if frequency is None or type(frequency.value) is not int:
        return
    if frequency.value == 1:
        entries.pop("lr_scheduler_freq")
    elif entries.get("lr_scheduler", Node(None)).value:
        text = f"the scheduler steps after each epoch, not each {frequency.value}: give its"
        text += " lengths in epochs, and remove this key"
        problems.append(problem_at(frequency.where, ("lr_scheduler_freq",), text))


def _translate_trainer(entries: Entries, notes: list[str], problems: list[Problem]) -> None:
    trainer = entries.get("trainer")
    if trainer is None or not isinstance(trainer.value, dict):
        return
    value: Entries = dict(trainer.value)
    if "save_freq" in value and not {"save_period", "save_every"} & value.keys():
        value["save_period"] = value.pop("save_freq")
    _join_monitor(value, problems)
    board = _of(entries.get("visualization")).get("tensorboardX")
    has_own = {"tensorboard", "tensorboardX"} & value.keys()
    if board is not None and isinstance(board.value, bool) and not has_own:
        value["tensorboard"] = board
    if "verbosity" in value:
        value["verbosity"] = _clamped(value["verbosity"], notes)
    entries["trainer"] = Node(value, trainer.where)


def _join_monitor(value: Entries, problems: list[Problem]) -> None:
    """Join `monitor: val_loss` with `monitor_mode: min`, the default for losses."""
    monitor, mode = value.get("monitor"), value.get("monitor_mode")
    if monitor is None or not isinstance(monitor.value, str) or " " in monitor.value.strip():
        return
    name = monitor.value.strip()
    if mode is not None and mode.value in ("min", "max", "off"):
        value.pop("monitor_mode")
        text = "off" if mode.value == "off" else f"{mode.value} {name}"
        value["monitor"] = Node(text, monitor.where)
    elif mode is None and name.endswith("loss"):
        value["monitor"] = Node(f"min {name}", monitor.where)
    elif mode is None and name not in ("", "off"):
        text = f"expected 'min NAME' or 'max NAME': is {name!r} better when low, or when high?"
        problems.append(problem_at(monitor.where, ("trainer", "monitor"), text))


def _clamped(node: Node, notes: list[str]) -> Node:
    """Clamp a verbosity to the range 0 to 2."""
    value = int(node.value) if isinstance(node.value, bool | int) else node.value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or 0 <= value <= 2:
        return Node(value, node.where)
    limited = min(max(value, 0), 2)
    effect = f"{limited}, the {'maximum' if value > 2 else 'minimum'}, is used"
    notes.append(f"trainer.verbosity is {show(value)}: {effect}")
    return Node(limited, node.where)


def is_template(root: Node, path: Path) -> bool:
    """Return whether a file is written in pytorch-template's format."""
    trainer = root.value.get("trainer", root).value
    in_trainer = isinstance(trainer, dict) and not trainer.keys().isdisjoint(_RENAMED)
    in_json = path.suffix == ".json" and "arch" in root.value
    if "n_gpu" in root.value or ((in_trainer or in_json) and _OURS.isdisjoint(root.value)):
        return True
    return (_OURS - {"model"}).isdisjoint(root.value) and is_first_generation(root, path)


def translate(root: Node) -> tuple[Node, list[str]]:
    """Return the config in Kindling's format, and notes for the log.

    Keys of pytorch-template are checked strictly, keys of Kindling are used if valid, and others
    are moved to `extra` with the same structure. Keys that start with `_` are comments.
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
        notes.append(f"name {name!r} becomes {_one_folder(name)!r}, a single folder")
    given = taken["extra"].value if "extra" in taken else {}
    return Node({**taken, "extra": Node({**given, **extra}, root.where)}, root.where), notes


def _section_of(kind: Field) -> Section | None:
    """Return the section type of a field with a `type`, or of the items of a list."""
    kind = kind.item if isinstance(kind, ListOf) else kind
    return kind if isinstance(kind, Section) and kind.names else None


def _split_items(taken: dict[str, Node], name: str, kind: Section) -> list[dict[str, Node]]:
    """Split each section of a list; return the user's entries per item."""
    items, own_items = [], []
    for item in taken[name].value:
        section, own = _split(item, kind) if isinstance(item.value, dict) else (item.value, {})
        items.append(Node(section, item.where))
        own_items.append(own)
    taken[name] = Node(items, taken[name].where)
    return own_items


def _split(node: Node, section: Section) -> tuple[dict[str, Node], dict[str, Node]]:
    """Return the translated entries that a section supports, and the user's entries."""
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
    """Return the reasons why a section with one of Kindling's names is treated as the user's."""
    kind = ROOT.keys[name].field if name in _OURS - {"model"} else None
    is_alike = isinstance(node.value, dict) and not node.value.keys().isdisjoint(
        getattr(kind, "keys", ())
    )
    problems: list[Problem] = []
    if is_alike:
        ROOT.check_entry(name, node, (name,), Validation(problems, references=True))
    return [f"{name} is not used as Kindling's section of this name: {p}" for p in problems]


def _is_section(name: str, node: Node) -> bool:
    """Return whether an entry is one of Kindling's sections, possibly with other keys."""
    if name not in ("model", "valid_data_loader", "test_data_loader"):
        return False
    return isinstance(node.value, dict) and "type" in node.value


def _one_folder(name: Any) -> Any:
    """Convert a name of nested folders to a single folder name."""
    return re.sub(r"[/\\]+", "_", name.strip("/\\")) if isinstance(name, str) else name


def _device(n_gpu: Any) -> str:
    if type(n_gpu) is int and n_gpu > 1:
        return f"n_gpu:{n_gpu}"
    return "cpu" if n_gpu == 0 else "auto"


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
_WORDS = {"init", "capture", "weights"}  # a single word there is likely the project's
_CHANGES: dict[str, Callable[[Any], Any]] = {
    "name": _one_folder,
    "n_gpu": _device,
    "lr_scheduler": lambda value: value or None,
    "save_period": lambda value: f"{value} epochs" if isinstance(value, int) else value,
    "monitor": _monitor,
    "early_stop": _early_stop,
}
