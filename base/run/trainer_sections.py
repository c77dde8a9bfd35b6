"""`BaseTrainer.build`: builds sections that a trainer takes from ``extra:`` or its arguments.

They are checked as all sections of the config are, and may refer to the same built objects.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from base.base_model import check_model
from base.checkpoint.weights import load_pretrained, sections_with_weights
from base.config.fields import Field, Validation
from base.config.interpolation import look_up
from base.config.schema import LOSS, METRIC, MODEL, named
from base.config.tree import Node, as_tree
from base.errors import CheckpointError, ConfigError, Problem, nearest
from base.names.check import check_section
from base.names.construction import build
from base.names.registry import override_note
from base.network.compilation import compile_networks
from base.network.patterns import NoMatch
from base.run.loaders import prepare_loader
from base.system.seeding import derive_seed, isolated_random_state
from base.training.experiment import Experiment
from base.training.losses import WeightedLoss, build_losses
from base.training.metric_defaults import compares_outputs
from base.training.metrics import build_metrics

log = logging.getLogger("kindling")
Keys = tuple[str | int, ...]
Section = Mapping[str, Any]

# The schema of a section of each kind.
_SCHEMAS: dict[str, Field] = {"loss": LOSS, "metric": METRIC, "model": MODEL}
_SCHEMAS |= {
    kind: named(kind) for kind in ("data_loader", "dataset", "transform", "callback", "init")
}
NOT_BUILT_HERE = {
    "optimizer": "name several in `optimizers:` of the config, each with its `params`",
    "lr_scheduler": "name it in the config, beside its optimizer",
    "trainer": "there is only one, this one",
}


def build_section(experiment: Experiment, kind: str, section: Any) -> Any:
    """Build a section for a trainer; see `BaseTrainer.build`.

    Raises:
        ConfigError: the kind or name is unknown, or the arguments do not fit.
    """
    if str(kind) not in _SCHEMAS:
        text = (
            NOT_BUILT_HERE.get(str(kind))
            or f"use {', '.join(_SCHEMAS)}{nearest(str(kind), _SCHEMAS)}"
        )
        raise ConfigError([Problem("", f"self.build({kind!r}, ...): unknown kind; {text}")])
    keys = _place_of(experiment, section)
    is_placed = bool(keys)
    keys = keys or (f"self.build({kind!r})",)
    try:
        section = _normal_form(experiment, kind, section, keys, is_placed)
        section = experiment.references.resolve(kind, keys, section)
        check_section(experiment.config, kind, keys, section)
        if note := override_note(kind, section["type"]):
            log.info(note)
        with experiment.config.placed():
            return _build(experiment, kind, section, keys)
    except ConfigError as error:
        if is_placed:
            raise
        problems = [Problem("", problem.message) for problem in error.problems]
        raise ConfigError(problems) from error


def _place_of(experiment: Experiment, section: Any) -> Keys:
    """Return the keys of a section in the config; () if it is not part of it."""
    if not isinstance(section, Mapping):
        return ()
    copies = (keys for copied, keys in experiment.references.copies if copied is section)
    return next(copies, None) or _find(section, dict(experiment.config), ()) or ()


def _find(section: Section, within: Any, keys: Keys) -> Keys | None:
    if within is section:
        return keys
    items: Any = within.items() if isinstance(within, Mapping) else ()
    items = enumerate(within) if isinstance(within, list) else items
    found = (_find(section, item, (*keys, key)) for key, item in items)
    return next((each for each in found if each is not None), None)


def _normal_form(
    experiment: Experiment, kind: str, section: Any, keys: Keys, is_placed: bool
) -> Section:
    """Return a section with all defaults and with its references marked."""
    problems: list[Problem] = []
    node: Node = as_tree(section)
    if not is_placed:
        node = look_up(node, experiment.config, problems)
    checked = _SCHEMAS[kind].check(node, keys, Validation(problems)).plain()
    if problems:
        where = experiment.config.where(*keys)
        raise ConfigError([Problem(where, problem.message) for problem in problems])
    form: Section = checked
    return form


def _build(experiment: Experiment, kind: str, section: Section, keys: Keys) -> Any:
    builders: dict[str, Callable[..., Any]] = {
        "loss": _build_loss,
        "metric": _build_metric,
        "model": _build_model,
        "data_loader": _build_loader,
    }
    where = ".".join(map(str, keys))
    if kind in builders:
        return builders[kind](experiment, section, where)
    return build(kind, section, where=where)


def _build_loss(experiment: Experiment, section: Section, where: str) -> WeightedLoss:
    taken, name = experiment.all_losses, section["name"]
    names = [name, *(f"{name}_{number}" for number in range(2, len(taken) + 2))]
    section = {**section, "name": next(each for each in names if each not in taken)}
    seed = derive_seed(experiment.config["seed"], "loss", section["name"])
    with isolated_random_state(seed):
        made = _with_places(lambda: build_losses([section], experiment.length), {"loss.0": where})
    (loss,) = made.values()
    built: WeightedLoss = loss.to(experiment.device)
    experiment.own_losses[built.name] = built
    return built


def _build_metric(experiment: Experiment, section: Section, where: str) -> Any:
    has_outputs = compares_outputs(experiment.config)

    def make() -> Any:
        return build_metrics([section], losses=experiment.losses, has_outputs=has_outputs)

    (metric,) = _with_places(make, {"metrics.0": where}).values()
    return metric


def _with_places(make: Callable[[], Any], places: Mapping[str, str]) -> Any:
    """Call a function that builds a list of sections; name the right places in its errors."""
    try:
        return make()
    except ConfigError as error:
        problems = []
        for where, message in error.problems:
            for old, new in places.items():
                where = new + where.removeprefix(old) if where.startswith(old) else where
            problems.append(Problem(where, message))
        raise ConfigError(problems) from error


def _build_model(experiment: Experiment, section: Section, where: str) -> nn.Module:
    model: nn.Module = build("model", section, where=where)
    try:
        check_model(model)
        for prefix, weights in sections_with_weights(section):
            load_pretrained(model.get_submodule(prefix), weights)
    except (ValueError, CheckpointError, NoMatch, AttributeError) as error:
        raise ConfigError([Problem(where, str(error))]) from error
    if any(is_lazy(each) for each in (*model.parameters(), *model.buffers())):
        text = (
            "its lazy layers have no shape, and no batch of its own to infer them: set their sizes"
        )
        raise ConfigError([Problem(where, text)])
    model.to(experiment.device)
    if mode := experiment.config["memory"]["compile"]:
        notes = compile_networks(model, mode, experiment.device)
        experiment.memory_notes += notes or [f"compiled: {type(model).__name__} of the trainer"]
    return model


def _build_loader(experiment: Experiment, section: Section, where: str) -> Any:
    loader = prepare_loader(experiment.config, build("data_loader", section, where=where), where)
    loader = experiment.shared(loader)
    getattr(loader, "place_on", lambda _: None)(torch.device(experiment.device))
    return loader
