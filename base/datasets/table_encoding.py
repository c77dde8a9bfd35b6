"""Encodes the columns of a table as tensors: category codes, fill values and statistics.

They are computed from the training samples, stored with the run and applied to all other data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from base.data.batch import map_tensors
from base.datasets.labels import sort_labels
from base.datasets.table_columns import Categories, Rule
from base.errors import DataError, listed
from base.system.resources import free_memory

ENCODINGS = ("one_hot", "codes")
BLOCK = 1024  # columns to compute at once
MOST_NAMED = 24  # columns in an error message


class Columns(NamedTuple):
    """The columns of a table before encoding and filling in."""

    source: str
    lines: list[int]  # first line of each row
    inputs: list[str]  # column names, in order
    targets: list[str]
    numbers: dict[str, Tensor]  # float64 (row,), NaN if missing
    categories: dict[str, Categories]
    rules: dict[str, Rule]
    labels: Tensor  # targets in their original unit: float (row, target), or class numbers
    task: str
    encode: str


@dataclass(frozen=True)
class TableEncoding:
    """Encodes the columns of a table as tensors."""

    inputs: list[str]
    targets: list[str]
    encode: str
    categories: dict[str, list[str]]
    """The values of each categorical column in the order of their codes, 1, 2, ..."""
    untrained: dict[str, list[str]]
    """The values that no training sample has. Like unknown values, they have code 0."""
    fills: dict[str, float] = field(default_factory=dict)
    """The value that replaces missing numbers."""
    mean: dict[str, float] = field(default_factory=dict)
    std: dict[str, float] = field(default_factory=dict)
    target_mean: list[float] = field(default_factory=list)
    target_std: list[float] = field(default_factory=list)

    @classmethod
    def from_record(cls, record: Any) -> TableEncoding:
        """Construct an encoding from the result of `as_record`.

        Raises:
            DataError: it is not the record of a table.
        """
        names = {each.name for each in fields(cls)}
        if not isinstance(record, Mapping) or set(record) != names:
            raise DataError(
                f"the record of a table has {', '.join(sorted(names))}; found {record!r}"
            )
        return cls(**record)

    def as_record(self) -> dict[str, Any]:
        """Return the encoding as plain data."""
        return asdict(self)

    @property
    def input_names(self) -> list[str]:
        """The name of each input feature: a column, or ``column=value`` for a category."""
        names = []
        for name in self.inputs:
            if name not in self.categories:
                names.append(name)
            elif self.encode == "one_hot":
                names += [f"{name}={value or '(missing)'}" for value in self.categories[name]]
        return names

    @property
    def code_counts(self) -> dict[str, int]:
        """The number of codes of each categorical column, including the code of unknown values."""
        return {
            name: len(self.categories[name]) + 1 for name in self.inputs if name in self.categories
        }

    def apply(self, columns: Columns) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return inputs float32 (row, number), codes int64 (row, category) or None, and targets.

        Raises:
            DataError: the columns differ, or a missing value has no fill value.
        """
        self._check(columns)
        are_codes, n_codes = self.encode == "codes", self.code_counts
        codes, numbers, n_inputs = [], {}, 0
        one_hot = []  # the row and the input of each 1
        for name in self.inputs:
            if name not in self.categories:
                numbers[name] = n_inputs
                n_inputs += 1
                continue
            code = self._codes(columns.categories[name], name)
            if are_codes:
                codes.append(code)
                continue
            rows = code.nonzero()[:, 0]  # unknown values, code 0, are all zeros
            one_hot.append(torch.stack([rows, code[rows] + (n_inputs - 1)]))
            n_inputs += n_codes[name] - 1
        targets = columns.labels
        inputs = _zeros(len(targets), n_inputs, columns.source)
        for names in _blocks(list(numbers)):
            inputs[:, [numbers[name] for name in names]] = self._numbers(columns, names).float().T
        if one_hot:
            inputs[tuple(torch.cat(one_hot, dim=1))] = 1.0
        if self.target_mean:
            mean, std = torch.tensor([self.target_mean, self.target_std], dtype=torch.float64)
            targets = ((targets.double() - mean) / std).float()
        return inputs, torch.stack(codes, dim=1) if are_codes else None, targets

    def unknown_text(self, columns: Columns) -> str:
        """Return a message with the unknown categories of a table and their rows, or ""."""
        texts = []
        for name, known in self.categories.items():
            found = columns.categories[name]
            known_values = set(known)
            places = [n for n, value in enumerate(found.values) if value not in known_values]
            if places:
                n_rows = int(torch.isin(found.numbers, torch.tensor(places)).sum())
                shown = ", ".join(repr(found.values[n]) for n in places[:5])
                more = ", ..." if len(places) > 5 else ""
                texts.append(f"{n_rows} of {len(found.numbers)} rows have {name} {shown}{more}")
        return f"{'; '.join(texts)}, unknown in training" if texts else ""

    def _numbers(self, columns: Columns, names: Sequence[str]) -> Tensor:
        """Return filled and standardized columns, float64 (column, row)."""
        values = torch.stack([columns.numbers[name] for name in names])
        fills = torch.tensor([self.fills.get(name, math.nan) for name in names], dtype=values.dtype)
        values = torch.where(values.isnan(), fills[:, None], values)
        if values.isnan().any():
            place, row = values.isnan().nonzero()[0].tolist()
            text = "missing value, for which the training data define no fill value"
            where = f"{columns.source}:{columns.lines[row]}:{names[place]}"
            raise DataError(
                f"{where}: {text}; set `missing` for this column of the training data too"
            )
        if self.mean:
            scales = [(self.mean.get(name, 0.0), self.std.get(name, 1.0)) for name in names]
            mean, std = torch.tensor(scales, dtype=values.dtype).T[:, :, None]
            values = (values - mean) / std
        return values

    def _codes(self, found: Categories, name: str) -> Tensor:
        untrained = set(self.untrained.get(name, ()))
        numbered = enumerate(self.categories[name], start=1)
        trained = {value: code for code, value in numbered if value not in untrained}
        return torch.tensor([trained.get(value, 0) for value in found.values])[found.numbers]

    def _check(self, columns: Columns) -> None:
        """Check that a table has the columns and kinds of this encoding."""
        for what, ours, theirs in (
            ("input columns", self.inputs, columns.inputs),
            ("categorical columns", self.categories, columns.categories),
            ("targets", self.targets, columns.targets),
        ):
            are_ours, are_theirs = set(ours), set(theirs)
            lacking = [name for name in ours if name not in are_theirs]
            more = [name for name in theirs if name not in are_ours]
            if lacking or more:
                parts = [f"without {listed(lacking, MOST_NAMED)}"] if lacking else []
                parts += [f"with {listed(more, MOST_NAMED)}"] if more else []
                text = f"the {what} differ from those of the training data: {' and '.join(parts)}"
                raise DataError(f"{columns.source}: {text}")
        for what, one, other in (
            ("encode", self.encode, columns.encode), ("target", self.targets, columns.targets),
        ):  # fmt: skip
            if one != other:
                text = f"{what} is {other}, but {one} for the training data"
                raise DataError(f"{columns.source}: {text}; use the same for both")


