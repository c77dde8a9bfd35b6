"""Losses of several terms: what a loss may return, and the names and sums that come of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from base.errors import TrainingError
from base.training.denominators import LossDenominator, mark_denominator

TOTAL = "loss"  # the term that is minimised in place of the sum of all


class LossTerms(dict[str, Any]):
    """What a loss of several terms gave, by their names: tensors, and numbers that are logged only.

    Args:
        loss: the name of the loss, whose weight holds for its terms.
    """

    def __init__(self, loss: str) -> None:
        super().__init__()
        self.loss = loss


class LoggedNumber(float):
    """A number that says what it is a mean over, as a loss does."""

    counted: LossDenominator | None = None


class Term(NamedTuple):
    """One value of a step's losses.

    Args:
        loss: the loss that it is of, whose weight it has.
        is_minimised: it is part of the sum; else it is only logged.
        is_named: it is logged beside the sum, though it may be all of it.
    """

    value: Any
    loss: str
    is_minimised: bool
    is_named: bool = False


def as_terms(
    name: str, values: Any, scalar: Callable[[Any, str], Tensor], counted: LossDenominator | None
) -> Any:
    """Check the terms that a loss gave, in the form that it gave them.

    Args:
        scalar: checks a tensor and takes off its dimensions, given whose it is.

    Raises:
        TrainingError: a term is no number, or there is none to minimise.
    """
    is_pair = _is_pair(values)
    if is_pair and TOTAL in values[1]:
        text = f"loss {name!r} gives two totals: (loss, dict), and {TOTAL!r} in the dict"
        raise TrainingError(f"{text}; leave one out")
    found = {TOTAL: values[0], **values[1]} if is_pair else values
    terms = LossTerms(name)
    for key, value in found.items():
        terms[str(key)] = _term(name, str(key), value, scalar, counted)
    if not any(isinstance(value, Tensor) for value in terms.values()):
        what = f"only numbers, {', '.join(terms)}" if terms else "an empty dict"
        raise TrainingError(f"loss {name!r} gives {what}: there is no tensor to minimise")
    if not isinstance(terms.get(TOTAL, torch.empty(0)), Tensor):
        text = f"term {TOTAL!r} of loss {name!r} is a number without a graph: it must be a tensor"
        raise TrainingError(text)
    return (terms.pop(TOTAL), terms) if is_pair else terms


def is_of_terms(values: Any) -> bool:
    """Tell whether a loss gave a dict of terms, or ``(loss, dict)``."""
    return isinstance(values, Mapping) or _is_pair(values)


def _is_pair(values: Any) -> bool:
    """Tell whether it is ``(loss, dict)``, as a trainer of one's own may unpack it."""
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
    """Return all terms of a step's losses by the names that are logged.

    The terms of a loss keep their names where it is the only one that is configured; they are
    called ``<loss>/<term>`` among several. Where a dict holds ``"loss"``, this is minimised and
    what stands beside it is only logged.

    Args:
        losses: what `compute_losses` returned; one tensor is minimised as it is.

    Raises:
        TrainingError: two have one name.
    """
    if isinstance(losses, Tensor):
        losses = {TOTAL: losses}
    is_plain = type(losses) is dict and TOTAL not in losses
    if is_plain and all(isinstance(value, Tensor) for value in losses.values()):  # as mostly
        return {k: Term(value, getattr(value, "term_of", k), True) for k, value in losses.items()}
    if isinstance(losses, LossTerms):
        losses = {losses.loss: losses}
    elif _is_pair(losses):
        losses = {losses[1].loss if isinstance(losses[1], LossTerms) else TOTAL: losses}
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
                text = f"two losses, or terms of losses, are called {path!r}: rename one of them"
                raise TrainingError(text)
            found[path] = term
    return found


def _group(value: Any) -> Mapping[str, Any] | None:
    """Return the terms of a loss that has several."""
    if _is_pair(value):
        return {TOTAL: value[0], **value[1]}
    return value if isinstance(value, Mapping) else None


def _named(
    name: str, group: Mapping[str, Any], is_lone: bool, is_logged_only: bool
) -> dict[str, Term]:
    """Return the terms of one loss by the names that are logged.

    Args:
        is_lone: they keep the names that they have.
        is_logged_only: the trainer minimises a total of its own.
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
    """Raise TrainingError where a loss to minimise has more than one number."""
    if isinstance(value, Tensor) and value.numel() != 1:
        text = f"loss {name!r} must give one number as a tensor, not shape {tuple(value.shape)}"
        raise TrainingError(f"{text}: reduce it, as by `.mean()`, or leave out `reduction: none`")
