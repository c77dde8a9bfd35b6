"""The denominator of each loss: the number that its mean divides by.

Means of parts can be combined only with their denominators: the mean over a data set is
``sum(mean * denominator) / sum(denominator)``. The number of samples is not enough. With class
weights torch divides by the sum of the targets' weights, with ``ignore_index`` by the number of
targets that are not ignored, and a loss over pixels by the number of pixels.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import _reduction

SUM_REDUCTION = "sum"
"""Stands for the denominator of a loss that is a sum: its parts are added, not averaged."""

LEGACY = {"size_average", "reduce"}
"""Earlier arguments of torch's losses in place of ``reduction``."""

Denominator = Tensor | float | str
"""A number or tensor, or `SUM_REDUCTION`."""

Rule = Callable[..., Denominator | None]
Function = TypeVar("Function", bound=Callable[..., Any])


class LossDenominator(NamedTuple):
    """The denominator of the loss ``name``.

    Args:
        n_elements: the number of entries of the target.
        address: the memory address of the target, which its views share.
        is_of_call: whether it depends on arguments of the call, which are not known in advance.
    """

    name: str
    number: Any  # a Denominator
    n_elements: int
    address: int = 0
    is_of_call: bool = False

    def plus(self, other: LossDenominator) -> LossDenominator:
        """Return the denominator of the loss over both parts."""
        number = SUM_REDUCTION if self.number is SUM_REDUCTION else self.number + other.number
        return LossDenominator(self.name, number, self.n_elements + other.n_elements)

    def is_for(self, other: LossDenominator, is_strict: bool) -> bool:
        """Return whether ``other`` has the same target: the same size and, if strict, address."""
        is_there = self.address == other.address or not is_strict
        return self.n_elements == other.n_elements and is_there and not other.is_of_call


def mark_denominator(value: Tensor, counted: LossDenominator | None) -> Tensor:
    """Attach its denominator to a loss; results of operations on the loss do not keep it."""
    if counted is not None:
        value.counted = counted  # type: ignore[attr-defined]
    return value


def denominator_of(value: Any) -> LossDenominator | None:
    """Return the denominator attached to a loss; None for a mean over samples."""
    return getattr(value, "counted", None)


def mark_sample_losses(value: Tensor, losses: Tensor | None) -> Tensor:
    """Attach the loss of each sample, (sample,), without its graph."""
    if losses is not None:
        value.samples = losses.detach()  # type: ignore[attr-defined]
    return value


def sample_losses_of(value: Any) -> Tensor | None:
    """Return the losses of samples attached to a loss; for a sum of losses, their sum."""
    terms = terms_of(value)
    if terms is None:
        return getattr(value, "samples", None)
    found = [each for term in terms.values() if (each := sample_losses_of(term)) is not None]
    return sum(found[1:], start=found[0]) if found else None


def mark_terms(value: Tensor, terms: Mapping[str, Tensor]) -> Tensor:
    """Attach its terms, each with its own denominator, to a sum of losses."""
    value.terms = terms  # type: ignore[attr-defined]
    return value


def terms_of(value: Any) -> Mapping[str, Tensor] | None:
    """Return the terms of a sum of losses, by name; None for any other value."""
    return getattr(value, "terms", None)


def denominator_rule(function: Any) -> Rule | None:
    """Return the function that computes the denominator of a loss; None for a mean over samples.

    A loss may declare it as ``denominator(target)``, with further parameters named as those of the
    loss. The rules of torch's losses are built in. Any other loss counts as a mean over the samples
    of a batch, or as a sum if its ``reduction`` is ``sum``. A rule takes output and target by
    position and all other arguments of the loss by name; it returns None if it needs the output.
    """
    settings: dict[str, Any] = {}
    if isinstance(function, functools.partial):
        function, settings = function.func, function.keywords
    own = getattr(function, "denominator", None)
    if callable(own):
        return OwnRule(own, settings or reduction_held(function))
    rule = None
    if isinstance(function, FunctionType | BuiltinFunctionType):
        rule = RULES.get(function)
    elif isinstance(function, nn.Module):
        kinds = [kind for kind in RULES if isinstance(kind, type) and _computes_as(function, kind)]
        rule, settings = (RULES[kinds[0]] if kinds else None), vars(function) | function._buffers
    if rule is None:
        return _rule_of_reduction(function, settings)
    kept = {key: settings[key] for key in ("weight", "ignore_index") if key in settings}
    return functools.partial(rule, reduction=_reduction_of(settings), **kept)


def torch_rule(function: Any) -> Rule | None:
    """Return the rule of a loss of torch, from the table below; None for any other loss."""
    if isinstance(function, FunctionType | BuiltinFunctionType):
        return _RULES.get(function)
    kinds = (kind for kind in _RULES if isinstance(kind, type) and _computes_as(function, kind))
    return _RULES[kind] if (kind := next(kinds, None)) else None


