"""Weights of a model from a file, all of them or those that a config asks for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from base.checkpoint.restoration import EXTRA, load_weights
from base.checkpoint.store import CheckpointStore, peek_manifest, read
from base.checkpoint.torch_file import load, stands_for
from base.checkpoint.weight_names import fitted
from base.checkpoint.weight_rules import Fit, fit
from base.config.normal_form import weights_section
from base.data.record import data_of
from base.errors import CheckpointError, nearest
from base.system.run_folder import newest_run_in
from logger.files import NotAFileError, open_file, read_file

RECORD = "data_record"  # where the metadata of an exported file have it


def load_from(model: nn.Module, section: Mapping[str, Any] | str) -> Fit:
    """Load what the rules of a ``weights`` section leave of its file; tell what became of all.

    ``file`` is a file of weights (``.pt``, ``.pth``, ``.safetensors``), a checkpoint, a run (its
    best) or the folder of all runs of a name (the newest). All that is not left out must be there
    and fit, in both directions; else nothing is changed.

    Raises:
        CheckpointError: the file cannot be read or does not fit.
        NoMatch: a rule does nothing.
    """
    section, faults = weights_section(section)
    if faults:
        raise CheckpointError("; ".join(faults))
    path = Path(section["file"])
    weights = read_weights(path)
    if not section["strip"] and not section["rename"]:
        weights = fitted(weights, model.state_dict(), path)
    try:
        found, chosen = fit(model, weights, section, path.name)
        load_weights(model, {**model.state_dict(), **chosen})
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return found


def sections_with_weights(
    section: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the ``weights`` of a model's section, and of those in its arguments, in normal form.

    Each comes with the name of its module: that of the argument which the module was given as.
    """
    if section.get("weights") is not None:
        yield prefix, weights_section(section["weights"])[0]
    for name, value in (section.get("args") or {}).items():
        if isinstance(value, Mapping) and "type" in value:
            yield from sections_with_weights(value, f"{prefix}.{name}" if prefix else name)


def checkpoint_of(path: Path) -> Path | None:
    """Return the checkpoint that a path stands for: itself, a run's best, the newest run's best.

    None for a path that is no folder, and no ``state.pt`` of a checkpoint.
    """
    if not path.is_dir():
        is_part = path.name == "state.pt" and path.with_name("manifest.json").is_file()
        return path.parent if is_part else None
    if not (path / "checkpoints").is_dir() and not (path / "manifest.json").is_file():
        path = newest_run_in(path) or path
    store = CheckpointStore(path / "checkpoints")
    return ((store.best() or store.newest()) if store.folder.is_dir() else path) or path


def read_weights(path: Path, ema: bool | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file, by name; no code in it is run.

    Args:
        ema: whether a checkpoint's averages take the place of the trained weights; None where kept.

    Raises:
        CheckpointError: there is no such file, or it holds no weights, or no averages.
    """
    return weights_and_origin(path, ema)[0]


def weights_and_origin(path: Path, ema: bool | None) -> tuple[dict[str, Tensor], str]:
    """Return what `read_weights` does, and in words which of what it is."""
    try:
        folder = checkpoint_of(path)
        state = _read_file(path) if folder is None else read(folder)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    weights = _weights_in(path, state)
    kept = state.get("ema") if ema is not False and isinstance(state, Mapping) else None
    averages = kept.get("averages") if isinstance(kept, Mapping) else None
    averages = averages if _are_weights(averages) else {}
    if ema and not averages:
        raise CheckpointError(f"{path}: it keeps no averages (`trainer.ema`): leave out --ema")
    if not averages:
        return weights, f"weights of {folder or path}"
    # A weight that is shared has one average, under its first name.
    shared = {
        _memory(weights[name]): average for name, average in averages.items() if name in weights
    }
    weights = {name: shared.get(_memory(value), value) for name, value in weights.items()}
    return {**weights, **averages}, f"averaged weights of {folder or path}"


def read_record(path: Path) -> dict[str, Any]:
    """Return what is known of the data that weights were trained on (see `base/data/record.py`).

    It is in a checkpoint's manifest, in the metadata of an exported ``.safetensors``, or in
    ``net.pt.json`` beside an exported ``net.pt``. {} where there is none.

    Raises:
        CheckpointError: it is damaged.
    """
    folder = checkpoint_of(path)
    if folder is not None:
        return dict(data_of(peek_manifest(folder)).get("record", {}))
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
    except Exception as error:  # safetensors has an error of its own
        raise CheckpointError(f"{path}: its record of the data cannot be read: {error}") from error
    return record


def _memory(value: Any) -> Any:
    """Return where a tensor's numbers are, and as what: the same for those that share them all."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or not value.numel():
        return id(value)
    return value.data_ptr(), value.shape, value.stride()


def _weights_in(path: Path, state: Any) -> dict[str, Tensor]:
    """Return the weights of what a file holds: all of it, or what lies beside other things."""
    if isinstance(state, Mapping):
        named = (state.get(key) for key in ("state_dict", "model"))
        state = next(filter(_are_weights, named), state)
        parts = {str(key): value for key, value in state.items() if _are_weights(value)}
        parts = {key: value for key, value in parts.items() if not key.endswith(EXTRA)}
        if len(parts) > 1:
            names = ", ".join(map(repr, parts))
            text = f"it holds weights of several: {names}; save one by itself"
            raise CheckpointError(f"{path}: {text}")
        state = next(iter(parts.values()), state)
    held = state if isinstance(state, Mapping) else {"all of it": state}
    if strange := {key: kind for key, value in held.items() if (kind := _strange_kind(value))}:
        names = ", ".join(f"{key!r} is {kind!r}" for key, kind in [*strange.items()][:5])
        text = f"not plain tensors, and no code is run to make more of them: {names}"
        raise CheckpointError(f"{path}: {text}; save the model's `state_dict()` alone")
    if not _are_weights(state):
        of = f", of {', '.join(map(repr, [*state][:5])) or 'nothing'}" if held is state else ""
        raise CheckpointError(f"{path}: no weights in it: it holds a {type(state).__name__}{of}")
    if odd := [name for name in state if not (isinstance(name, str) and name.isprintable())]:
        raise CheckpointError(f"{path}: the name of a weight is a plain text, not {odd[0]!r:.99}")
    # Without what a file may hang on a tensor: attributes, and that it is a parameter.
    return {
        key: Tensor.detach(value) if isinstance(value, Tensor) else value
        for key, value in state.items()
    }


def _strange_kind(value: Any) -> str:
    """Return what a value is where a weight should be, if it was an object or a sparse tensor."""
    is_odd = isinstance(value, Tensor) and value.layout is not torch.strided
    return str(value.layout) if is_odd else stands_for(value)


def _are_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def _read_file(path: Path) -> Any:
    if not path.exists():
        beside = [str(each) for each in path.parent.glob("*")] if path.parent.is_dir() else []
        raise CheckpointError(f"{path}: no such file{nearest(str(path), beside)}")
    try:
        with open_file(path) as file:  # no FIFO and no device, for which a library would wait
            if path.suffix == ".safetensors":
                return _load_safetensors(path)
            return load(file, is_verified=False, keeps_names=True)
    except NotAFileError as error:
        raise CheckpointError(f"{path}: this is {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: not a readable file of weights: {error}") from error


def _load_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError("reading it needs safetensors (pip install safetensors)") from error
    try:
        return load_file(path)
    except Exception as error:  # it has errors of its own
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(text) from error
