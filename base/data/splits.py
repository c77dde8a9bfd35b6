"""Splits samples into training and validation: by a fraction, a number or folds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base.errors import DataError, nearest
from base.system.seeding import derive_generator

KEYS = ("valid", "folds", "fold", "stratify")


def divide(split: Any, n_samples: int, seed: int, targets: Any = None) -> tuple[Tensor, Tensor]:
    """Return the sorted indices of the training samples and of the validation samples.

    Args:
        split: the fraction (rounded down) or number of validation samples; or a mapping with
            ``valid`` (the same), or with ``folds`` and ``fold`` (from 0), and optionally
            ``stratify: true`` to keep the class proportions in both parts.
        targets: the class of each sample, (sample,), for ``stratify``.

    Raises:
        DataError: a part would be empty, or the mapping is not valid.
    """
    rules = _rules(split)
    is_plain = "folds" not in rules and not rules.get("stratify")
    if is_plain and not count_held_out(rules.get("valid"), n_samples):
        return torch.arange(n_samples), torch.empty(0, dtype=torch.int64)
    order = permutation(n_samples, derive_generator(seed, "split"))
    if rules.get("stratify"):
        classes = _classes(targets, n_samples)
        order = order.index_select(0, stable_order(classes.index_select(0, order)))
    if "folds" in rules:
        chosen = order[_fold(rules, n_samples)]
    else:
        n_valid = count_held_out(rules.get("valid"), n_samples)
        if rules.get("stratify"):
            counts = torch.bincount(classes)
            chosen = order[_stratified(n_valid, counts[counts > 0])]
        else:
            chosen = order[:n_valid]
    validates = torch.zeros(n_samples, dtype=torch.bool)
    validates[chosen.long()] = True
    return _places(~validates), _places(validates)


def _places(is_chosen: Tensor) -> Tensor:
    """Return the places of True, int64; NumPy's function takes less than half of `nonzero`."""
    return torch.from_numpy(np.flatnonzero(is_chosen.numpy()))


class Division:
    """The result of `divide`, computed when first used: a loader gets its seed after it is built.

    Raises:
        DataError: as `divide`, at once.
    """

    def __init__(self, split: Any, n_samples: int, seed: int, targets: Any = None) -> None:
        self._arguments = split, n_samples, seed, targets
        rules = _rules(split)
        if rules.get("stratify"):
            _classes(targets, n_samples)
        if "folds" in rules:
            self.n_train = n_samples - int(_fold(rules, n_samples).sum())
        else:
            self.n_train = n_samples - count_held_out(rules.get("valid"), n_samples)

    @property
    def train(self) -> Tensor:
        """The sorted indices of the training samples."""
        return self._parts[0]

    @property
    def valid(self) -> Tensor:
        """The sorted indices of the validation samples."""
        return self._parts[1]

    @cached_property
    def _parts(self) -> tuple[Tensor, Tensor]:
        return divide(*self._arguments)


def permutation(n: int, generator: torch.Generator) -> Tensor:
    """Return a random order of ``n`` samples, int32 if it holds them: the same numbers faster."""
    dtype = torch.int32 if n < 2**31 else torch.int64
    return torch.randperm(n, generator=generator, dtype=dtype)


def stable_order(numbers: Tensor) -> Tensor:
    """Return the places of numbers in ascending order, those of equal ones in their own, int64.

    Args:
        numbers: (n,), of at least 0.
    """
    return _sorted_with_places(numbers)[1]