def is_unreduced(function: Any, given: Mapping[str, Any]) -> bool:
    """Return whether a loss has ``reduction="none"``, in its call or in the config."""
    return reduction_of(function, given) == "none"


def reduction_of(function: Any, given: Mapping[str, Any]) -> str:
    """Return the reduction of a loss: from its call, else the config, else the default."""
    settings: Mapping[str, Any] = {}
    if isinstance(function, functools.partial):
        settings = function.keywords
    elif isinstance(function, nn.Module):
        settings = {"reduction": getattr(function, "reduction", "mean")}
    return _reduction_of({**settings, **given})


def is_sum(function: Any, given: Mapping[str, Any]) -> bool:
    """Return whether a loss is a sum, as its arguments or its default say."""
    called: Any = function.forward if isinstance(function, nn.Module) else function
    parameter = _after_first(called).get("reduction")
    default = {} if parameter is None else {"reduction": parameter.default}
    return reduction_of(function, {**default, **given}) == SUM_REDUCTION


def changes_rule(rule: Rule, given: Mapping[str, Any]) -> bool:
    """Return whether arguments of a call change the denominator that the config gives."""
    if not given:
        return False
    if isinstance(rule, OwnRule):
        return any(name in given for name in (*rule.takes, "reduction"))
    known = {"weight": None, "ignore_index": -100, **getattr(rule, "keywords", {})}
    if _reduction_of({**known, **given}) != known["reduction"]:
        return True
    return any(
        given[name] is not known[name] if isinstance(given[name], Tensor)
        else given[name] != known[name]
        for name in ("weight", "ignore_index") if name in given
    )  # fmt: skip


class OwnRule:
    """The rule that a loss declares; it takes the target and arguments of the loss by name.

    Args:
        settings: the arguments of the loss in the config.
    """

    def __init__(self, own: Callable[..., Any], settings: Mapping[str, Any]) -> None:
        self.own, self.settings = own, settings
        self.takes = _after_first(own)
        self.needed = [n for n, each in self.takes.items() if each.default is Parameter.empty]

    def __call__(self, output: Any, target: Any, /, **given: Any) -> Any:
        more = {**self.settings, **given}
        if "reduction" not in self.takes and more.get("reduction") == SUM_REDUCTION:
            return SUM_REDUCTION
        if any(name not in more for name in self.needed):
            return None  # known only in the step
        return self.own(target, **{name: more[name] for name in self.takes if name in more})


def _rule_of_reduction(function: Any, settings: Mapping[str, Any]) -> Rule | None:
    """Return the rule of a loss of the project that has a ``reduction``, which may be a sum."""
    called: Any = function.forward if isinstance(function, nn.Module) else function
    parameter = _after_first(called).get("reduction")
    default = {} if parameter is None else {"reduction": parameter.default}
    known = {**default, **settings, **reduction_held(function)}
    if "reduction" not in known:
        return None
    return functools.partial(_or_sum(_samples), reduction=known["reduction"])


def reduction_held(function: Any) -> dict[str, str]:
    """Return the attribute ``reduction`` of a module, if it has one as torch's losses do."""
    reduction = getattr(function, "reduction", None) if isinstance(function, nn.Module) else None
    return {"reduction": reduction} if isinstance(reduction, str) else {}


