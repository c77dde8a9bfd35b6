"""A table of options that cannot be combined, checked before anything is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.optim import LBFGS

from base.config.config import Config
from base.config.normal_form import optimizer_keys, optimizer_sections
from base.config.tree import Keys
from base.errors import ConfigError, Problem
from base.names.registry import find

IN_BACKWARD, OFFLOADED = "memory.optimizer_in_backward", "memory.offload_optimizer"
COMPILED, CLOSURE = "memory.compile", "optimizer: LBFGS"
FSDP = "distributed.strategy: fsdp"
ONE_PASS = "a compiled model allows one backward pass per batch, which frees its buffers"
USED = "gradients are used before the next part is added to them"
OWN = "LBFGS computes its own gradients, from the last batch only"

# (option, other option, reason). `key: value` means this value only; `optimizer.` any optimizer.
EXCLUDED = [
    (IN_BACKWARD, "optimizer.clip_norm", "the norm needs all gradients at once"),
    (IN_BACKWARD, "optimizer.clip_value", "clipping needs all gradients at once"),
    (IN_BACKWARD, "optimizer.every", "skipped gradients must not be used"),
    (IN_BACKWARD, "memory.accumulate", USED),
    (IN_BACKWARD, "memory.micro_batch", USED),
    (IN_BACKWARD, "trainer.on_oom: halve", USED),
    (IN_BACKWARD, "memory.precision: fp16", "a step is skipped if any gradient overflows"),
    (IN_BACKWARD, "memory.set_to_none: false", "used gradients are freed"),
    (IN_BACKWARD, "several optimizers", "a loss may reach parameters of another optimizer"),
    (IN_BACKWARD, "trainer.backward: separate", "each backward pass would make a step"),
    (IN_BACKWARD, "trainer.loss_gradients", "it holds several copies of all gradients"),
    (IN_BACKWARD, "capture of parameters", "the gradients are freed before they are recorded"),
    (IN_BACKWARD, CLOSURE, OWN),
    (OFFLOADED, CLOSURE, "its state covers all parameters, and it is read several times a step"),
    ("memory.fused: true", CLOSURE, "torch has no fused version of it"),
    ("memory.channels_last: true", CLOSURE, "it needs contiguous gradients"),
    ("optimizer.clip_norm", CLOSURE, OWN),
    ("optimizer.clip_value", CLOSURE, OWN),
    ("memory.accumulate", CLOSURE, OWN),
    ("memory.micro_batch", CLOSURE, OWN),
    ("trainer.on_oom: halve", CLOSURE, OWN),
    ("memory.precision: fp16", CLOSURE, f"{OWN}, without a scale"),
    # torch._functorch.config.donated_buffer does not help: the disk cache may return graphs that
    # were compiled without it, which then give wrong gradients.
    (COMPILED, "trainer.backward: separate", ONE_PASS),
    (COMPILED, "trainer.loss_gradients", ONE_PASS),
    (COMPILED, "memory.inplace", "the compiler chooses what is overwritten"),
    (COMPILED, "memory.offload_activations", "a compiled graph chooses what it keeps"),
    ("memory.cudnn_benchmark", "deterministic", "timings would choose the algorithms"),
]
# (option, reason): what several processes do not offer.
ALONE_ONLY = [
    (CLOSURE, "LBFGS computes gradients itself, which are not summed over processes"),
    (IN_BACKWARD, "gradients are used before they are summed over processes"),
    ("trainer.loss_gradients", "the gradients of each loss are not summed over processes"),
    ("trainer.swa", "each would measure BatchNorm's statistics on its own samples"),
    ("capture of gradients", "a process computes them for its own samples only"),
]
# (option, reason): what several processes do not offer with `distributed.strategy: fsdp`.
WHOLE_ONLY = [
    ("memory.channels_last: true", "parts of weights must be contiguous"),
    ("memory.offload_optimizer", "the state is in parts, one on each process"),
    ("memory.micro_batch: auto", "the memory of weights in parts is not estimated"),
    ("trainer.on_nonfinite: rollback", "weights in parts are not kept as a copy"),
    ("trainer.on_oom: halve", "a failed backward pass leaves whole weights in memory"),
    ("capture of parameters", "each process has a part of their gradients"),
    ("memory.compile", "layers gather their weights between compiled graphs"),
    ("memory.precision: fp16", "a process finds an overflow in its parts of gradients only"),
    ("trainer.on_bad_sample: skip", "a process without a readable sample would not gather weights"),
    ("trainer.async_save: true", "the processes write a checkpoint together"),
]
USUAL = {"accumulate": 1, "every": "1 step"}  # besides null, false and an empty list


def check_combinations(config: Config, n_processes: int = 1) -> None:
    """Check that no incompatible options are combined.

    Args:
        n_processes: the number of processes that train the model.

    Raises:
        ConfigError: lists all such pairs with their locations and reasons.
    """
    problems = [
        config.problem(keys, f"cannot be combined with {other} ({config.where(*beside)}): {why}")
        for option, other, why in EXCLUDED
        for keys in _places(config, option)
        for beside in list(_places(config, other))[:1]
    ]
    is_sharded = config["distributed"]["strategy"] == "fsdp"
    if config["distributed"]["shard"] and not is_sharded:
        text = "only `strategy: fsdp` divides modules into parts: set it, or leave this out"
        problems.append(config.problem(("distributed", "shard"), text))
    if n_processes > 1:
        how = f"{n_processes} processes"
        problems += _unsupported(config, ALONE_ONLY, how, "train in one process")
        if is_sharded:
            how, instead = f"{how} and {FSDP}", "use `strategy: data_parallel`"
            problems += _unsupported(config, WHOLE_ONLY, how, instead)
    if problems:
        raise ConfigError(problems)


def _unsupported(
    config: Config, table: list[tuple[str, str]], how: str, instead: str
) -> Iterator[Problem]:
    """Yield a problem for each option of a table that is set."""
    for option, why in table:
        for keys in _places(config, option):
            text = f"cannot be used with {how}: {why}; leave it out, or {instead}"
            yield config.problem(keys, text)


def layout_wish(config: Config, n_processes: int = 1) -> bool | str:
    """Return ``memory.channels_last``.

    ``auto`` means false for LBFGS, which flattens gradients, and for weights in parts.
    """
    wish: bool | str = config["memory"]["channels_last"]
    is_sharded = n_processes > 1 and config["distributed"]["strategy"] == "fsdp"
    return False if wish == "auto" and (is_sharded or any(_places(config, CLOSURE))) else wish


def _places(config: Config, option: str) -> Iterator[Keys]:
    """Yield the keys under which an option is set."""
    if option == "several optimizers":
        if len(optimizer_sections(config)) > 1:
            yield ("optimizers",)
    elif option.startswith("capture of "):
        for number, rule in enumerate(config["capture"]):
            if rule["of"] == option.removeprefix("capture of "):
                yield ("capture", number)
    elif option == CLOSURE:
        for keys, section in _optimizers(config):
            kind = find("optimizer", section["type"])
            if isinstance(kind, type) and issubclass(kind, LBFGS):
                yield (*keys, "type")
    else:
        yield from _set_keys(config, *option.split(": "))


def _set_keys(config: Config, name: str, wanted: str = "") -> Iterator[Keys]:
    head, _, key = name.partition(".")
    sections = _optimizers(config) if head == "optimizer" else [((head,), config[head])]
    for keys, section in sections:
        value = section[key] if key and key in section else None if key else section
        is_off = value is None or value is False or value in ([], USUAL.get(key))
        is_set = str(value).lower() == wanted if wanted else not is_off
        if is_set:
            yield (*keys, key) if key else keys


def _optimizers(config: Config) -> list[tuple[Keys, Any]]:
    sections = optimizer_sections(config).items()
    return [(optimizer_keys(config, name), section) for name, section in sections]