Part = tuple[Columns, Tensor]  # a table and its training rows


def fit_encoding(
    parts: Sequence[Part], inputs: bool = False, targets: bool = False
) -> TableEncoding:
    """Compute the encoding of one or several tables with equal columns.

    Categories come from all rows, so that their number does not depend on the split. Everything
    else comes from the training rows: fill values, statistics, and which values have a code.

    Args:
        inputs, targets: whether to standardize numeric columns and regression targets.
    """
    first = parts[0][0]
    categories, untrained, fills = {}, {}, {}
    means: dict[str, float] = {}
    stds: dict[str, float] = {}
    for name in first.inputs:
        if name in first.categories:
            found = [(columns.categories[name], rows) for columns, rows in parts]
            values = {value for each, _ in found for value in each.values}
            seen = [(each.values, each.numbers[rows].unique().tolist()) for each, rows in found]
            trained = {known[n] for known, numbers in seen for n in numbers}
            categories[name] = sort_labels(values)
            if values - trained:
                untrained[name] = sort_labels(values - trained)
    for names in _blocks([name for name in first.inputs if name not in first.categories]):
        columns_of = [(torch.stack([c.numbers[name] for name in names]), rows) for c, rows in parts]
        block = torch.cat([numbers[:, rows] for numbers, rows in columns_of], dim=1)
        for numbers, name in zip(block, names, strict=True):
            fill = _fill(numbers, first.rules[name], f"{first.source}: {name}")
            if fill is not None:
                fills[name] = fill
                numbers.nan_to_num_(fill)
        if inputs:
            mean, std = means_and_stds(block)
            means |= zip(names, mean, strict=True)
            stds |= zip(names, std, strict=True)
    statistics = []
    if targets and first.task == "regression":
        labels = torch.cat([columns.labels[rows] for columns, rows in parts])
        statistics = [*zip(*means_and_stds(labels.double().T.contiguous()), strict=True)]
    return TableEncoding(
        first.inputs, first.targets, first.encode, categories, untrained, fills, means, stds,
        [mean for mean, _ in statistics], [std for _, std in statistics],
    )  # fmt: skip


