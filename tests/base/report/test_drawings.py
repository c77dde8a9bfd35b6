"""Charts: values at their places, round numbers on the axes, no error for odd values."""

from __future__ import annotations

import math
import re
from itertools import combinations

import pytest

from base.report.curves import Panel, draw, grid, panels_of, time_panels
from base.report.drawings import (
    BOTTOM,
    HEIGHT,
    MOST_LINES,
    MOST_VERTICES,
    TOP,
    Scale,
    line_chart,
    thinned,
    wants_log,
)
from base.report.markup import STYLE


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 17), (1e-7, 2e-7), (0.5, 1e9)])
@pytest.mark.parametrize("is_log", [False, True])
def test_an_axis_has_a_few_numbers_in_its_range(low: float, high: float, is_log: bool) -> None:
    if is_log and low <= 0:
        return
    scale = Scale(low, high, 0, 100, is_log)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 7
    assert all(low * 0.99 <= tick <= high * 1.01 or low <= tick <= high for tick in ticks)
    assert [scale(tick) for tick in ticks] == sorted(scale(tick) for tick in ticks)
    assert (scale(low), scale(high)) == (0, 100)


def test_points_lie_where_their_values_say() -> None:
    chart = line_chart("x", {"a": [(1, 0.0), (2, 1.0)]}, limits=(0.0, 1.0))
    ys = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', chart)]
    assert ys == [HEIGHT - BOTTOM, TOP]


