"""The loaders of a config: for training, validation and test."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from base.base_data_loader import BaseDataLoader, as_batches
from base.checkpoint.data_record import use_record
from base.config import Config
from base.config.durations import RunLength
from base.data.batch import DEFAULT_RULES, Rules
from base.data.cut_parts import sharded
from base.data.streams import sharing_fault
from base.errors import ConfigError, Problem
from base.names.construction import build
from base.names.object_references import References
from base.names.registry import find
from base.names.signatures import signature

log = logging.getLogger("kindling")

# Losses of torch that take class indices, not class probabilities.
CLASS_INDEX_LOSSES = frozenset((
    "nll_loss", "NLLLoss", "NLLLoss2d", "multi_margin_loss",
    "MultiMarginLoss", "multilabel_margin_loss", "MultiLabelMarginLoss", "ctc_loss", "CTCLoss",
    "AdaptiveLogSoftmaxWithLoss",
))  # fmt: skip


def build_loaders(config: Config, references: References | None = None) -> tuple[Any, Any]:
    """Build the training loader, and the validation loader from its own section or from a split."""
    seed = config["seed"]
    references = References(config) if references is None else references
    section = references.resolve("data_loader", ("data_loader",), config["data_loader"])
    loader = build("data_loader", section, where=config.where("data_loader"))
    if hasattr(loader, "set_seed"):
        loader.set_seed(seed)
    references.add("data_loader", loader)
    key = "data_loader" if config["valid_data_loader"] is None else "valid_data_loader"
    if config["valid_data_loader"] is not None:
        section = references.resolve("data_loader", (key,), config[key])
        valid_loader = build("data_loader", section, where=config.where("valid_data_loader"))
        if hasattr(valid_loader, "set_seed"):
            valid_loader.set_seed(seed)
        _set_ignored_index(valid_loader, config)
    else:
        valid_loader = loader.split_validation() if hasattr(loader, "split_validation") else None
    if valid_loader is not None:
        valid_loader = _for_evaluation(config, valid_loader, key)
        references.add("valid_data_loader", valid_loader)
    _set_ignored_index(loader, config)
    if hasattr(loader, "set_training_length"):
        n_batches = batches_in_epoch(config, loader)
        loader.set_training_length(RunLength.from_config(config, n_batches), n_batches)
    if mixers := getattr(loader, "mixes", ""):
        _refuse_class_indices(config, mixers)
        if config["batch"]["weight"] is not None:
            text = f"{mixers} combines two samples, each with its own weight"
            problem = config.problem(("batch", "weight"), f"{text}: leave one of them out")
            raise ConfigError([problem])
    return _with_positions(config, loader, "data_loader"), valid_loader


def build_test_loader(
    config: Config, record: Mapping[str, Any], references: References | None = None
) -> Any:
    """Build the test loader: from its own section, or the training one with ``training=False``.

    Args:
        record: statistics of the training data, which are not read again.

    Raises:
        ConfigError: the config names no test data and its loader has no ``training`` argument.
    """
    key = "data_loader" if config["test_data_loader"] is None else "test_data_loader"
    references = References(config) if references is None else references
    if missing := missing_test_data(config):
        raise ConfigError([config.problem(("data_loader",), f"no test data: {missing}")])
    section = references.resolve("data_loader", (key,), config[key])
    if key == "data_loader":
        named = find("data_loader", section["type"])
        accepted = signature("data_loader", named).parameters
        plain = {"training": False, "shuffle": False, "validation_split": 0.0, "augment": False}
        given: dict[str, Any] = {k: value for k, value in plain.items() if k in accepted}
        if isinstance(section["args"].get("sampler"), Mapping):
            given["sampler"] = None  # samplers are for training
        args = {**section["args"], **given}
        reduce = getattr(named, "arguments_for_test", lambda args, record: args)
        section = {"type": section["type"], "args": reduce(args, record)}
    loader = build("data_loader", section, where=config.where(key))
    if hasattr(loader, "set_seed"):
        loader.set_seed(config["seed"])
    _set_ignored_index(loader, config)
    use_record(loader, record)
    return _for_evaluation(config, loader, key)


def missing_test_data(config: Config) -> str:
    """Return which setting would provide test data; an empty text if they are configured.

    A loader with an argument `training` provides them with ``training=False``. It may define a
    class method ``missing_test_data(args)`` that returns a setting which it needs for this.
    """
    if config["test_data_loader"] is not None:
        return ""
    section = config["data_loader"]
    named = find("data_loader", section["type"])
    if "training" not in signature("data_loader", named).parameters:
        text = "add a `test_data_loader` section"
        return f"{text}, or give {section['type']} an argument `training`, false for test data"
    missing = getattr(named, "missing_test_data", lambda args: "")
    text = str(missing(section["args"]))
    return f"set {text}, or add a `test_data_loader` section" if text else ""


def prepare_loader(config: Config, loader: Any, where: str = "") -> Any:
    """Seed a loader that a trainer builds, and give it ``batches(first, count)``."""
    if hasattr(loader, "set_seed"):
        loader.set_seed(config["seed"])
    _set_ignored_index(loader, config)
    if fault := sharing_fault(loader):
        raise ConfigError([Problem(where, fault)])
    return as_batches(loader, config["seed"], config["batch"])


def _with_positions(config: Config, loader: Any, key: str) -> Any:
    """Give a loader ``batches(first, count)``; refuse a stream that all workers read whole."""
    if fault := sharing_fault(loader):
        is_given = "num_workers" in config[key]["args"]
        keys = (key, "args", "num_workers") if is_given else (key,)
        raise ConfigError([config.problem(keys, fault)])
    loader = as_batches(loader, config["seed"], config["batch"])
    if config["batch"]["ids"] or isinstance(config["batch"]["weight"], str):
        loader.add_to_batches(config["batch"])
    return loader


def _for_evaluation(config: Config, loader: Any, key: str) -> Any:
    """Prepare a loader for evaluation: a stream is read once, and needs a limit."""
    loader = _with_positions(config, loader, key)
    if hasattr(loader, "repeats"):
        loader.repeats = False
    try:
        len(loader)
    except TypeError as error:
        if config["trainer"]["valid_batches"] is None:
            text = f"{error}, so it may be infinite: limit the batches to evaluate,"
            text += " `trainer: {valid_batches: 50}`, or give the data set a `__len__`"
            raise ConfigError([config.problem((key,), text)]) from error
    return loader


class DeferredLoader:
    """A loader that is built on the first use of more than its length."""

    is_deferred = True

    def __init__(
        self, build: Callable[[], Any], n_batches: int | None, rules: Rules = DEFAULT_RULES
    ) -> None:
        self._build, self._n_batches, self._rules = build, n_batches, rules
        self._loader: Any = None
        self._share = (0, 1)

    def __len__(self) -> int:
        return len(self.built()) if self._n_batches is None else self._n_batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.built())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # used by copy and pickle
            raise AttributeError(name)
        return getattr(self.built(), name)

    @property
    def n_own(self) -> int | None:
        """The number of samples of the last batch that belong to this rank."""
        return getattr(self._loader, "n_own", None)

    def shard(self, rank: int, size: int) -> None:
        """Yield a rank's part of each batch from now on."""
        self._share = (rank, size)
        if self._loader is not None:
            self._loader = sharded(self._loader, rank, size, self._rules)

    def built(self) -> Any:
        """Return the loader; build it at the first call."""
        if self._loader is None:
            self._loader = self._build()
            if self._share != (0, 1):
                self._loader = sharded(self._loader, *self._share, self._rules)
        return self._loader


