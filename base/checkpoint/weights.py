"""Loads weights of a model from a file, a checkpoint or a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from base.checkpoint.data_record import data_of
from base.checkpoint.state_dicts import EXTRA, load_weights
from base.checkpoint.store import MANIFEST, STATE, CheckpointStore, find_manifest, read
from base.checkpoint.torch_file import load_torch_file, stand_in_name
from base.checkpoint.weight_mapping import (
    WeightsReport,
    adapt_saved_names,
    match_weights,
)
from base.config.normal_form import weights_section
from base.errors import CheckpointError, nearest
from base.network.patterns import NoMatch
from base.network.timm_models import converted, pretrained_file
from base.system.run_folder import newest_run_in
from logger.files import NotAFileError, open_file, read_file

RECORD = "data_record"  # its key in the metadata of an exported file


def load_pretrained(model: nn.Module, section: Mapping[str, Any] | str) -> WeightsReport:
    """Load the weights that a ``weights`` section selects; return what happened to each name.

    ``file`` is a file of weights (``.pt``, ``.pth``, ``.safetensors``), a checkpoint, a run (its
    best checkpoint) or the folder of all runs of a name (the newest run). All weights that are not
    left out must be in both and have equal shapes; otherwise nothing is changed.

    Raises:
        CheckpointError: the file cannot be read or does not match the model.
        NoMatch: a rule has no effect.
    """
    section, faults = weights_section(section)
    if faults:
        raise CheckpointError("; ".join(faults))
    path = Path(section["file"])
    weights = read_weights(path)
    if not section["strip"] and not section["rename"]:
        weights = adapt_saved_names(weights, model.state_dict(), path)
    try:
        found, chosen = match_weights(model, weights, section, path.name)
        load_weights(model, {**model.state_dict(), **chosen})
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return found


def sections_with_weights(
    section: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the ``weights`` of a model section and of the models in its arguments, in normal form.

    Each comes with the name of its module, which is the name of the argument.
    """
    if section.get("weights") is not None:
        yield prefix, weights_section(section["weights"])[0]
    for name, value in (section.get("args") or {}).items():
        if isinstance(value, Mapping) and "type" in value:
            yield from sections_with_weights(value, f"{prefix}.{name}" if prefix else name)


def load_timm(model: nn.Module, args: Mapping[str, Any]) -> WeightsReport | None:
    """Load the ``weights`` or the ``pretrained`` weights that the arguments of ``timm`` select.

    timm converts them: it renames, resizes and adapts them to the model. The head is left out if
    its number of classes differs. None without either argument.

    Raises:
        KindlingError: the file is not there, cannot be read, or does not match the model.
    """
    if args.get("weights") is None and not args.get("pretrained"):
        return None
    if args.get("weights") is not None:
        path = Path(args["weights"])
    else:
        path = pretrained_file(args["name"], bool(args.get("download")))
    weights = adapt_saved_names(read_weights(path), model.state_dict(), path)
    try:
        taken, left_out = converted(model, args, weights)
        section = weights_section({"file": str(path), "skip": left_out})[0]
        found, chosen = match_weights(model, taken, section, path.name)
        load_weights(model, {**model.state_dict(), **chosen})
    except (CheckpointError, NoMatch) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # timm's conversion of a file of something else
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"{path}: timm cannot convert it: {text}") from error
    return found


