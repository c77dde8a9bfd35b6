"""Parameter groups of optimizers: rules by pattern, layer decay, and ownership."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import LBFGS, Optimizer

from base.errors import ConfigError, Problem, listed
from base.names.construction import build
from base.names.registry import find
from base.names.signatures import needed_arguments
from base.network.freezing import last_layers
from base.network.layer_depth import layer_order
from base.network.patterns import NoMatch, ParameterNames
from base.training.optimizer_memory import choose_fused, note_loaded_kernel

Section = Mapping[str, Any]
Options = dict[str, dict[str, Any]]

BIAS = re.compile(r"(^|_)bias(_|$)")  # bias, bias_hh_l0, in_proj_bias, relative_position_bias_table
NORM = re.compile(r"Norm(\dd)?$")  # class names such as LayerNorm, BatchNorm2d, RMSNorm


def parameter_groups(
    model: nn.Module, section: Section, where: str = "optimizer", later: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Group the parameters of an optimizer's section by equal options.

    Later rules take precedence, key by key; a rule with ``freeze: true`` excludes its parameters
    from training. Any torch optimizer accepts the result; ``params`` holds pairs (name, parameter).

    Args:
        later: the names of parameters that are frozen now but trained later.

    Raises:
        ConfigError: a rule matches no parameter, or none of ``params``; or `layer_decay` cannot
            assign a parameter to a layer.
    """
    named = dict(model.named_parameters())
    options = _options(model, section, where)
    frozen = [name for name, chosen in options.items() if chosen.pop("freeze", False)]
    if both := [name for name in frozen if name in later]:
        text = f"{listed(both)}: frozen permanently here and temporarily by `freeze:`; remove one"
        raise ConfigError([Problem(f"{where}.param_groups", text)])
    for name in frozen:
        named[name].requires_grad_(False)
    trained = {n: options[n] for n in options if named[n].requires_grad or n in later}
    if not trained:
        text = "no parameter is left to train: all are frozen, to the last layers "
        raise ConfigError([Problem(where, text + listed(last_layers(options)))])
    if section["layer_decay"] is not None:
        _decay_layers(model, trained, section, where)

    groups: Options = {}
    for name, chosen in trained.items():
        group = groups.setdefault(repr(sorted(chosen.items())), {"params": [], **chosen})
        group["params"].append((name, named[name]))
    return list(groups.values())


def no_decay(model: nn.Module) -> list[str]:
    """Return the names of the parameters that weight decay should not apply to.

    These are biases, all parameters of norm layers, and others with fewer than two dimensions:
    gains, slopes (the documentation of ``PReLU`` advises against decay), single variables.
    """
    chosen: set[int] = set()
    for module in model.modules():
        is_norm = any(NORM.search(cls.__name__) for cls in type(module).__mro__)
        for name, parameter in module.named_parameters(recurse=False):
            if is_norm or BIAS.search(name) or parameter.ndim < 2:
                chosen.add(id(parameter))
    return [name for name, parameter in model.named_parameters() if id(parameter) in chosen]