def defer_loaders(
    config: Config, n_batches: Mapping[str, int | None], references: References | None = None
) -> tuple[Any, Any]:
    """Return the training and the validation loader of a run, to be built on first use.

    Args:
        n_batches: the length of each loader of the run; None for one without a length.
    """
    both = functools.cache(lambda: build_loaders(config, references))
    train = DeferredLoader(lambda: both()[0], n_batches.get("train"), config["batch"])
    if "valid" not in n_batches:
        return train, None
    return train, DeferredLoader(lambda: both()[1], n_batches["valid"], config["batch"])


def batches_in_epoch(config: Config, loader: Any) -> int:
    """Return the number of batches in an epoch.

    Raises:
        ConfigError: the loader has no length and the config does not set one.
    """
    if config["trainer"]["epoch_steps"] is not None:
        return int(config["trainer"]["epoch_steps"] * config["memory"]["accumulate"])
    try:
        n_batches = len(loader)
    except TypeError as error:
        text = f"{error}: set the number of steps in an epoch, `trainer: {{epoch_steps: 500}}`"
        raise ConfigError([config.problem(("data_loader",), text)]) from error
    if n_batches == 0:
        raise ConfigError([config.problem(("data_loader",), "the loader yields no batch")])
    return n_batches


def check_sampler(config: Config, loader: Any, n_batches: int) -> None:
    """Check that a sampler with state can be resumed and receives the losses that it needs.

    Args:
        n_batches: batches in an epoch.

    Raises:
        ConfigError: an epoch is not one pass over the loader, or losses lack their sample ids.
    """
    state, problems = loader.sampler_state, []
    name, is_given = type(state.sampler).__name__, False
    if isinstance(loader, BaseDataLoader):
        is_given = loader.is_given(state.sampler)
    if state.wants_losses and not config["batch"]["ids"] and not is_given:
        state.wants_losses = False  # a custom trainer may call it
        log.warning("%s: set `batch: {ids: true}` to have its update(ids, losses) called", name)
    if n_batches != len(loader):
        text = f"{name} chooses samples for one pass over the data, {len(loader)} batches, and"
        text += f" saves its state by the epoch, which has {n_batches} here: leave this out"
        problems.append(config.problem(("trainer", "epoch_steps"), text))
    if state.wants_losses and not config["batch"]["ids"]:
        text = f"{name} learns from the loss of each sample: set `batch: {{ids: true}}`"
        problems.append(config.problem(("data_loader",), text))
    if state.wants_losses and getattr(loader, "mixes", ""):
        text = f"{name} learns from the loss of each sample, but {loader.mixes} mixes samples"
        problems.append(config.problem(("data_loader",), f"{text}: leave one of them out"))
    if problems:
        raise ConfigError(problems)


