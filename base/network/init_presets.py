"""Presets of ``init:``: one word sets the weights and biases of all layers of a kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from base.errors import KindlingError, listed, nearest
from base.network.layers import NORMS
from base.network.patterns import owner_and_leaf, whole_of

Section = Mapping[str, Any]

_ZEROS: Section = {"type": "zeros_"}
_ONES: Section = {"type": "ones_"}
_WEIGHTS: dict[str, Section] = {
    # He et al. 2015 (arXiv:1502.01852), equation 10: a normal of variance 2 / fan_in keeps the
    # scale of activations, also where the widths differ and in grouped convolutions.
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
    """A preset sets no parameter, or the model's own ``init_weights`` fails."""

    exit_code = 2


def preset_schemes(model: nn.Module, preset: str, names: Sequence[str]) -> dict[str, Section]:
    """Return the scheme of a preset, ``{type, args}``, for each of these parameters that it sets.

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
    """Call the model's own ``init_weights()``; return which of ``names`` it set.

    If the model has no such method, those of its direct children are called. Parameters of other
    names are restored.

    Raises:
        PresetError: there is no such method, it fails, or it sets none of these parameters.
    """
    parts = [("", model), *model.named_children()]
    able = [(name, part) for name, part in parts if hasattr(part, "init_weights")]
    if not able:
        text = f"{type(model).__name__} and its children have no method `init_weights(self)`"
        raise PresetError(f"{text}; write one, or choose another preset, such as `init: kaiming`")

    before = {name: (p, p._version, p.detach().clone()) for name, p in model.named_parameters()}
    for _, part in able[:1] if able[0][1] is model else able:
        try:
            part.init_weights()  # type: ignore[operator]  # its own error is reported
        except Exception as error:
            text = f"init_weights() of {type(part).__name__} fails: {type(error).__name__}: {error}"
            raise PresetError(text) from error

    is_set = []
    for name, parameter in model.named_parameters():
        old, version, value = before.get(name, (None, 0, parameter))
        # A write through `.data` does not change the version; writing an equal value does.
        if parameter is old and parameter._version == version and parameter.equal(value):
            continue
        if name in names:
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
    chosen = [name for name in found if name in names]
    if not chosen:
        raise PresetError(
            f"match excludes the last norms of the residual blocks: {listed(found, 4)}"
        )
    return dict.fromkeys(chosen, _ZEROS)


def _last_norm(block: nn.Module) -> str | None:
    declared = getattr(block, "last_norm", None)
    if isinstance(declared, str):  # a layer may have this name too
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
