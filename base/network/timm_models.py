"""Models of timm by name, their weights from a file or a local cache, and what they expect of data.

timm is optional and imported on use. Nothing is downloaded unless ``download: true`` asks for it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from base.errors import ConfigError, KindlingError, Problem, nearest
from base.system.deferred_files import waiting_files
from base.system.seeding import isolated_random_state

INSTALL = "timm is not installed: pip install -r requirements-extra.txt"
INSTEAD = {"num_classes": "n_classes", "checkpoint_path": "weights", "model_name": "name"}
INSTEAD |= dict.fromkeys(("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"), "weights")
FILES = ("model.safetensors", "pytorch_model.bin")  # of a model on Hugging Face


def import_timm() -> ModuleType:
    """Return the package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import timm as library
    except ImportError as error:
        raise ConfigError([Problem("", INSTALL)]) from error
    module: ModuleType = library
    return module


def timm(
    name: str,
    n_classes: int | None = None,
    in_chans: int | None = None,
    weights: str | None = None,
    pretrained: bool = False,
    download: bool = False,
    **options: Any,
) -> nn.Module:
    """Build a model of timm; `python -c "import timm; print(*timm.list_models())"` lists names.

    Args:
        n_classes, in_chans: the numbers of classes and of input channels; timm's by default.
        weights: a file of weights. They are loaded after ``init:``, and not on a resume.
        pretrained: load timm's weights for this name from the local cache of Hugging Face or torch.
        download: download them if they are not in the cache.
        options: further arguments of the model, such as ``drop_path_rate``.
    """
    library = import_timm()
    if fault := _name_fault(library, name):  # timm would look for other names in the network
        raise ValueError(fault)
    given = {"num_classes": n_classes, "in_chans": in_chans, **options}
    model: nn.Module = library.create_model(
        name, **{key: value for key, value in given.items() if value is not None}
    )
    return model