def ignored_by_losses(config: Config) -> int | None:
    """Return the first ``ignore_index`` of the losses, given or by default; None without one."""
    for section in config["loss"]:
        named = find("loss", section["type"])
        takes = signature("loss", named).parameters
        default = takes["ignore_index"].default if "ignore_index" in takes else None
        default = getattr(named, "ignore_index", default)  # of an instance
        value = (section["args"] or {}).get("ignore_index", default)
        if isinstance(value, int):
            return value
    return None


def _set_ignored_index(loader: Any, config: Config) -> None:
    """Pass the class index that the losses ignore to a loader."""
    if hasattr(loader, "set_ignored"):
        loader.set_ignored(ignored_by_losses(config))


def _is_class_index(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _refuse_class_indices(config: Config, mixers: str) -> None:
    """Check that no loss takes class indices if samples are mixed.

    Raises:
        ConfigError: names all losses that do.
    """
    problems = []
    for number, section in enumerate(config["loss"]):
        name, ignored = section["type"], (section["args"] or {}).get("ignore_index", -100)
        if name in CLASS_INDEX_LOSSES:
            text = (
                f"{name} takes class indices, but targets mixed by {mixers} are class probabilities"
            )
            problems.append(config.problem(("loss", number), f"{text}: use cross_entropy"))
        elif name in ("cross_entropy", "CrossEntropyLoss") and _is_class_index(ignored):
            text = f"targets mixed by {mixers} are class probabilities, which have no ignore_index"
            problems.append(config.problem(("loss", number), f"{text}: leave one of them out"))
    if problems:
        raise ConfigError(problems)
