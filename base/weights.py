"""Weights of a model from a file, all of them or those that a config asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from base.checkpoint import CheckpointStore, read
from base.errors import CheckpointError, nearest
from base.legacy_files import fitted, read_torch_file
from base.restore import load_weights
from base.run_folder import find_newest_run
from base.weight_rules import Fit, fit, normal_form


def load_from(model: nn.Module, section: Mapping[str, Any] | str) -> Fit:
    """Load what the rules of a ``weights`` section leave of its file; tell what became of all.

    ``file`` is a file of weights (``.pt``, ``.pth``, ``.safetensors``), a checkpoint, a run (its
    best) or the folder of all runs of a name (the newest). All that is not left out must be there
    and fit, in both directions; else nothing is changed.

    Raises:
        CheckpointError: the file cannot be read or does not fit.
        NoMatch: a rule does nothing.
    """
    section, faults = normal_form(section)
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
        yield prefix, normal_form(section["weights"])[0]
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
        path = find_newest_run(path.parent, path.name) or path
    store = CheckpointStore(path / "checkpoints")
    return ((store.best() or store.newest()) if store.folder.is_dir() else path) or path


def read_weights(path: Path, ema: bool | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file, by name; no code in it is run.

    Args:
        ema: whether a checkpoint's averages take the place of the trained weights; None where kept.

    Raises:
        CheckpointError: there is no such file, or it holds no weights, or no averages.
    """
    folder = checkpoint_of(path)
    state = _read_file(path) if folder is None else read(folder)
    averages = state.get("ema", {}).get("averages", {}) if folder and ema is not False else {}
    if ema and not averages:
        raise CheckpointError(f"{path}: it keeps no averages (`trainer.ema`): leave out --ema")
    return {**_weights_in(path, state), **averages}


def _weights_in(path: Path, state: Any) -> dict[str, Tensor]:
    """Return the weights of what a file holds: all of it, or what lies beside other things."""
    parts: dict[str, Any] = {}
    if isinstance(state, Mapping):
        named = (state.get(key) for key in ("state_dict", "model"))
        state = next(filter(_are_weights, named), state)
    if isinstance(state, Mapping) and not _are_weights(state):
        parts = {str(key): value for key, value in state.items() if _are_weights(value)}
        state = next(iter(parts.values()), state)
    if len(parts) > 1:
        names = ", ".join(map(repr, parts))
        raise CheckpointError(f"{path}: it holds weights of several: {names}; save one by itself")
    if not _are_weights(state):
        has = f", of {', '.join(map(str, list(state)[:5]))}" if isinstance(state, Mapping) else ""
        raise CheckpointError(f"{path}: no weights in it: it holds a {type(state).__name__}{has}")
    if odd := [name for name in state if not isinstance(name, str)]:
        raise CheckpointError(f"{path}: the name of a weight is a text, not {odd[0]!r}")
    return dict(state)


def _are_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def _read_file(path: Path) -> Any:
    if not path.exists():
        beside = [str(each) for each in path.parent.glob("*")] if path.parent.is_dir() else []
        raise CheckpointError(f"{path}: no such file{nearest(str(path), beside)}")
    try:
        return _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises some thirty kinds for a damaged file
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(f"{path}: not a readable file of weights: {text}") from error


def _load_torch(path: Path) -> Any:
    return read_torch_file(path)


def _load_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        text = "reading it needs safetensors (pip install safetensors)"
        raise CheckpointError(f"{path}: {text}") from error
    return load_file(path)