def _after_first(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the parameters after the first that accept keyword arguments."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a built-in function without a signature
        return {}
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return {each.name: each for each in parameters[1:] if each.kind in by_name}


def same_denominator_as(other: Any) -> Callable[[Function], Function]:
    """Declare that a loss has the denominator of another one::

    @same_denominator_as(F.cross_entropy)
    def smooth_cross_entropy(output, target, smoothing=0.1): ...
    """

    def declare(function: Function) -> Function:
        rule = denominator_rule(other)
        if rule is not None:
            function.denominator = functools.partial(rule, None)  # type: ignore[attr-defined]
        return function

    return declare


def _computes_as(module: nn.Module, kind: type) -> bool:
    """Return whether a module is of a class of torch, or a subclass with the same ``forward``."""
    return isinstance(module, kind) and type(module).forward is kind.forward  # type: ignore[attr-defined]


def _or_sum(rule: Rule) -> Rule:
    """Extend a rule to ``reduction="sum"``, in the config or in the call."""

    @functools.wraps(rule)
    def count(*args: Any, **settings: Any) -> Any:
        is_plain = settings.get("reduction") == "mean" and not LEGACY & settings.keys()
        if not is_plain and _reduction_of(settings) == SUM_REDUCTION:
            return SUM_REDUCTION
        return rule(*args, **settings)

    return count


def without_reduction(rule: Rule | None) -> Rule | None:
    """Return a rule that need not look at ``reduction``, which no call gives: for each step."""
    if not isinstance(rule, functools.partial) or rule.keywords.get("reduction") != "mean":
        return rule
    count = getattr(rule.func, "__wrapped__", rule.func)
    return functools.partial(count, *rule.args, **rule.keywords)


def _reduction_of(settings: Mapping[str, Any]) -> str:
    old = settings.get("size_average"), settings.get("reduce")
    if old != (None, None):
        return str(_reduction.legacy_get_string(*old, emit_warning=False))
    return str(settings.get("reduction", "mean"))


# --- The rules: each takes the arguments of a loss, those after the target by name ----------------


def _samples(output: Any, target: Any, /, **_: Any) -> None:
    """Return None: the loss is a mean over samples."""


def _elements(output: Any, target: Tensor, /, **_: Any) -> Denominator:
    return target.numel()


def _weighted_elements(
    output: Any, target: Tensor, /, weight: Tensor | None = None, **_: Any
) -> Denominator:
    return target.numel() if weight is None else weight.sum()


def _elements_or_samples(output: Any, target: Tensor, /, reduction: str, **_: Any) -> Denominator:
    return len(target) if reduction == "batchmean" else target.numel()


def _classes(
    output: Any,
    target: Tensor,
    /,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
    **_: Any,
) -> Denominator:
    if target.is_floating_point():  # the probability of each class
        return target.numel() // target.shape[1 if target.dim() > 1 else 0]
    if ignore_index is None:
        return target.numel() if weight is None else weight[target].sum()
    is_counted = target != ignore_index
    if weight is None:
        return is_counted.count_nonzero()
    weights = weight.to(target.device)[target.where(is_counted, 0).long()]
    return (weights * is_counted).sum()


def _classes_of_hidden(
    hidden: Any, linear: Any, /, target: Tensor | None = None, **settings: Any
) -> Denominator | None:
    return None if target is None else _classes(None, target, **settings)


def _rows(output: Any, target: Tensor, /, **_: Any) -> Denominator:
    return target.numel() // target.shape[-1]


def _output_elements(output: Any, target: Tensor, /, **_: Any) -> Denominator | None:
    return None if output is None else output.numel()


def _output_rows(output: Any, target: Tensor, /, **_: Any) -> Denominator | None:
    return None if output is None else output.numel() // output.shape[-1]


def _sequences(
    output: Any, target: Any, /, target_lengths: Any = None, **_: Any
) -> Denominator | None:
    if target_lengths is None:
        return None
    return target_lengths.numel() if isinstance(target_lengths, Tensor) else len(target_lengths)


_RULES: dict[Any, Rule] = {
    **dict.fromkeys((F.l1_loss, nn.L1Loss, F.mse_loss, nn.MSELoss), _weighted_elements),
    **dict.fromkeys((F.smooth_l1_loss, nn.SmoothL1Loss), _elements),
    **dict.fromkeys((F.huber_loss, nn.HuberLoss), _elements),  # divides by all, also with weights
    **dict.fromkeys((F.cross_entropy, nn.CrossEntropyLoss, F.nll_loss, nn.NLLLoss), _classes),
    **dict.fromkeys((F.binary_cross_entropy, nn.BCELoss), _elements),
    **dict.fromkeys((F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss), _elements),
    **dict.fromkeys((F.kl_div, nn.KLDivLoss), _elements_or_samples),
    **dict.fromkeys((F.poisson_nll_loss, nn.PoissonNLLLoss), _elements),
    **dict.fromkeys((F.gaussian_nll_loss, nn.GaussianNLLLoss), _elements),
    **dict.fromkeys((F.hinge_embedding_loss, nn.HingeEmbeddingLoss), _elements),
    **dict.fromkeys((F.soft_margin_loss, nn.SoftMarginLoss), _elements),
    **dict.fromkeys((F.multi_margin_loss, nn.MultiMarginLoss), _elements),
    **dict.fromkeys((F.multilabel_margin_loss, nn.MultiLabelMarginLoss), _rows),
    **dict.fromkeys((F.multilabel_soft_margin_loss, nn.MultiLabelSoftMarginLoss), _rows),
    **dict.fromkeys((F.margin_ranking_loss, nn.MarginRankingLoss), _output_elements),
    **dict.fromkeys((F.cosine_embedding_loss, nn.CosineEmbeddingLoss), _output_rows),
    **dict.fromkeys((F.triplet_margin_loss, nn.TripletMarginLoss), _output_rows),
    **dict.fromkeys(
        (F.triplet_margin_with_distance_loss, nn.TripletMarginWithDistanceLoss), _output_rows
    ),
    **dict.fromkeys((F.ctc_loss, nn.CTCLoss), _sequences),
}
if hasattr(F, "linear_cross_entropy"):  # not in torch 2.10
    _RULES[F.linear_cross_entropy] = _classes_of_hidden
ROW_RULES = (_output_elements, _output_rows, _sequences)
"""Rules that need more than the target; the mean over the rows of a sample counts once."""

RULES = {function: _or_sum(rule) for function, rule in _RULES.items()}
"""The rules of functions and classes of torch.nn."""
