"""Losses of several terms: the values that a loss may return, and how they are named and summed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from base.errors import TrainingError
from base.training.denominators import LossDenominator, mark_denominator

TOTAL = "loss"  # a term of this name is minimised instead of the sum


class LossTerms(dict[str, Any]):
    """The terms that a loss returned, by name: tensors, and numbers that are only logged.

    Args:
        loss: the name of the loss, whose weight applies to its terms.
    """

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.loss = loss


class LoggedNumber(float):
    """A number with the denominator of its mean."""

    counted: LossDenominator | None = None


class Term(NamedTuple):
    """One value of a step's losses.

    Args:
        loss: the name of its loss, whose weight applies.
        is_minimised: whether it is part of the sum; otherwise it is only logged.
        is_named: whether it is logged in addition to the sum, even as its only term.
    """

    value: Any
    loss: str
    is_minimised: bool
    is_named: bool = False


def as_terms(
    name: str, values: Any, scalar: Callable[[Any, str], Tensor], counted: LossDenominator | None
) -> Any:
    """Check the terms that a loss returned; return them in the same form.

    Args:
        scalar: checks and reshapes a tensor, given a description of it for errors.

    Raises:
        TrainingError: a term is not a number, or no term can be minimised.
    """
    is_pair = _is_pair(values)
    if is_pair and TOTAL in values[1]:
        text = f"loss {name!r} returns two totals: (loss, dict), and {TOTAL!r} in the dict"
        raise TrainingError(f"{text}; leave one out")
    found = {TOTAL: values[0], **values[1]} if is_pair else values
    terms = LossTerms(name)
    for key, value in found.items():
        terms[str(key)] = _term(name, str(key), value, scalar, counted)
    if not any(isinstance(value, Tensor) for value in terms.values()):
        what = f"only numbers, {', '.join(terms)}" if terms else "an empty dict"
        raise TrainingError(f"loss {name!r} returns {what}: there is no tensor to minimise")
    if not isinstance(terms.get(TOTAL, torch.empty(0)), Tensor):
        text = f"term {TOTAL!r} of loss {name!r} must be a tensor, not a number without a graph"
        raise TrainingError(text)
    return (terms.pop(TOTAL), terms) if is_pair else terms


def is_of_terms(values: Any) -> bool:
    """Return whether a loss returned a dict of terms, or ``(loss, dict)``."""
    return isinstance(values, Mapping) or _is_pair(values)


def _is_pair(values: Any) -> bool:
    """Return whether it is ``(loss, dict)``, which a trainer may unpack."""
    return isinstance(values, tuple) and len(values) == 2 and isinstance(values[1], Mapping)


def _term(
    name: str,
    key: str,
    value: Any,
    scalar: Callable[[Any, str], Tensor],
    counted: LossDenominator | None,
) -> Any:
    if isinstance(value, Tensor):
        term = mark_denominator(scalar(value, f"term {key!r} of loss {name!r}"), counted)
        term.term_of = name  # type: ignore[attr-defined]
        return term
    if not isinstance(value, Real):
        found = "None" if value is None else f"a {type(value).__name__}"
        text = f"term {key!r} of loss {name!r} must be one number, not {found}"
        raise TrainingError(f"{text}; leave it out")
    number = LoggedNumber(value)
    number.counted = counted
    return number


def flatten_terms(losses: Any, configured: Collection[str]) -> dict[str, Term]:
    """Return all terms of the losses of a step, by the names that are logged.

    The terms of the only configured loss keep their names; those of several losses are named
    ``<loss>/<term>``. If a dict holds ``"loss"``, this value is minimised and the others are only
    logged.

    Args:
        losses: the result of `compute_losses`; a single tensor is minimised.

    Raises:
        TrainingError: two terms have the same name, or the result is not a dict.
    """
    if isinstance(losses, Tensor):
        losses = {TOTAL: losses}
    is_plain = type(losses) is dict and TOTAL not in losses
    if is_plain and all(isinstance(value, Tensor) for value in losses.values()):  # the common case
        return {k: Term(value, getattr(value, "term_of", k), True) for k, value in losses.items()}
    if isinstance(losses, LossTerms):
        losses = {losses.loss: losses}
    elif _is_pair(losses):
        losses = {losses[1].loss if isinstance(losses[1], LossTerms) else TOTAL: losses}
    refuse_unnamed(losses, "what `compute_losses` returns")
    groups = {name: _group(value) for name, value in losses.items()}
    n_groups = sum(group is not None for group in groups.values())
    has_total = TOTAL in groups and groups[TOTAL] is None
    found: dict[str, Term] = {}
    for name, value in losses.items():
        group = groups[name]
        if group is None:
            is_total = has_total and name == TOTAL
            loss = "" if is_total else getattr(value, "term_of", name)
            is_minimised = isinstance(value, Tensor) and (is_total or not has_total)
            named = {name: Term(value, loss, is_minimised)}
        else:
            is_lone = n_groups == 1 and len(configured) <= 1
            named = _named(name, group, is_lone, has_total)
        for path, term in named.items():
            if path in found:
                text = f"two losses, or terms of losses, have the name {path!r}: rename one of them"
                raise TrainingError(text)
            found[path] = term
    return found


def refuse_unnamed(values: Any, what: str) -> None:
    """Check that the values of a step have names.

    Raises:
        TrainingError: they are not a dict.
    """
    if not isinstance(values, Mapping):
        found = "None" if values is None else f"a {type(values).__name__}"
        text = f"{what} must be a dict of values by name, not {found}"
        raise TrainingError(f"{text}: end the method with, for example, `return {{'loss': loss}}`")


def _group(value: Any) -> Mapping[str, Any] | None:
    """Return the terms of a loss with several; None for any other."""
    if _is_pair(value):
        return {TOTAL: value[0], **value[1]}
    return value if isinstance(value, Mapping) else None


def _named(
    name: str, group: Mapping[str, Any], is_lone: bool, is_logged_only: bool
) -> dict[str, Term]:
    """Return the terms of one loss, by the names that are logged.

    Args:
        is_lone: whether the terms keep their names.
        is_logged_only: whether the trainer minimises a total of its own.
    """
    has_total = TOTAL in group
    terms = {}
    for key, value in group.items():
        is_total = key == TOTAL
        is_minimised = isinstance(value, Tensor) and (is_total or not has_total)
        path = key if is_lone and not is_total else f"{name}/{key}"
        loss = getattr(value, "term_of", name)
        terms[path] = Term(value, loss, is_minimised and not is_logged_only, not is_total)
    return terms


def refuse_many(name: str, value: Any) -> None:
    """Raise TrainingError if a loss to minimise is not a single number."""
    if isinstance(value, Tensor) and value.numel() != 1:
        text = f"loss {name!r} must return a tensor of one number, not shape {tuple(value.shape)}"
        raise TrainingError(
            f"{text}: reduce it, for example with `.mean()`, or remove `reduction: none`"
        )
