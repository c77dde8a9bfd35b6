"""Checks that all processes train the same model on the same data, before the first step."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from base.checkpoint.data_record import class_names
from base.config import Config
from base.config.normal_form import optimizer_keys
from base.config.tree import leaves
from base.data.batch import tensors_in
from base.data.fingerprint import samples_of
from base.data.shares import fault_of_batch_size
from base.distributed.agreement import MAX_LOSSES
from base.distributed.comparison import (
    code_difference,
    config_difference,
    data_difference,
    differing,
    hash_of,
    hash_of_tensor,
    name_of,
    other_rank,
)
from base.distributed.group import World
from base.distributed.shard import is_sharded
from base.errors import ConfigError, DataError, Problem, listed
from base.names.discovery import project_root
from base.names.shipped import FOLDERS, digest
from base.run.large_split import PART_NAMES
from base.system.places import PROJECT
from base.system.processes import rank as launched_rank
from base.system.seeding import isolated_random_state
from base.training.experiment import Experiment
from base.training.metrics import cannot_merge
from base.training.progress import Stateful
from base.training.rank_states import OF_RANK
from base.training.state import matches_name
from logger.files import read_file

log = logging.getLogger("kindling")

HASHED_WHOLE = 1 << 20  # entries of a tensor; larger ones are compared by their norms
OF_WEIGHTS = ("model", "optimizer.", "ema")
COMPARED_WHOLE = ("base", "logger", *FOLDERS)  # folders with the same files on all ranks
READS_WHOLE_WEIGHTS = ("Adafactor", "Muon", "MuonWithAdamW")  # optimizers
OF_ONE_MACHINE = ("device", "threads")  # keys of the config that may differ


def check_ranks(
    experiment: Experiment, world: World, started_with: Mapping[str, str] | None = None
) -> None:
    """Check that all ranks have built the same experiment, and that several can train it.

    All ranks must call it. If their weights differ, all continue with those of rank 0.

    Args:
        started_with: `hash_code_at_start` of this rank.

    Raises:
        ConfigError: on rank 0: torch, devices, config or code differ between ranks, or several
            processes cannot train this experiment.
        DataError: on rank 0: the data differ.
        PeerError: on the other ranks, once rank 0 has raised one of these.
    """
    config = experiment.config
    wants_parts = config["distributed"]["strategy"] == "fsdp"
    if not world.is_active:
        if wants_parts and world.size == 1:
            text = (
                "distributed.strategy: fsdp has no effect in one process, which keeps all weights"
            )
            config.notes.append(text)
        return
    wholes = {"config": config_texts(config), "code": {**hash_code(), **(started_with or {})}}
    facts = {
        "host": socket.gethostname(),
        "torch": str(torch.__version__),  # a subclass of str
        "device": experiment.device.type,
        **{key: hash_of(whole) for key, whole in wholes.items()},
        "train": describe_data(experiment.train_loader),
        "valid": describe_data(experiment.valid_loader),
    }
    rows = world.all_gather(facts)
    details = None
    if any(other_rank(rows, key) is not None for key in wholes):
        details = world.gather(wholes)
    if world.is_main:
        _refuse_differences(rows, details)
        refuse_unsupported(experiment, world.size)
        warn_of_batch_norm(experiment, world.size)
    for part, loader in (("train", experiment.train_loader), ("valid", experiment.valid_loader)):
        warn_of_other_batches(loader, PART_NAMES[part], world)
    # Each rank has parts of the model's weights, which were compared whole.
    whole = {name: one for name, one in weights_of(experiment).items() if not is_sharded(one)}
    if match_weights(whole, world):
        for loss in experiment.losses.values():
            loss.follow_weights()


def warn_of_other_batches(loader: Any, part: str, world: World) -> None:
    """Warn if ranks that cut their parts from whole batches do not draw the same ones.

    All ranks must call it. It reads the first batch of such a loader.
    """
    if not getattr(loader, "cuts_batches", False):
        return
    loader.shard(0, 1)
    with isolated_random_state(0):
        batch = next(iter(loader.batches(0, 1)), None)
    loader.shard(world.rank, world.size)
    hashes = world.gather([hash_of_tensor(each) for each in tensors_in(batch)]) or []
    for rank, theirs in enumerate(hashes):
        if theirs != hashes[0]:
            text = "the first %s batch of rank %d is not that of rank 0, and each takes its part of"
            text += " its own: if the loader divides the samples by rank itself, most of them are"
            text += " lost: leave that to Kindling; if they are drawn or changed at random, seed it"
            log.warning(text, part, rank)
            return


def match_weights(weights: Mapping[str, Tensor], world: World) -> bool:
    """Copy rank 0's weights to all ranks if they differ, with a warning; return whether they did.

    All ranks must call it with the same names.

    Raises:
        ConfigError: on rank 0: names or shapes differ.
        PeerError: on the other ranks, then.
    """
    if not world.is_active:
        return False
    shapes = {name: f"{tuple(each.shape)} {each.dtype}" for name, each in weights.items()}
    values = {name: hash_of_tensor(each) for name, each in weights.items()}
    facts = {"host": socket.gethostname(), "shapes": hash_of(shapes), "values": hash_of(values)}
    rows = world.all_gather(facts)
    key = next((key for key in ("shapes", "values") if other_rank(rows, key) is not None), None)
    if key is None:
        return False
    details = world.gather(shapes if key == "shapes" else values)
    if details is not None:
        rank = other_rank(rows, key) or 0
        name, other = differing(details[0], details[rank])[0], name_of(rows, rank)
        if key == "shapes":
            ours, theirs = (one.get(name, "missing") for one in (details[0], details[rank]))
            text = f"the model differs between ranks: {name} is {ours} on rank 0 and {theirs} on"
            text += f" {other}: build it from the config alone, not from the rank or the machine"
            raise ConfigError([Problem("", text)])
        text = "weights differ between ranks, first %s on %s: all continue with those of rank 0;"
        log.warning(
            f"{text} draw initial values by torch, which has one seed on all ranks", name, other
        )
    world.broadcast_tensors(list(weights.values()))
    return True


def warn_of_other_state(stateful: Mapping[str, Stateful], world: World, is_sharded: bool) -> None:
    """Warn if a part of the state differs from rank 0's after a step that all ranks made.

    All ranks must call it. Large tensors are compared by their norms.

    Args:
        is_sharded: whether each rank has a part of the weights, which are not compared then.
    """
    left_out = (*OF_RANK, "bad_samples", *(OF_WEIGHTS if is_sharded else ()))
    parts = {
        name: _summary(one.state_dict())
        for name, one in stateful.items()
        if not matches_name(name, left_out)
    }
    found = world.gather({name: hash_of(part) for name, part in parts.items()})
    for rank, theirs in enumerate(found or []):
        assert found is not None
        if names := differing(found[0], theirs):
            text = "after a step, %s of rank %d differs from that of rank 0, which is saved: it"
            text += " depends on the rank's own samples or random numbers; combine it by"
            log.warning(f"{text} `self.gather`", listed(names), rank)
            return


def _summary(value: Any) -> Any:
    """Return plain data that differ where tensors or numbers do."""
    if isinstance(value, Tensor):
        if value.numel() <= HASHED_WHOLE or not value.is_floating_point():
            return [list(value.shape), hash_of_tensor(value)]
        return [list(value.shape), float(value.detach().to_dense().norm(dtype=torch.float64))]
    if isinstance(value, Mapping):
        return {str(key): _summary(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_summary(part) for part in value]
    return repr(value)


def weights_of(experiment: Experiment) -> dict[str, Tensor]:
    """Return all parameters and buffers of the model and the losses, by name."""
    modules = {"": experiment.model}
    for name, loss in experiment.losses.items():
        if isinstance(loss.function, nn.Module):
            modules[f"loss.{name}"] = loss.function
    return {
        name: value
        for prefix, module in modules.items()
        for named in (module.named_parameters(prefix), module.named_buffers(prefix))
        for name, value in named
    }


def config_texts(config: Config) -> dict[str, str]:
    """Return the values of a config that all ranks must share, as text by dotted key."""
    shared = {key: config[key] for key in config if key not in OF_ONE_MACHINE}
    return {key: json.dumps(value, default=str) for key, value in leaves(shared)}


def hash_code_at_start() -> dict[str, str]:
    """Return `hash_code` before this process waits for the others; empty for a single process.

    Another process may start later, and read a file that was changed in the meantime.
    """
    return {} if launched_rank() is None else hash_code()


def hash_code() -> dict[str, str]:
    """Return a hash of each file of the engine and the project, by its path from their root.

    Besides the known folders these are the scripts beside them, and other folders of the project
    that modules were imported from.
    """
    root = project_root()
    hashes: dict[str, str] = {}
    for folder, name in [(PROJECT, "base"), (PROJECT, "logger"), *((root, f) for f in FOLDERS)]:
        hashes |= _hash_files(folder, (folder / name).rglob("*.py"))
    hashes |= _hash_files(root, root.glob("*.py"))
    for name in _imported_folders(root) - {*COMPARED_WHOLE}:
        hashes |= _hash_files(root, (root / name).rglob("*.py"))
    return hashes


def _imported_folders(root: Path) -> set[str]:
    """Return the folders of a project that contain imported modules."""
    files = [getattr(one, "__file__", None) or "" for one in [*sys.modules.values()]]
    own = [Path(file).parts for file in files if file.startswith(f"{root}{os.sep}")]
    place = len(root.parts)
    return {each[place] for each in own if len(each) > place + 1 and "site-packages" not in each}


def _hash_files(root: Path, paths: Iterator[Path]) -> dict[str, str]:
    files = {path.relative_to(root).as_posix(): path for path in paths if path.is_file()}
    seen = (file for file in files if not any(part.startswith(".") for part in file.split("/")))
    return {file: digest(read_file(files[file])) for file in seen}


def describe_data(loader: Any) -> dict[str, Any]:
    """Return the number, hashes and classes of a loader's samples; empty without a loader.

    Targets in files of their own, such as masks, are not read for this.
    """
    if loader is None:
        return {}
    samples = samples_of(loader)
    hashes = {} if samples is None else samples.digests_in_memory
    return {"classes": class_names(getattr(loader, "dataset", None)), **hashes}


def _refuse_differences(rows: list[dict[str, Any]], details: list[Any] | None) -> None:
    """Check that no rank differs from rank 0.

    Raises:
        ConfigError: torch, devices, config or code differ, and perhaps the data too.
        DataError: only the data differ.
    """
    problems, faults = [*_plain_differences(rows)], list[str]()
    for key, describe in (("code", _describe_code), ("config", config_difference)):
        rank = other_rank(rows, key)
        if rank is not None and details is not None:
            ours, theirs = details[0][key], details[rank][key]
            problems.append(describe(ours, theirs, name_of(rows, rank)))
    for part, name in PART_NAMES.items():
        rank = other_rank(rows, part)
        if rank is not None:
            ours, theirs = rows[0][part], rows[rank][part]
            faults.append(data_difference(ours, theirs, name, name_of(rows, rank)))
    if any(problems):
        raise ConfigError([Problem("", text) for text in [*problems, *faults] if text])
    if faults:
        raise DataError("\n".join(faults))


def _plain_differences(rows: list[dict[str, Any]]) -> Iterator[str]:
    advice = {
        "torch": "install the same version on all machines",
        "device": "give all processes devices of one type",
    }
    for key, text in advice.items():
        rank = other_rank(rows, key)
        if rank is not None:
            values = f"{rows[0][key]} on rank 0 and {rows[rank][key]} on {name_of(rows, rank)}"
            yield f"{key} differs between ranks: it is {values}: {text}"


def _describe_code(ours: Mapping[str, str], theirs: Mapping[str, str], other: str) -> str:
    return code_difference(ours, theirs, other, COMPARED_WHOLE)


def refuse_unsupported(experiment: Experiment, n_processes: int) -> None:
    """Check that several processes can train what was built.

    Raises:
        ConfigError: lists all reasons why not.
    """
    config, how = experiment.config, f"{n_processes} processes"
    problems = []
    if text := fault_of_batch_size(experiment.train_loader, n_processes):
        problems.append(config.problem(("data_loader", "args", "batch_size"), text))
    for name, loss in experiment.all_losses.items():
        if loss.needs_whole_batches:
            text = f"the loss {name!r} compares the samples of a batch with each other, and each of"
            problems.append(config.problem(("loss",), f"{text} {how} has a part: use one process"))
    if (n_losses := len(experiment.all_losses)) > MAX_LOSSES:
        text = f"{how} train at most {MAX_LOSSES} losses, and here are {n_losses}: combine some"
        problems.append(config.problem(("loss",), text))
    if names := sparse_layers(experiment.model):
        text = f"{listed(names)}: sparse gradients are not summed over {how}: set sparse=False"
        problems.append(config.problem(("model",), text))
    if config["distributed"]["sync_batch_norm"] and experiment.device.type != "cuda":
        text = f"torch's SyncBatchNorm works on CUDA only, and this is {experiment.device.type}"
        problems.append(config.problem(("distributed", "sync_batch_norm"), f"{text}: set false"))
    problems += cannot_merge(experiment.metrics)
    if is_sharded(next(experiment.model.parameters(), None)):
        problems += _undivided(experiment, how)
    if problems:
        raise ConfigError(problems)


def _undivided(experiment: Experiment, how: str) -> Iterator[Problem]:
    """Yield what does not work with parameters in parts."""
    config, instead = experiment.config, "use `strategy: data_parallel`"
    text = f"cannot be used with {how} and distributed.strategy: fsdp"
    if len(experiment.optimizers) > 1:
        why = "networks that are called one by one do not gather their weights together"
        yield config.problem(("optimizers",), f"several optimizers {text}: {why}; {instead}")
    for name, optimizer in experiment.optimizers.items():
        if type(optimizer).__name__ in READS_WHOLE_WEIGHTS:
            why = "it computes sums over whole weights"
            where = (*optimizer_keys(config, name), "type")
            yield config.problem(where, f"{type(optimizer).__name__} {text}: {why}; {instead}")


def sparse_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers with sparse gradients."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    named = model.named_modules()
    return [name for name, each in named if isinstance(each, kinds) and each.sparse]


def warn_of_batch_norm(experiment: Experiment, n_processes: int) -> None:
    """Warn if BatchNorm computes its statistics over the samples of one process."""
    modules = [each for each in experiment.model.modules() if isinstance(each, _BatchNorm)]
    norms = [each for each in modules if not isinstance(each, nn.SyncBatchNorm)]
    if not norms:
        return
    batch_size = getattr(experiment.train_loader, "batch_size", None)
    n_samples = f"{-(-batch_size // n_processes)} samples" if batch_size else "the samples"
    text = "the %d BatchNorm layers see %s of one process, not the whole batch: statistics and"
    advice = "; `distributed: {sync_batch_norm: true}` computes them over all processes"
    advice = advice if experiment.device.type == "cuda" else ""
    log.warning(f"{text} results differ{advice}", len(norms), n_samples)