def _sorted_with_places(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return numbers of at least 0 in ascending order, and the place of each."""
    n = len(numbers)
    if n == 0 or n >= 2**31 or int(numbers.max()) >= 2**31:
        return tuple(torch.sort(numbers.long(), stable=True))  # type: ignore[return-value]
    # Number and place in one integer: NumPy sorts these in a third of the time of a stable sort.
    packed = (numbers.numpy().astype(np.int64) << 32) | np.arange(n)
    packed.sort()
    return torch.from_numpy(packed >> 32), torch.from_numpy(packed & (2**32 - 1))


def count_held_out(split: float | None, n_samples: int) -> int:
    """Return the number of validation samples for a fraction (rounded down) or a number."""
    if not isinstance(split, int | float | None):
        text = "a share or number of samples, or {folds: 5, fold: 0}"
        raise DataError(f"split: {text}, not {split!r}")
    if not split:
        return 0
    is_count = isinstance(split, int) and not isinstance(split, bool)
    n_valid = 0
    if is_count or 0 < split < 1:
        n_valid = int(split if is_count else round(n_samples * split, 6))
    if not 0 < n_valid < n_samples:
        raise DataError(
            f"holding out {split} of {n_samples} samples leaves one side empty; "
            "give a fraction below 1 or a whole number of samples"
        )
    return n_valid


def sample_weights(sampling: Any, targets: Any, n_samples: int) -> Tensor | None:
    """Return the relative sampling weight of each sample; None: each is drawn once per epoch.

    Args:
        sampling: ``None``; ``"balanced"``, which draws all classes equally often; or a list of
            weights, one per class or one per sample.
        targets: the class of each sample, (sample,).

    Raises:
        DataError: the weights are not valid, or their number does not match.
    """
    if sampling is None:
        return None
    if isinstance(sampling, str):
        if sampling != "balanced":
            near = nearest(sampling, ["balanced"])
            raise DataError(f"sampling: 'balanced' or a list of weights, not {sampling!r}{near}")
        classes = _classes(targets, n_samples)
        return 1 / torch.bincount(classes).clamp_(min=1)[classes].to(torch.float64)
    try:
        weights = torch.as_tensor(sampling, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"sampling: expected a list of numbers, found {sampling!r}") from error
    if weights.dim() != 1 or not weights.isfinite().all() or (weights < 0).any():
        raise DataError("sampling: weights are a flat list of finite numbers of at least 0")
    if len(weights) != n_samples:
        classes = _classes(targets, n_samples)
        n_classes = int(classes.max()) + 1
        if len(weights) != n_classes:
            text = f"sampling: {len(weights)} weights, for {n_classes} classes"
            raise DataError(f"{text} and {n_samples} samples")
        weights = weights[classes]
    if not weights.sum() > 0:
        raise DataError("sampling: all weights are 0")
    return weights


def draw_weighted(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw ``n`` positions with replacement, in proportion to their weights."""
    sums = weights.cumsum(0)
    points = torch.rand(n, dtype=torch.float64, generator=generator) * sums[-1]
    # Roughly sorted, neighbours are found near each other in memory, which is 4 times faster.
    order = stable_order((points * (2**20 / sums[-1])).to(torch.int32))
    points = points.index_select(0, order)
    found = torch.searchsorted(sums, points, right=True).clamp_(max=len(weights) - 1)
    return torch.empty_like(order).scatter_(0, order, found)


def number_repeats(indices: Tensor) -> Tensor:
    """Return how often each index occurred before: ``[5, 3, 5, 5]`` gives 0, 0, 1, 2."""
    ordered, order = _sorted_with_places(indices)
    is_new = torch.ones(len(indices), dtype=torch.bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    places = torch.arange(len(indices))
    repeats = places - torch.where(is_new, places, 0).cummax(0).values
    return torch.empty_like(order).scatter_(0, order, repeats)


def _rules(split: Any) -> dict[str, Any]:
    if not isinstance(split, Mapping):
        return {"valid": split}
    for key in split:
        if key not in KEYS:
            raise DataError(f"split.{key}: unknown key{nearest(str(key), KEYS)}")
    if ("folds" in split) == ("valid" in split) or ("fold" in split) != ("folds" in split):
        raise DataError(f"split: give {{valid: 0.1}} or {{folds: 5, fold: 0}}, not {dict(split)}")
    if not isinstance(split.get("stratify", False), bool):
        raise DataError(f"split.stratify: true or false, not {split['stratify']!r}")
    return dict(split)


def _fold(rules: Mapping[str, Any], n_samples: int) -> Tensor:
    n_folds, fold = rules["folds"], rules["fold"]
    if not isinstance(n_folds, int) or not 2 <= n_folds <= n_samples:
        text = f"split.folds: a whole number from 2 to the {n_samples} samples, not {n_folds!r}"
        raise DataError(text)
    if isinstance(fold, bool) or not isinstance(fold, int) or not 0 <= fold < n_folds:
        raise DataError(f"split.fold: a number from 0 to {n_folds - 1}, not {fold!r}")
    return torch.arange(n_samples) % n_folds == fold


def _stratified(n_valid: int, counts: Tensor) -> Tensor:
    """Distribute ``n_valid`` over the classes in proportion, by the largest remainders."""
    exact = counts.to(torch.float64) * n_valid / counts.sum()
    taken = exact.floor().to(torch.int64)
    left = n_valid - int(taken.sum())
    taken[torch.sort(exact - taken, descending=True, stable=True).indices[:left]] += 1
    parts = [torch.arange(n) < k for n, k in zip(counts.tolist(), taken.tolist(), strict=True)]
    return torch.cat(parts)


def _classes(targets: Any, n_samples: int) -> Tensor:
    """Return the class of each sample as int64."""
    if targets is None:
        text = "stratify and balanced sampling need the class of each sample"
        raise DataError(f"{text}: the data set has no `targets`")
    try:
        classes = torch.as_tensor(targets)
    except (TypeError, ValueError) as error:  # class names, or lists of different lengths
        text = f"its `targets` are not numbers ({error}): give each sample the number of its class"
        raise DataError(f"stratify and balanced sampling: {text}") from error
    if classes.dim() != 1 or len(classes) != n_samples or classes.is_floating_point():
        text = f"found {tuple(classes.shape)} {classes.dtype} for {n_samples} samples"
        raise DataError(f"stratify and balanced sampling need one class number per sample; {text}")
    if (classes < 0).any():
        raise DataError("stratify and balanced sampling need class numbers of at least 0")
    return classes.to(torch.int64)