def sections_of_timm(
    section: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the arguments of each model of timm, with the name of its module."""
    args = section.get("args") or {}
    if section["type"] == "timm":
        yield prefix, args
    for name, value in args.items():
        if isinstance(value, Mapping) and "type" in value:
            yield from sections_of_timm(value, f"{prefix}.{name}" if prefix else name)


def find_checkpoint(path: Path) -> Path | None:
    """Return the checkpoint that a path names, a run's best, or the best of the newest run.

    It is None for a file other than the ``state.pt`` of a checkpoint.
    """
    if not path.is_dir():
        is_part = path.name == STATE and path.with_name(MANIFEST).is_file()
        return path.parent if is_part else None
    if not (path / "checkpoints").is_dir() and not (path / MANIFEST).is_file():
        path = newest_run_in(path) or path
    store = CheckpointStore(path / "checkpoints")
    return ((store.best() or store.newest()) if store.folder.is_dir() else path) or path


def read_weights(path: Path, ema: bool | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file by name, without running code in it.

    Args:
        ema: return a checkpoint's averaged weights (True), its trained weights (False), or the
            averaged ones if it has them (None).

    Raises:
        CheckpointError: the file does not exist, or holds no weights or no averages.
    """
    return weights_and_origin(path, ema)[0]


def weights_and_origin(path: Path, ema: bool | None) -> tuple[dict[str, Tensor], str]:
    """Return the weights as `read_weights` does, and a description of their origin."""
    try:
        folder = find_checkpoint(path)
        state = _read_file(path) if folder is None else read(folder)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    weights = _weights_in(path, state)
    kept = state.get("ema") if ema is not False and isinstance(state, Mapping) else None
    averages = kept.get("averages") if isinstance(kept, Mapping) else None
    averages = averages if _are_weights(averages) else {}
    if ema and not averages:
        raise CheckpointError(
            f"{path}: it has no averaged weights (`trainer.ema` or `swa`): omit --ema"
        )
    if not averages:
        return weights, f"weights of {folder or path}"
    # A shared weight has one average, under its first name.
    shared = {
        _memory_key(weights[name]): average for name, average in averages.items() if name in weights
    }
    weights = {name: shared.get(_memory_key(value), value) for name, value in weights.items()}
    return {**weights, **averages}, f"averaged weights of {folder or path}"


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of the data that weights were trained on (see `data_record.py`).

    It is in a checkpoint's manifest, in the metadata of an exported ``.safetensors``, or in
    ``net.pt.json`` beside an exported ``net.pt``; {} if there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    folder = find_checkpoint(path)
    if folder is not None:
        return dict(data_of(find_manifest(folder)).get("record", {}))
    beside = path.with_name(f"{path.name}.json")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            open_file(path).close()
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(RECORD, "{}")
        else:
            text = read_file(beside).decode() if beside.exists() else "{}"
        record = json.loads(text)
        if not isinstance(record, dict):
            raise ValueError(f"it holds a {type(record).__name__}")
    except Exception as error:  # safetensors raises its own type
        raise CheckpointError(f"{path}: its record of the data cannot be read: {error}") from error
    return record


def _memory_key(value: Any) -> Any:
    """Return a key that is equal for tensors that share the same memory in the same layout."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or not value.numel():
        return id(value)
    return value.data_ptr(), value.shape, value.stride()


def _weights_in(path: Path, state: Any) -> dict[str, Tensor]:
    """Return the weights in a loaded file: all of it, or its only dict of tensors."""
    if isinstance(state, Mapping):
        named = (state.get(key) for key in ("state_dict", "model"))
        state = next(filter(_are_weights, named), state)
        parts = {str(key): value for key, value in state.items() if _are_weights(value)}
        parts = {key: value for key, value in parts.items() if not key.endswith(EXTRA)}
        if len(parts) > 1:
            names = ", ".join(map(repr, parts))
            text = f"it holds several sets of weights: {names}; save only one of them"
            raise CheckpointError(f"{path}: {text}")
        state = next(iter(parts.values()), state)
    held = state if isinstance(state, Mapping) else {"all of it": state}
    if unsupported := {
        key: kind for key, value in held.items() if (kind := _unsupported_kind(value))
    }:
        names = ", ".join(f"{key!r} is {kind!r}" for key, kind in [*unsupported.items()][:5])
        text = f"it holds objects other than plain tensors, which are not loaded: {names}"
        raise CheckpointError(f"{path}: {text}; save only the model's `state_dict()`")
    if not _are_weights(state):
        of = f", of {', '.join(map(repr, [*state][:5])) or 'nothing'}" if held is state else ""
        raise CheckpointError(f"{path}: it holds no weights, but a {type(state).__name__}{of}")
    if odd := [name for name in state if not (isinstance(name, str) and name.isprintable())]:
        raise CheckpointError(
            f"{path}: a name of a weight must be printable text, not {odd[0]!r:.99}"
        )
    # Convert parameters to plain tensors, without attributes that a file may set.
    return {
        key: Tensor.detach(value) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }


def _unsupported_kind(value: Any) -> str:
    """Return the kind of a value that is not a weight: an object or a sparse tensor; else ""."""
    is_odd = isinstance(value, Tensor) and value.layout is not torch.strided
    return str(value.layout) if is_odd else stand_in_name(value)


def _are_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def _read_file(path: Path) -> Any:
    if not path.exists():
        beside = [str(each) for each in path.parent.glob("*")] if path.parent.is_dir() else []
        raise CheckpointError(f"{path}: no such file{nearest(str(path), beside)}")
    try:
        with open_file(path) as file:  # refuses a FIFO or a device, on which libraries would block
            if path.suffix == ".safetensors":
                return _load_safetensors(path)
            return load_torch_file(file, is_verified=False, allows_objects=True)
    except NotAFileError as error:
        raise CheckpointError(f"{path}: this is {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: cannot be read as a file of weights: {error}") from error


def _load_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # it raises its own types
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(text) from error
