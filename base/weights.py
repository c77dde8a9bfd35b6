"""Weights of a model from a file, all of them or those that a config asks for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from base.checkpoint import CheckpointStore, read
from base.errors import CheckpointError, nearest
from base.legacy_files import fitted, read_torch_file
from base.match import match_names
from base.restore import load_weights
from base.run_folder import find_newest_run


def load_from(model: nn.Module, section: Mapping[str, Any]) -> dict[str, str]:
    """Load what ``only`` and ``skip`` leave of a file; return where each name came from.

    ``file`` is a file of weights (``.pt``, ``.pth``, ``.safetensors``), a checkpoint, a run (its
    best) or the folder of all runs of a name (the newest). All that is not left out must be there
    and fit, in both directions; else nothing is changed.

    Raises:
        CheckpointError: the file cannot be read or does not fit.
        NoMatch: a pattern matches nothing.
    """
    path = Path(section["file"])
    own = model.state_dict()
    saved = fitted(read_weights(path), own, path)
    known = list(dict.fromkeys([*own, *saved]))
    chosen = set(match_names(known, section["only"], model) if section["only"] else known)
    chosen -= set(match_names(known, section["skip"], model) if section["skip"] else ())
    kept = {name: value for name, value in own.items() if name not in chosen}
    try:
        load_weights(model, {**kept, **{n: v for n, v in saved.items() if n in chosen}})
    except CheckpointError as error:
        text = f"{path}: {str(error).replace('checkpoint', 'file')}"
        raise CheckpointError(f"{text}\nwhat is not to be loaded is named by `skip`") from error
    return {name: path.name for name in saved if name in chosen}


def sections_with_weights(
    section: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the ``weights`` of a model's section, and of those in its arguments, in normal form.

    Each comes with the name of its module: that of the argument which the module was given as.
    """
    given = section.get("weights")
    if given is not None:
        given = {"file": given} if isinstance(given, str) else given
        lists = {key: _as_list(given.get(key)) for key in ("only", "skip")}
        yield prefix, {"file": given["file"], **lists}
    for name, value in (section.get("args") or {}).items():
        if isinstance(value, Mapping) and "type" in value:
            yield from sections_with_weights(value, f"{prefix}.{name}" if prefix else name)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, by name; no code in it is run. Of a run, averages where kept.

    Raises:
        CheckpointError: there is no such file, or it holds no weights.
    """
    if path.is_dir():
        if not (path / "checkpoints").is_dir() and not (path / "manifest.json").is_file():
            path = find_newest_run(path.parent, path.name) or path
        store = CheckpointStore(path / "checkpoints")
        chosen = (store.best() or store.newest()) if store.folder.is_dir() else path
        state = read(chosen or path)
        return {**state["model"], **state.get("ema", {}).get("averages", {})}
    if not path.exists():
        beside = [str(each) for each in path.parent.glob("*")] if path.parent.is_dir() else []
        raise CheckpointError(f"{path}: no such file{nearest(str(path), beside)}")
    try:
        state = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    except CheckpointError:
        raise
    except Exception as error:  # torch raises some thirty kinds for a damaged file
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(f"{path}: not a readable file of weights: {text}") from error
    for key in ("state_dict", "model"):  # as many save it beside other things
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path}: no weights in it: it holds a {type(state).__name__}")
    return dict(state)


def _load_torch(path: Path) -> Any:
    return read_torch_file(path)


def _load_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        text = "reading it needs safetensors (pip install safetensors)"
        raise CheckpointError(f"{path}: {text}") from error
    return load_file(path)