@pytest.mark.parametrize("length", [MOST_VERTICES, MOST_VERTICES + 1, 20_000, 54_321])
def test_a_long_line_keeps_its_ends_and_its_extremes(length: int) -> None:
    line = [(float(n), float(n * 7919 % 101)) for n in range(length)]
    line[length // 3] = (float(length // 3), 5e4)
    line[length // 2] = (float(length // 2), -5e4)
    kept = thinned(line)
    assert MOST_VERTICES / 2 < len(kept) <= MOST_VERTICES
    assert {line[0], line[-1], line[length // 3], line[length // 2]} <= set(kept)
    assert kept == sorted(set(kept))


@pytest.mark.parametrize("line", [[(1, 5.0)], [(1, 5.0), (2, 5.0)], [(1, 0.0), (2, 0.0)], []])
def test_a_line_of_one_value_is_no_error(line: list[tuple[float, float]]) -> None:
    chart = line_chart("x", {"a": line})
    assert "nan" not in chart
    assert bool(chart) == bool(line)


def test_a_log_scale_is_for_positive_values_over_orders() -> None:
    assert wants_log([1e-4, 1.0])
    assert not wants_log([0.0, 1.0])
    assert not wants_log([0.5, 1.0])
    assert not wants_log([])


def test_metrics_of_one_kind_share_their_axes() -> None:
    rows = [
        {"epoch": 1, "train/loss": 2.0, "valid/aux": 8.0, "valid/accuracy": 0.2, "valid/f1": 0.9},
        {"epoch": 2, "train/loss": 1.0, "valid/aux": 4.0, "valid/accuracy": 0.4, "valid/f1": 1.0},
    ]
    panels = panels_of(rows, losses=["aux"])
    kinds = {panel.title: panel.kind for panel in panels}
    assert kinds == {"loss": "loss", "aux": "loss", "accuracy": "score", "f1": "score"}
    axes = [re.findall(r'text-anchor="end">([^<]*)<', chart) for chart in draw(panels)]
    assert axes[0] == axes[1]
    assert axes[2] == axes[3]
    assert axes[0] != axes[2]


def test_equal_rates_are_one_line_and_means_come_first() -> None:
    row = {"epoch": 1, "lr/0": 0.1, "lr/1": 0.1, "lr/2": 0.2}
    row |= {"valid/recall/cat": 0.1, "valid/recall/mean": 0.2, "train/recall/cat": 0.3}
    panels = {panel.title: panel for panel in panels_of([row, {**row, "epoch": 2}])}
    assert list(panels["lr"].lines) == ["0, 1", "2"]
    assert list(panels["recall"].lines) == ["valid mean", "valid cat", "train cat"]


def test_of_many_parts_those_lowest_in_validation_keep_all_their_lines() -> None:
    values = {f"a part {k}": k for k in range(150)}
    row = {f"valid/recall/{name}": 2.0 + k for name, k in values.items()}
    row |= {f"train/recall/{name}": 2.0 - k for name, k in values.items()}
    row |= {"valid/recall/mean": 0.5, "train/recall/of training alone": -9.0}
    (panel,) = panels_of([{"epoch": 1, **row}, {"epoch": 2, **row}])
    names = sorted(values, key=values.__getitem__)[:100]
    expected = ["valid mean", *(f"{phase} {n}" for phase in ("valid", "train") for n in names)]
    assert sorted(panel.lines) == sorted(expected)
    assert panel.title == "recall, the lowest 100 of 151 (valid)"


def test_parts_without_a_phase_are_limited_after_equal_ones_are_merged() -> None:
    norms = {f"norm/layer 1 weight {k}": float(k) for k in range(150)}
    rates = {f"lr/{k}": float(k % 3) for k in range(150)}
    row = {"epoch": 1, **norms, **rates, "norm/the mean": -1.0}
    panels = {panel.kind: panel for panel in panels_of([row, {**row, "epoch": 2}])}
    assert panels["value"].title == "norm, the lowest 100 of 151"
    assert list(panels["value"].lines)[-1] == "the mean"
    assert len(panels["value"].lines) == 100
    assert panels["rate"].title == "lr"
    assert [line[0][1] for line in panels["rate"].lines.values()] == [0, 1, 2]
    assert 'class="line strong"' not in draw([panels["value"]])[0]


def test_times_are_not_metrics() -> None:
    row = {"epoch": 1, "seconds": 2.0, "time/data": 1.0, "memory_mb": 5.0, "wait": 0.5}
    assert panels_of([row]) == []
    titles = [(panel.title, list(panel.lines)) for panel in time_panels([row])]
    assert titles == [
        ("seconds of an epoch", ["training", "data"]),
        ("peak memory, MB", ["memory"]),
    ]


def test_a_crowded_chart_has_six_colours_and_thick_means() -> None:
    names = ["mean", *(f"class {n}" for n in range(5))]
    row = {f"{phase}/iou/{name}": 0.5 for phase in ("train", "valid") for name in names}
    (chart,) = draw(panels_of([{"epoch": 1, **row}, {"epoch": 2, **row}]))
    paths = re.findall(r'<path class="(line[^"]*)"(?: style="stroke:([^"]*)")?', chart)
    assert len(paths) == 12
    colors = [color for _, color in paths if color]
    assert len(colors) == len(set(colors)) == 6
    assert [name for name, color in paths if not color] == ["line thin"] * 6
    assert sum(name == "line strong" for name, _ in paths) == 2
    assert chart.count("<span") == 6
    assert "and 6 more, grey" in chart
    assert "<title>train class 4</title>" in chart


def lightness_and_hue(color: str) -> tuple[float, float, float]:
    """Return a colour in CIE Lab (D65), in which distances are about those that people see."""
    channels = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    )
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def test_the_colours_of_lines_are_far_apart() -> None:
    colors = re.findall(r"--c\d: (#\w{6})", STYLE.read_text())
    assert len(colors) == 2 * MOST_LINES  # on a light and on a dark page
    for theme in (colors[:MOST_LINES], colors[MOST_LINES:]):
        points = [lightness_and_hue(color) for color in theme]
        assert min(math.dist(a, b) for a, b in combinations(points, 2)) > 45


@pytest.mark.parametrize("n_charts", range(1, 8))
def test_no_chart_stands_alone_in_the_last_row(n_charts: int) -> None:
    charts = draw([Panel(str(n), "value", {"a": [(1.0, 2.0)]}) for n in range(n_charts)])
    n_columns = 4 if 'class="grid fours"' in grid(charts) else 3
    assert n_charts == 1 or n_charts % n_columns != 1