def check_ownership(
    model: nn.Module, optimizers: Mapping[str, Optimizer], later: Collection[str] = ()
) -> None:
    """Check that each trainable parameter belongs to exactly one optimizer.

    Raises:
        ConfigError: names the parameters that belong to none or to several.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    owner: dict[int, str] = {}
    claimed: dict[tuple[str, str], list[str]] = {}
    for optimizer_name, optimizer in optimizers.items():
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            other = owner.setdefault(id(parameter), optimizer_name)
            if other != optimizer_name:
                claimed.setdefault((optimizer_name, other), []).append(names[id(parameter)])
    problems = [
        Problem(
            f"optimizers.{name}.params",
            f"what {other!r} claims too: {listed(parameters)}; narrow one pattern",
        )
        for (name, other), parameters in claimed.items()
    ]
    orphans = [
        name
        for name, parameter in model.named_parameters()
        if (parameter.requires_grad or name in later) and id(parameter) not in owner
    ]
    if orphans:
        text = f"no optimizer trains {listed(orphans)}; widen a params pattern"
        problems.append(Problem("optimizers", f"{text}, or freeze them with `freeze:`"))
    if problems:
        raise ConfigError(problems)


def _options(model: nn.Module, section: Section, where: str) -> Options:
    """Return the options of each parameter that the section matches."""
    own = _options_of_type(model, section)
    parameters = ParameterNames(model)
    names = _match(parameters, section["params"], f"{where}.params")
    options: Options = {name: dict(own.get(name, {})) for name in names}
    problems: list[Problem] = []
    for number, rule in enumerate(section["param_groups"]):
        try:
            place = f"{where}.param_groups.{number}"
            changes = _read_rule(model, parameters, rule, options, place)
        except ConfigError as error:
            problems += error.problems
            continue
        for name, change in changes.items():
            options[name].update(change)
    if problems:
        raise ConfigError(problems)
    return options


def _options_of_type(model: nn.Module, section: Section) -> Mapping[str, Mapping[str, Any]]:
    """Return the options that an optimizer itself gives to parameters, by ``group_options``.

    A class of a project may have such a function of the model and the section's ``args``.
    """
    own = getattr(find("optimizer", section["type"]), "group_options", None)
    return own(model, section["args"]) if own else {}


def _read_rule(
    model: nn.Module,
    parameters: ParameterNames,
    rule: Section,
    claimed: Collection[str],
    where: str,
) -> Options:
    """Return the options that one rule and its preset set, by parameter."""
    matched = _match(parameters, rule["match"], f"{where}.match")
    own = {key: value for key, value in rule.items() if key not in ("match", "preset")}
    changes = {name: dict(own) for name in matched if name in claimed}
    if not changes:
        text = f"{rule['match']!r} matches only parameters that this optimizer's `params` leaves"
        raise ConfigError([Problem(f"{where}.match", f"{text} out")])
    if "preset" in rule:  # the only preset is no_decay
        spared = [name for name in no_decay(model) if name in changes]
        if not spared:
            text = f"no bias, norm layer or vector is among {listed(list(changes))}; nothing to do"
            raise ConfigError([Problem(f"{where}.preset", text)])
        for name in spared:
            changes[name]["weight_decay"] = 0
    return changes


def _decay_layers(model: nn.Module, options: Options, section: Section, where: str) -> None:
    """Multiply the learning rate of layer i of n by ``layer_decay ** (n - 1 - i)``.

    See "discriminative fine-tuning" (Howard and Ruder, 2018) and, in this form, Clark et al., 2020.
    """
    where = f"{where}.layer_decay"
    try:
        layers = layer_order(model, options).layers
    except NoMatch as error:
        raise ConfigError([Problem(where, str(error))]) from error
    places: dict[str, list[int]] = {name: [] for name in options}
    for number, layer in enumerate(layers):
        for name in set(layer) & options.keys():
            places[name].append(number)
    faults = [f"{name} in {at or 'none'}" for name, at in places.items() if len(at) != 1]
    if faults:
        text = f"{type(model).__name__}.layer_order must have each parameter in one layer"
        raise ConfigError([Problem(where, f"{text}, not {listed(faults)}")])
    for name, chosen in options.items():
        rate = chosen.get("lr", section["args"].get("lr"))
        if not isinstance(rate, int | float):
            text = f"it multiplies the rate, and {name} has lr {rate!r}; set `args: {{lr: 1e-3}}`"
            raise ConfigError([Problem(where, text)])
        chosen["lr"] = rate * section["layer_decay"] ** (len(layers) - 1 - places[name][0])


def _match(parameters: ParameterNames, pattern: Any, where: str) -> list[str]:
    try:
        return parameters.matching(pattern)
    except NoMatch as error:
        raise ConfigError([Problem(where, str(error))]) from error


def build_optimizer(
    model: nn.Module,
    section: Section,
    where: str = "optimizer",
    later: Collection[str] = (),
    fused: bool | str = False,
) -> Optimizer:
    """Build the optimizer of a config section.

    Args:
        later: the names of parameters that are frozen now but trained later.
        fused: whether to use torch's fused implementation; ``auto`` uses it if there is one.
    """
    groups = parameter_groups(model, section, where, later)
    for group in groups:
        _check_group(section, group, where)
    if fused == "auto" and any(getattr(module, "sparse", False) for module in model.modules()):
        fused = False  # fused optimizers do not support sparse gradients

    def construct(section: Section) -> Optimizer:
        return _construct(section, [dict(group) for group in groups], where)

    optimizer = choose_fused(construct, section, fused, where)
    optimizer.register_load_state_dict_post_hook(note_loaded_kernel)
    return optimizer


def _check_group(section: Section, group: Section, where: str) -> None:
    """Check the options of a group by building an optimizer with them as ``args``."""
    own = [key for key in group if key != "params"]
    if own:
        args = {**section["args"], **{key: group[key] for key in own}}
        place = f"{where}.param_groups ({listed([name for name, _ in group['params']])})"
        taken = _construct({**section, "args": args}, group["params"], place).defaults
        if ignored := [key for key in own if key not in taken]:
            text = f"{section['type']} takes {listed(ignored)} only for all parameters, in `args`"
            raise ConfigError([Problem(place, text)])


def _construct(section: Section, params: Any, where: str) -> Optimizer:
    try:
        optimizer: Optimizer = build("optimizer", section, where=where, params=params)
    except (RuntimeError, IndexError) as error:  # fused and foreach together; `betas: [0.9]`
        text = f"{section['type']} cannot be built: {type(error).__name__}: {error}"
        raise ConfigError([Problem(where, text)]) from error
    needed = [] if isinstance(optimizer, LBFGS) else needed_arguments(optimizer.step)
    if needed:
        text = f"the step of {section['type']} requires {', '.join(needed)}, but is called"
        text += " without arguments: only LBFGS computes the losses again"
        raise ConfigError([Problem(where, text)])
    return optimizer


def parameter_names(optimizer: Optimizer) -> list[str]:
    """Return the names of an optimizer's parameters."""
    return [name for group in optimizer.param_groups for name in group["param_names"]]


def highest_rate(
    rates: Sequence[float],
    groups: Sequence[Mapping[str, Any]],
    is_trained: Callable[[nn.Parameter], bool],
) -> float | None:
    """Return the highest rate of the groups with a trained parameter; of all if there is none."""
    trained = [
        rate
        for rate, group in zip(rates, groups, strict=False)  # a resumed run may have other groups
        if any(map(is_trained, group["params"]))
    ]
    return max(trained or rates, default=None)


def learning_rates(optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
    """Return the learning rate of each group: ``lr``, or ``lr/<optimizer>/<group>`` of several."""
    rates = {}
    for name, optimizer in optimizers.items():
        groups = optimizer.param_groups
        of_optimizer = f"lr/{name}" if len(optimizers) > 1 else "lr"
        if len(groups) == 1:
            rates[of_optimizer] = float(groups[0]["lr"])
            continue
        for number, group in enumerate(groups):
            rates[f"{of_optimizer}/{number}"] = float(group["lr"])
    return rates
