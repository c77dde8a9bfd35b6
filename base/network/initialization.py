"""Initializes parameters by the rules of the ``init:`` section."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from base.errors import ConfigError, KindlingError, Problem, listed, nearest
from base.network.layers import NORMS
from base.network.patterns import NoMatch, ParameterNames, owner_and_leaf, whole_of

Section = Mapping[str, Any]

_ZEROS: Section = {"type": "zeros_"}
_ONES: Section = {"type": "ones_"}
_WEIGHTS: dict[str, Section] = {
    # He et al. 2015 (arXiv:1502.01852), equation 10: a normal distribution of variance 2 / fan_in
    # preserves the scale of activations, for different widths and grouped convolutions too.
    "kaiming": {"type": "kaiming_normal_", "args": {"nonlinearity": "relu"}},
    # Glorot and Bengio 2010, equation 16: a uniform one of variance 2 / (fan_in + fan_out).
    "xavier": {"type": "xavier_uniform_"},
    # Saxe et al. 2013 (arXiv:1312.6120).
    "orthogonal": {"type": "orthogonal_"},
    # As in BERT and ViT; the defaults of torch's a and b do not scale with std.
    "truncated_normal": {"type": "trunc_normal_", "args": {"std": 0.02, "a": -0.04, "b": 0.04}},
}
_LAST_NORMS = {
    "torchvision.models.resnet.BasicBlock": "bn2",
    "torchvision.models.resnet.Bottleneck": "bn3",
}


class PresetError(KindlingError):
    """A preset sets no parameter, or the model's ``init_weights`` fails."""

    exit_code = 2


def preset_schemes(model: nn.Module, preset: str, names: Sequence[str]) -> dict[str, Section]:
    """Return a preset's scheme, ``{type, args}``, for each of these parameters that it sets.

    Raises:
        PresetError: the preset sets none of them.
    """
    if preset == "zero_last_norm":
        return _zero_last_norms(model, names)
    chosen = {}
    for name in names:
        owner, _ = owner_and_leaf(name)
        section = _section(preset, model.get_submodule(owner), whole_of(name))
        if section is not None:
            chosen[name] = section
    if not chosen:
        text = f"{preset} sets convolutions, Linear and norm layers, but matched {listed(names, 4)}"
        raise PresetError(f"{text}: give these a rule with a function, such as `weight: normal_`")
    return chosen