def _argument_faults(args: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the faults of arguments that the signature does not show, each with its key."""
    try:
        library = import_timm()
    except ConfigError:
        yield "", INSTALL
        return
    name = args.get("name")
    if not isinstance(name, str):
        return
    if fault := _name_fault(library, name):
        yield "name", fault
        return
    if args.get("weights") is not None and args.get("pretrained"):
        yield "pretrained", "`weights` names a file already: remove one of them"
    if args.get("download") and not args.get("pretrained"):
        yield "download", "it downloads what `pretrained: true` needs, which is not set"
    if args.get("pretrained") and not _is_published(library, name):
        yield "pretrained", f"timm has no weights for {name}; give a file: `weights: FILE`"
    more = {key: value for key, value in args.items() if key not in _OWN}
    for key in more:
        if key in INSTEAD:
            yield key, f"this argument is called {INSTEAD[key]!r} here"
    if more and not INSTEAD.keys() & more.keys():
        yield from _option_faults(library, name, more)


def _name_fault(library: ModuleType, name: str) -> str:
    architecture, _, tag = name.partition(".")
    if not library.is_model(architecture):
        near = nearest(architecture, library.list_models())
        how = "`python -c 'import timm; print(timm.list_models(\"*NAME*\"))'` lists them"
        return f"timm has no model {name!r}{near}; {how}"
    tags = library.list_pretrained(f"{architecture}.*")
    if tag and name not in tags:
        known = ", ".join(tags) or "none"
        return f"timm has no weights {name!r}{nearest(name, tags)} (it has {known})"
    return ""


def _is_published(library: ModuleType, name: str) -> bool:
    config = library.get_pretrained_cfg(name)
    return config is not None and bool(config.hf_hub_id or config.url)


def _option_faults(
    library: ModuleType, name: str, options: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield the arguments that the model rejects; it is built without memory for its weights."""

    def build(**given: Any) -> nn.Module:
        with isolated_random_state(0), torch.device("meta"):
            model: nn.Module = library.create_model(name, **given)
            return model

    try:
        build(**options)
    except TypeError as error:
        try:
            model = build()
        except Exception:  # this model cannot be built so: the error comes later
            return
        known = inspect.signature(type(model).__init__).parameters
        bad = [key for key in options if repr(key) in str(error)]
        for key in bad or list(options)[:1]:
            yield key, f"{name}: {error}{nearest(key, known)}"
    except Exception:  # values, or operations that need real weights: building reports them
        return


timm.argument_faults = _argument_faults  # type: ignore[attr-defined]
_OWN = [name for name in inspect.signature(timm).parameters if name != "options"]


# --- Weights --------------------------------------------------------------------------------------


def pretrained_file(name: str, download: bool) -> Path:
    """Return timm's file of weights for a name, from the local cache of Hugging Face or of torch.

    Args:
        download: whether to download a file that is not in the cache.

    Raises:
        KindlingError: it is not there, or the download fails.
    """
    config = import_timm().get_pretrained_cfg(name)
    repository, file = config.hf_hub_id, config.hf_hub_filename
    names = (file,) if file else FILES
    found = _in_hub_cache(repository, names) or _in_torch_cache(config.url)
    if found is not None:
        return found
    place = f"{repository}, {names[0]}" if repository else config.url
    if not download:
        text = f"the weights of {name} ({place}) are not in the local cache, and nothing is"
        text += " downloaded by default: add `download: true`, or give a file, `weights: FILE`"
        raise KindlingError(text)
    try:
        return _download(repository, names, config.url)
    except Exception as error:  # of several libraries
        text = " ".join(str(error).split())[:200]
        raise KindlingError(
            f"the weights of {name} ({place}) cannot be downloaded: {type(error).__name__}: {text}"
        ) from error


def _in_hub_cache(repository: str | None, names: tuple[str, ...]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache  # comes with timm

    if repository is None:
        return None
    for name in names:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def _in_torch_cache(url: str | None) -> Path | None:
    path = Path(torch.hub.get_dir()) / "checkpoints" / (url or "").rpartition("/")[2]
    return path if url and path.is_file() else None


def _download(repository: str | None, names: tuple[str, ...], url: str | None) -> Path:
    files = waiting_files()  # a dry run downloads to a folder that is removed
    folder = files.temporary_folder() if files is not None and files.is_trial else None
    if repository is None:
        assert url is not None  # see `_is_published`
        checkpoints = folder or Path(torch.hub.get_dir()) / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        path = checkpoints / url.rpartition("/")[2]
        torch.hub.download_url_to_file(url, str(path), progress=False)
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for name in names[:-1]:
        try:
            return Path(hf_hub_download(repository, name, cache_dir=folder))
        except EntryNotFoundError:
            continue
    return Path(hf_hub_download(repository, names[-1], cache_dir=folder))


def converted(
    model: nn.Module, args: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Return weights as timm converts them to a model, and the names of a head to leave out.

    timm renames the weights of other sources, resizes position embeddings, and adapts the first
    convolution to another number of channels. A head for other classes is left out.

    Args:
        args: the arguments of `timm`.
    """
    own, given = model.state_dict(), dict(weights)
    heads = _head_names(model, own)
    fits = {name for name, value in own.items() if name in given and _same(value, given[name])}
    if set(own) == set(given) and set(own) - fits <= set(heads):
        left_out = heads if set(own) - fits else []
        return {name: given[name] for name in given if name not in left_out}, left_out
    config, how = _how_timm_loads(args)
    config["state_dict"] = given
    n_classes = _n_classes_in(given, config)
    config["num_classes"] = n_classes or config["num_classes"]
    taken: dict[str, Tensor] = {}

    def take(state: Mapping[str, Tensor], strict: bool = True) -> Any:
        taken.update(state)
        return SimpleNamespace(missing_keys=[], unexpected_keys=[])

    from timm.models import load_pretrained

    model.load_state_dict = take  # type: ignore[method-assign, assignment]
    try:
        load_pretrained(model, config, **how)
    finally:
        del model.load_state_dict
    return taken, [name for name in heads if name not in taken]


def _same(one: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and one.shape == other.shape


def _head_names(model: nn.Module, own: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the weights of the classifier, or of several."""
    config = getattr(model, "pretrained_cfg", None) or {}
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    return [name for name in own if any(name.startswith(f"{head}.") for head in heads)]


def _n_classes_in(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> int | None:
    """Return the number of classes of a file's classifier, if its name is known."""
    heads = config.get("classifier") or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        if isinstance(value := weights.get(f"{head}.bias"), Tensor):
            return len(value)
    return None


def _how_timm_loads(args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings with which timm loads the weights of a model.

    The filter of a model is an argument of a private function, which is replaced by one that only
    notes its arguments.
    """
    from timm.models import _builder

    seen: dict[str, Any] = {}

    def note(model: nn.Module, pretrained_cfg: Any = None, **how: Any) -> None:
        seen.update(how, pretrained_cfg=pretrained_cfg)

    options = {key: value for key, value in args.items() if key not in _OWN or key == "in_chans"}
    if args.get("n_classes") is not None:
        options["num_classes"] = args["n_classes"]
    before, builder = _builder.load_pretrained, vars(_builder)
    builder["load_pretrained"] = note
    try:
        with isolated_random_state(0):
            import_timm().create_model(args["name"], pretrained=True, **options)
    finally:
        builder["load_pretrained"] = before
    config = dict(seen.pop("pretrained_cfg"))
    seen.pop("cache_dir", None)
    return config, seen


def data_config(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return mean and std of each channel and ``size`` (height, width) of a model's training.

    Args:
        args: the arguments of `timm`. For one input channel, numbers are means over the colours.
    """
    config = import_timm().get_pretrained_cfg(args["name"])
    mean, std = list(config.mean), list(config.std)
    if args.get("in_chans") == 1:
        mean, std = ([round(sum(each) / len(each), 4)] for each in (mean, std))
    return {"mean": mean, "std": std, "size": list(config.input_size[1:])}
