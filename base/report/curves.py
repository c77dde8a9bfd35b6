"""The columns of metrics.csv as charts: one for each metric, its phases as lines."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from base.report.drawings import Point, line_chart, wants_log
from base.report.markup import Raw, figure, tag

PHASES = ("train", "valid", "test")
OF_TIME = ("seconds", "samples_per_second", "memory_mb", "time", "wait")
NOT_VALUES = ("epoch", "step", *OF_TIME)
MEANS = ("mean", "macro")
MOST_PARTS = 100  # classes in a chart; their lines are grey beside those of the means
KINDS = ("loss", "score", "value", "rate")
"""What is drawn on shared axes, in the order of the charts."""

Lines = dict[str, list[Point]]


@dataclass
class Panel:
    """One chart."""

    title: str
    kind: str
    lines: Lines = field(default_factory=dict)
    origins: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The phase and the part, such as a class, in the column of a line; "" where it has none."""

    @property
    def values(self) -> list[float]:
        """All values of its lines."""
        return [y for line in self.lines.values() for _, y in line]

    def part(self, label: str) -> str:
        """Return the class, or another part, of a line; "" of one that shows a whole metric."""
        return self.origins.get(label, ("", ""))[1]

    def is_of_part(self, label: str) -> bool:
        """Return whether a line shows a part of the metric."""
        return self.part(label) not in ("", *MEANS)

    def with_kind(self) -> Panel:
        """Make it a chart of scores if all its values are shares."""
        if self.kind == "value" and all(0 <= value <= 1 for value in self.values):
            self.kind = "score"
        return self


def panels_of(rows: Sequence[Mapping[str, Any]], losses: Collection[str] = ()) -> list[Panel]:
    """Return the charts of a run: losses, scores from 0 to 1, rates, other values.

    Args:
        rows: the rows of metrics.csv as numbers.
        losses: the names of the losses in the config.
    """
    panels: dict[str, Panel] = {}
    for column in dict.fromkeys(name for row in rows for name in row):
        if column.partition("/")[0] in NOT_VALUES:
            continue
        line = points_of(rows, column)
        if not line:
            continue
        first, _, rest = column.partition("/")
        phase, metric = (first, rest) if first in PHASES and rest else ("", column)
        title, _, part = metric.partition("/")
        panel = panels.setdefault(title, Panel(title, kind_of(title, losses)))
        label = " ".join(filter(None, (phase, part))) or title
        panel.lines[label], panel.origins[label] = line, (phase, part)
    for panel in panels.values():
        panel.with_kind()
        _put_means_first(panel)
        if panel.kind == "rate":
            _merge(panel)
        _limit(panel)
    return sorted(panels.values(), key=lambda panel: KINDS.index(panel.kind))


def points_of(rows: Sequence[Mapping[str, Any]], column: str) -> list[Point]:
    """Return the finite values of a column over the epochs."""
    found = []
    for number, row in enumerate(rows, start=1):
        epoch, value = row.get("epoch", number), row.get(column)
        if isinstance(epoch, int | float) and isinstance(value, int | float):
            found.append((float(epoch), float(value)))
    return [point for point in found if all(map(math.isfinite, point))]


def draw(panels: Sequence[Panel], best_epoch: float | None = None) -> list[Raw]:
    """Return the charts; those of one kind share the range of their axes.

    Of losses and rates it is logarithmic where the values spread over orders of magnitude.
    """
    drawn = []
    shared = {kind: _range(kind, panels) for kind in KINDS}
    for panel in panels:
        limits, is_log = shared[panel.kind]
        means = [label for label in panel.lines if panel.part(label) in MEANS]
        chart = line_chart(panel.title, panel.lines, best_epoch, limits, is_log, strong=means)
        drawn.append(figure(chart, ""))
    return drawn


def grid(drawn: Sequence[Raw]) -> Raw:
    """Return charts beside each other, three in a row; four where the last would stand alone."""
    is_alone = len(drawn) > 1 and len(drawn) % 3 == 1
    return tag("div", *drawn, class_="grid fours" if is_alone else "grid")


def time_panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Return the charts of seconds, throughput and memory of the epochs."""
    parts = dict.fromkeys(name for row in rows for name in row if name.startswith("time/"))
    groups: list[tuple[str, list[tuple[str, str]]]] = [
        (
            "seconds of an epoch",
            [("training", "seconds"), *((name.partition("/")[2], name) for name in parts)],
        ),
        ("samples per second", [("samples per second", "samples_per_second")]),
        ("peak memory, MB", [("memory", "memory_mb")]),
    ]
    panels = []
    for title, columns in groups:
        lines = {label: points_of(rows, column) for label, column in columns}
        panel = Panel(title, "value", {label: line for label, line in lines.items() if line})
        panels += [panel] if panel.lines else []
    return panels


def _range(kind: str, panels: Sequence[Panel]) -> tuple[tuple[float, float] | None, bool]:
    """Return the range of the axes of one kind, and whether they are logarithmic."""
    values = [value for panel in panels if panel.kind == kind for value in panel.values]
    if kind == "value" or not values:
        return None, False
    is_log = kind in ("loss", "rate") and wants_log(values)
    low, high = min(values), max(values)
    if low == high:
        return None, is_log
    if is_log:
        return (low / 1.15, high * 1.15), True
    margin = 0.04 * (high - low)
    if kind == "score":
        return (max(0.0, low - margin), min(1.0, high + margin)), False
    return (low - margin if low < 0 else max(0.0, low - margin), high + margin), False


def kind_of(title: str, losses: Collection[str]) -> str:
    """Return the kind of a chart by its title; that of a score depends on its values."""
    if title in losses or "loss" in title.lower():
        return "loss"
    return "rate" if title.partition("/")[0] in ("lr", "weight") else "value"


def _put_means_first(panel: Panel) -> None:
    """Put the means of several numbers, and the lines of validation, before their parts."""

    def place(label: str) -> tuple[bool, bool]:
        is_of_part = panel.is_of_part(label)
        return is_of_part, is_of_part and panel.origins[label][0] == "train"

    panel.lines = {label: panel.lines[label] for label in sorted(panel.lines, key=place)}


def _merge(panel: Panel) -> None:
    """Draw equal lines once, such as the learning rates of two groups."""
    labels: dict[tuple[Point, ...], list[str]] = {}
    for label, line in panel.lines.items():
        labels.setdefault(tuple(line), []).append(label)
    panel.lines = {", ".join(each): list(line) for line, each in labels.items()}
    panel.origins |= {label: ("", label) for label in panel.lines if label not in panel.origins}


def _limit(panel: Panel) -> None:
    """Leave out all but the `MOST_PARTS` classes with the lowest last values in validation.

    A page with the curves of ten thousand classes opens slowly.
    """
    last: dict[str, dict[str, float]] = {}  # part -> phase -> value
    for label in filter(panel.is_of_part, panel.lines):
        phase, part = panel.origins[label]
        last.setdefault(part, {})[phase] = panel.lines[label][-1][1]
    if len(last) <= MOST_PARTS:
        return
    by = next(p for p in ("valid", "train", "test", "") if any(p in each for each in last.values()))
    order = sorted(last, key=lambda part: (by not in last[part], last[part].get(by, 0.0)))
    left_out = set(order[MOST_PARTS:])
    panel.lines = {k: line for k, line in panel.lines.items() if panel.part(k) not in left_out}
    panel.title += f", the lowest {MOST_PARTS} of {len(last)}" + (f" ({by})" if by else "")