def call_init_weights(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Call the model's ``init_weights()`` and return the names in ``names`` that it set.

    If the model has no such method, those of its direct children are called. Other parameters are
    restored.

    Raises:
        PresetError: the method does not exist, fails, or sets none of these parameters.
    """
    parts = [("", model), *model.named_children()]
    able = [(name, part) for name, part in parts if hasattr(part, "init_weights")]
    if not able:
        text = f"{type(model).__name__} and its children have no method `init_weights(self)`"
        raise PresetError(f"{text}; write one, or choose another preset, such as `init: kaiming`")

    before = {name: (p, p._version, p.detach().clone()) for name, p in model.named_parameters()}
    for _, part in able[:1] if able[0][1] is model else able:
        try:
            part.init_weights()  # type: ignore[operator]  # its errors are reported
        except Exception as error:
            text = f"init_weights() of {type(part).__name__} fails: {type(error).__name__}: {error}"
            raise PresetError(text) from error

    is_set, wanted = [], set(names)
    for name, parameter in model.named_parameters():
        old, version, value = before.get(name, (None, 0, parameter))
        # Writing through `.data` does not change the version; writing an equal value does.
        if parameter is old and parameter._version == version and parameter.equal(value):
            continue
        if name in wanted:
            is_set.append(name)
        elif old is not None:
            parameter.detach().copy_(value)
    if not is_set:
        raise PresetError(f"init_weights() sets none of {listed(names, 4)}")
    return is_set


def _section(preset: str, module: nn.Module, leaf: str) -> Section | None:
    is_layer = isinstance(module, _ConvNd | nn.Linear)
    is_norm = isinstance(module, NORMS)
    if preset == "truncated_normal":
        is_layer |= isinstance(module, nn.Embedding | nn.EmbeddingBag)
        if isinstance(module, nn.MultiheadAttention):
            is_layer, leaf = True, leaf.rpartition("_")[2]  # in_proj_weight, q_proj_weight, ...
    if leaf == "weight" and (is_layer or is_norm):
        return _ONES if is_norm else _WEIGHTS[preset]
    return _ZEROS if leaf == "bias" and (is_layer or is_norm) else None


def _zero_last_norms(model: nn.Module, names: Sequence[str]) -> dict[str, Section]:
    """Zero the weight of each residual block's last norm (Goyal et al. 2017, arXiv:1706.02677)."""
    own_names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for where, block in model.named_modules():
        last = _last_norm(block)
        if last is not None:
            found.append(own_names[id(_weight_of(block, last, where))])
    if not found:
        text = 'no residual block declares its last norm; write `last_norm = "norm2"` in the'
        raise PresetError(f"{text} block's class (torchvision's ResNets are known)")
    wanted = set(names)
    chosen = [name for name in found if name in wanted]
    if not chosen:
        raise PresetError(
            f"match excludes the last norms of the residual blocks: {listed(found, 4)}"
        )
    return dict.fromkeys(chosen, _ZEROS)


def _last_norm(block: nn.Module) -> str | None:
    declared = getattr(block, "last_norm", None)
    if isinstance(declared, str):  # a layer may have this name
        return declared
    classes = (f"{each.__module__}.{each.__qualname__}" for each in type(block).__mro__)
    return next((_LAST_NORMS[name] for name in classes if name in _LAST_NORMS), None)


def _weight_of(block: nn.Module, last: str, where: str) -> Tensor:
    known = dict(block.named_modules())
    weight = getattr(known.get(last), "weight", None)
    if not isinstance(weight, nn.Parameter):
        text = f"{where or 'the model'}: {type(block).__name__} has last_norm = {last!r}"
        reason = (
            "which has no weight"
            if last in known
            else f"which it does not have{nearest(last, known)}"
        )
        raise PresetError(f"{text}, {reason}")
    return weight


Rule = Mapping[str, Any]
Keys = tuple[str | int, ...]


class InitRecord(NamedTuple):
    """The scheme of a parameter, ``default`` (torch's) unless a rule set it."""

    name: str
    shape: tuple[int, ...]
    scheme: str


def _dotted(keys: Keys, message: str) -> Problem:
    return Problem(".".join(map(str, keys)), message)


def initialise(
    model: nn.Module,
    rules: Sequence[Rule],
    find: Callable[[str, str], Any],
    problem: Callable[[Keys, str], Problem] = _dotted,
) -> list[InitRecord]:
    """Initialize parameters by rules ``{match, preset, weight, bias, ...}``; return their schemes.

    ``match`` selects parameters by dotted name or by the class of their module. The other keys are
    globs for the last part of a name (``weight``, ``bias``, ``weight_hh_*``). Later rules override
    earlier ones, key by key, and the keys of a rule override its preset. A scheme is
    ``{type, args}``, its name, or a number. If a rule fails, no value changes.

    Args:
        find: returns the function of a kind (``init``) and a name.
        problem: returns a problem for keys of the config and a message.

    Raises:
        ConfigError: lists all rules that cannot be applied.
    """
    state = (*model.named_parameters(), *model.named_buffers()) if rules else ()
    before = [(value, value.detach().clone()) for _, value in state if not is_lazy(value)]
    initializer = _Initializer(model, find, problem)
    with torch.no_grad():
        for number, rule in enumerate(rules):
            initializer.read_rule(number, rule)
        initializer.draw()
        if initializer.problems:
            for value, old in before:
                value.copy_(old)
            raise ConfigError(initializer.problems)
    return [
        InitRecord(name, _shape(parameter), initializer.texts.get(name, "default"))
        for name, parameter in model.named_parameters()
    ]


class _Scheme(NamedTuple):
    keys: Keys  # its keys in the config: init, 1, weight
    text: str
    function: Callable[..., Any]
    args: Mapping[str, Any]


class _Initializer:
    """The state of the rules read so far: pending schemes, texts of applied ones, problems."""

    def __init__(
        self,
        model: nn.Module,
        find: Callable[[str, str], Any],
        problem: Callable[[Keys, str], Problem],
    ) -> None:
        self.model, self.find, self.problem = model, find, problem
        self.parameters = ParameterNames(model)
        self.problems: list[Problem] = []
        self.pending: dict[str, _Scheme] = {}
        self.texts: dict[str, str] = {}

    def read_rule(self, number: int, rule: Rule) -> None:
        try:
            names = self.parameters.matching(rule["match"])
        except NoMatch as error:
            self._note(("init", number, "match"), error)
            return
        if set(rule) == {"match"}:
            self._note(("init", number), "it sets nothing; add `preset: kaiming` or `weight: 0`")
        if "preset" in rule:
            try:
                self._read_preset(rule["preset"], ("init", number), names)
            except PresetError as error:
                self._note(("init", number), error)
        for key in (key for key in rule if key not in ("match", "preset")):
            try:
                scheme = _read_scheme(rule[key], ("init", number, key), self.find)
            except LookupError as error:
                self._note(("init", number, key), error)
                continue
            self._choose(scheme, key, names, is_alone=len(rule) == 2)

    def draw(self) -> None:
        """Apply the pending schemes in the model's order."""
        parameters = {n: p for n, p in self.model.named_parameters() if n in self.pending}
        drawn: set[tuple[str, str]] = set()  # a parametrized weight is drawn once
        # A rule for a part overrides a rule for the whole weight.
        for name in sorted(
            parameters, key=lambda name: not _is_for_whole(name, self.pending[name])
        ):
            scheme, parameter = self.pending[name], parameters[name]
            place = owner_and_leaf(name)[0], whole_of(name)
            module = self.model.get_submodule(place[0])
            try:
                if not _is_for_whole(name, scheme):
                    parameter.copy_(_values(scheme, parameter, module))
                elif place not in drawn:
                    drawn.add(place)
                    _set_whole(module, place[1], scheme)
            except Exception as error:  # a user's scheme may raise anything
                fault = f"{scheme.text} cannot set {name!r} of shape {_shape(parameter)}: {error}"
                self._note(scheme.keys, fault)
            self.texts[name] = scheme.text
        self.pending.clear()

    def _read_preset(self, preset: str, keys: Keys, names: list[str]) -> None:
        if preset == "from_model":
            self.draw()  # the model's method may depend on earlier rules, and later rules on it
            self.texts.update(dict.fromkeys(call_init_weights(self.model, names), preset))
            return
        for name, section in preset_schemes(self.model, preset, names).items():
            self.pending[name] = _read_scheme(section, keys, _find_in_torch)

    def _choose(self, scheme: _Scheme, key: str, names: list[str], is_alone: bool) -> None:
        leaves = {name: owner_and_leaf(name)[1] for name in names}
        hits = [n for n in names if fnmatchcase(leaves[n], key) or fnmatchcase(whole_of(n), key)]
        # A layer may have no bias. Any other missing name is a mistake.
        if not hits and (is_alone or key not in ("weight", "bias")):
            known = sorted(set(leaves.values()))
            near = nearest(key, known) or f"; the names are {', '.join(known)}"
            self._note(scheme.keys, f"no matched parameter has this name{near}")
        self.pending.update(dict.fromkeys(hits, scheme))

    def _note(self, keys: Keys, message: object) -> None:
        self.problems.append(self.problem(keys, str(message)))


def _read_scheme(value: Any, keys: Keys, find: Callable[[str, str], Any]) -> _Scheme:
    if isinstance(value, int | float):
        value = {"type": "constant_", "args": {"val": value}}
    elif isinstance(value, str):
        value = {"type": value}
    name, args = value["type"], value.get("args") or {}
    function = find("init", name)
    text = getattr(function, "__name__", name)
    if args:
        text += f"({', '.join(f'{key}={args[key]}' for key in args)})"
    return _Scheme(keys, text, function, args)


def _find_in_torch(_: str, name: str) -> Any:
    return getattr(nn.init, name)


def _values(scheme: _Scheme, parameter: Tensor, module: nn.Module) -> Tensor:
    """Return the values of a scheme for a parameter, without changing it.

    torch's functions expect weights of shape (out, in, *kernel). The weight of a transposed
    convolution is drawn in this shape and converted, so that its fans are correct. The padding row
    of an embedding stays 0, as in torch. Users' functions receive the parameter unchanged.
    """
    value = parameter.detach().clone()
    is_torchs = scheme.function.__module__ == "torch.nn.init"
    groups = 0
    if is_torchs and isinstance(module, _ConvTransposeNd) and value.ndim > 2:
        groups = module.groups
        value = _exchange_channels(value, groups)
    result = scheme.function(value, **scheme.args)
    value = result if isinstance(result, Tensor) else value
    if groups:
        value = _exchange_channels(value, groups)
    is_embedding = isinstance(module, nn.Embedding | nn.EmbeddingBag)
    if is_torchs and is_embedding and isinstance(module.padding_idx, int):
        value[module.padding_idx] = 0
    if value.shape != parameter.shape:
        raise ValueError(f"it returns shape {tuple(value.shape)}")
    return value


def _is_for_whole(name: str, scheme: _Scheme) -> bool:
    """Return whether the scheme applies to the whole weight of which this parameter is a part."""
    leaf = owner_and_leaf(name)[1]
    return whole_of(name) != leaf and not fnmatchcase(leaf, str(scheme.keys[-1]))


def _set_whole(module: nn.Module, name: str, scheme: _Scheme) -> None:
    """Set a parametrized weight, as with weight_norm. torch computes its parts."""
    value = _values(scheme, getattr(module, name), module)
    setattr(module, name, value)
    if not torch.allclose(getattr(module, name), value, atol=1e-6):
        raise ValueError("its parametrization cannot represent these values")


def _exchange_channels(weight: Tensor, groups: int) -> Tensor:
    """Convert (in, out / groups, *kernel) to (out, in / groups, *kernel), or back."""
    by_group = weight.reshape(groups, -1, *weight.shape[1:])
    return by_group.transpose(1, 2).flatten(0, 1).contiguous()


def _shape(parameter: Tensor) -> tuple[int, ...]:
    return () if is_lazy(parameter) else tuple(parameter.shape)