def means_and_stds(rows: Tensor) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each row; 1 as deviation of a constant.

    The mean is subtracted before squaring, which keeps small differences of large numbers exact.

    Args:
        rows: float64 (row, value), contiguous.
    """
    mean = _mean_of_each(rows)
    std = _mean_of_each((rows - mean[:, None]).square()).sqrt()
    are_constant = rows.amin(dim=1) == rows.amax(dim=1)
    mean = torch.where(are_constant, rows[:, 0], mean)
    return mean.tolist(), std.masked_fill(are_constant, 1.0).tolist()


def _mean_of_each(rows: Tensor) -> Tensor:
    """Return the mean of each row. `mean(dim=1)` would round long rows in another way."""
    return torch.stack([row.mean() for row in rows])


def _blocks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield some columns at a time: few calls of torch, and little memory."""
    for first in range(0, len(names), BLOCK):
        yield names[first : first + BLOCK]


def _zeros(n_rows: int, n_inputs: int, source: str) -> Tensor:
    """Return zeros, float32 (row, input).

    Raises:
        DataError: they do not fit in memory, as for a category with a value in almost each row.
    """
    n_bytes = 4 * n_rows * n_inputs
    if n_bytes > free_memory():
        text = f"{n_rows:,} rows of {n_inputs:,} inputs need {n_bytes / 1e9:,.1f} GB of memory"
        raise DataError(f"{source}: {text}: for categories with many values, `encode: codes`")
    return torch.zeros(n_rows, n_inputs)


def _fill(numbers: Tensor, rule: Rule, where: str) -> float | None:
    if not isinstance(rule, str):
        return float(rule)
    if rule not in ("mean", "median"):
        return None
    present = numbers[~numbers.isnan()]
    if not len(present):
        raise DataError(
            f"{where}: no training sample has a value, so there is no {rule} to fill in"
        )
    return float(present.mean() if rule == "mean" else np.median(present.numpy()))


class TargetScale:
    """The mean and standard deviation of standardized targets, to convert predictions back."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.n_targets = len(mean)
        one = slice(None) if self.n_targets > 1 else 0  # a single target allows any shape
        self.mean, self.std = torch.tensor(mean)[one], torch.tensor(std)[one]

    def undo(self, values: Tensor) -> Tensor:
        """Return predictions or targets in the original unit of the targets, float32.

        Raises:
            DataError: the last dimension does not match the number of targets.
        """
        fits = values.dim() > 1 and values.shape[-1] == self.n_targets
        if self.n_targets > 1 and not fits:
            text = f"{self.n_targets} standardised targets, but predictions {tuple(values.shape)}"
            raise DataError(
                f"{text}: let `predict` give one for each target, or `normalize: inputs`"
            )
        if self.mean.device != values.device:
            self.mean, self.std = self.mean.to(values.device), self.std.to(values.device)
        return values.float() * self.std + self.mean

    def undo_all(self, predictions: Any, targets: Tensor) -> Any:
        """Convert predictions to the targets' unit: a tensor, or tensors of the targets' shape."""
        if isinstance(predictions, Tensor):
            return self.undo(predictions) if predictions.is_floating_point() else predictions
        shapes = [targets.shape, targets.shape[:1]][: 1 + (self.n_targets == 1)]
        return map_tensors(predictions, lambda x: self.undo(x) if x.shape in shapes else x)
