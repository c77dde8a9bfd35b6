"""Line charts, bars and points as SVG, in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from base.report.markup import Raw, escape, shown, tag

Point = tuple[float, float]
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 26, 30
MOST_LINES = 6  # of a chart that have a colour, and a name in the legend; others are grey
MOST_MARKS = 40  # points of a line that are marked, and say their value when pointed at
MOST_VERTICES = 1000  # of a line; longer ones are thinned
LOG_FROM = 20.0
"""The ratio of the largest to the smallest value from which a log scale helps."""


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels, on a linear or a logarithmic axis."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (self._bent(each) for each in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def _bent(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.is_log else value

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values on the axis."""
        if self.is_log:
            return _log_ticks(self.low, self.high, most)
        return _round_values(self.low, self.high, most)


def wants_log(values: Iterable[float]) -> bool:
    """Return whether a log scale helps: all values are positive and spread over orders."""
    known = [value for value in values if math.isfinite(value)]
    return bool(known) and min(known) > 0 and max(known) / min(known) >= LOG_FROM


def line_chart(
    title: str,
    lines: Mapping[str, Sequence[Point]],
    marked: float | None = None,
    limits: tuple[float, float] | None = None,
    is_log: bool = False,
    x_name: str = "epoch",
    strong: Collection[str] = (),
) -> Raw:
    """Return a chart with a legend below it.

    Args:
        lines: by name, in the order of their colours; points are (x, y), finite.
        marked: an x that is marked, such as that of the best epoch.
        limits: the smallest and largest y of the axis; None for those of the lines.
        strong: the lines that are thick, such as means.
    """
    points = [point for line in lines.values() for point in line]
    if not points:
        return Raw("")
    x = _scale([each for each, _ in points], LEFT, WIDTH - RIGHT, None, False, padded=False)
    y = _scale([each for _, each in points], HEIGHT - BOTTOM, TOP, limits, is_log)
    parts = [_frame(title, x, y, x_name, are_x_whole=x_name in ("epoch", "step"))]
    if marked is not None and x.low <= marked <= x.high:
        place = x(marked)
        parts.append(f'<path class="best" d="M{place} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f"<title>dashed: best epoch, {marked:g}</title>")
    for number, (name, line) in reversed(list(enumerate(lines.items()))):
        parts.append(_line(name, line, x, y, number, name in strong))
    return Raw(_svg(parts, title) + _legend(list(lines)))


def histogram(title: str, counts: Sequence[float], edges: Sequence[float], x_name: str) -> Raw:
    """Return bars between edges."""
    x = Scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    y = _scale([0.0, *counts], HEIGHT - BOTTOM, TOP, (0.0, max([1.0, *counts]) * 1.05), False)
    parts = [_frame(title, x, y, x_name)]
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        parts.append(_bar(x(left), x(right), y(count), f"{left:.4g} to {right:.4g}: {count:g}"))
    return _svg(parts, title)


def reliability_diagram(title: str, bins: Mapping[str, Sequence[float]]) -> Raw:
    """Return the accuracy of each bin of confidence, with the diagonal of perfect calibration."""
    counts, n_bins = bins["counts"], len(bins["counts"])
    x, y = Scale(0, 1, LEFT, WIDTH - RIGHT), Scale(0, 1, HEIGHT - BOTTOM, TOP)
    parts = [_frame(title, x, y, "confidence")]
    most = max([1, *counts])
    for number, count in enumerate(counts):
        if count:
            left, right = number / n_bins, (number + 1) / n_bins
            accuracy, mean = bins["accuracy"][number], bins["confidence"][number]
            text = f"confidence {mean:.3f}, accuracy {accuracy:.3f}, {count:,.0f} predictions"
            opacity = 0.25 + 0.75 * math.sqrt(count / most)
            parts.append(_bar(x(left), x(right), y(accuracy), text, opacity))
    parts.append(f'<path class="ideal" d="M{x(0)} {y(0)}L{x(1)} {y(1)}"/>')
    return _svg(parts, title)


def scatter(title: str, points: Sequence[Sequence[float]], x_name: str, y_name: str) -> Raw:
    """Return points in a square range, with the diagonal on which both values are equal."""
    values = [value for point in points for value in point]
    x = _scale(values, LEFT, WIDTH - RIGHT, None, False)
    y = Scale(x.low, x.high, HEIGHT - BOTTOM, TOP)
    parts = [_frame(title, x, y, x_name)]
    parts.append(f'<path class="ideal" d="M{x(x.low)} {y(x.low)}L{x(x.high)} {y(x.high)}"/>')
    parts += [f'<circle class="point" cx="{x(a)}" cy="{y(b)}" r="2.5"/>' for a, b in points]
    parts.append(f'<text x="{LEFT + 4}" y="{TOP + 10}">{escape(y_name)}</text>')
    return _svg(parts, title)


def color_of(number: int) -> str:
    """Return the colour of the n-th line of a chart."""
    return f"var(--c{number % MOST_LINES})"


def thinned(line: Sequence[Point]) -> Sequence[Point]:
    """Return at most `MOST_VERTICES` points: the ends, and the lowest and highest of each part."""
    if len(line) <= MOST_VERTICES:
        return line
    inner, n_parts = range(1, len(line) - 1), MOST_VERTICES // 2 - 1
    kept = {0, len(line) - 1}
    for number in range(n_parts):
        part = inner[len(inner) * number // n_parts : len(inner) * (number + 1) // n_parts]
        kept.update((min(part, key=lambda n: line[n][1]), max(part, key=lambda n: line[n][1])))
    return [line[number] for number in sorted(kept)]


def _scale(
    values: Sequence[float],
    start: float,
    end: float,
    limits: tuple[float, float] | None,
    is_log: bool,
    padded: bool = True,
) -> Scale:
    low, high = limits or (min(values), max(values))
    if low == high:
        margin = abs(low) / 2 or 0.5
        low, high = (low / 2, high * 2) if is_log else (low - margin, high + margin)
    elif limits is None and padded and not is_log:
        low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    return Scale(low, high, start, end, is_log)


def _frame(title: str, x: Scale, y: Scale, x_name: str, are_x_whole: bool = False) -> str:
    """Return the title, the axes and their numbers."""
    parts = [f'<text class="title" x="{LEFT}" y="14">{escape(title)}</text>']
    for value in y.ticks():
        place = y(value)
        parts.append(f'<path class="axis" d="M{LEFT} {place}H{WIDTH - RIGHT}"/>')
        text = escape(_tick(value))
        parts.append(f'<text x="{LEFT - 5}" y="{place + 4}" text-anchor="end">{text}</text>')
    for value in x.ticks():
        if are_x_whole and value != round(value):
            continue
        place = x(value)
        text = escape(_tick(value))
        parts.append(f'<text x="{place}" y="{HEIGHT - 14}" text-anchor="middle">{text}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 1}" text-anchor="middle">{escape(x_name)}</text>'
    )
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    return "".join(parts)


def _line(
    name: str, line: Sequence[Point], x: Scale, y: Scale, number: int, is_strong: bool
) -> str:
    path = "L".join(f"{x(a)} {y(b)}" for a, b in thinned(line))
    color = color_of(number)
    if number >= MOST_LINES:
        return f'<path class="line thin" d="M{path}"><title>{escape(name)}</title></path>'
    strong = " strong" if is_strong else ""
    text = f'<path class="line{strong}" style="stroke:{color}" d="M{path}"/>'
    if len(line) <= MOST_MARKS:
        text += "".join(
            f'<circle cx="{x(a)}" cy="{y(b)}" r="2.2" style="fill:{color}">'
            f"<title>{escape(name)}, {a:g}: {escape(shown(b))}</title></circle>"
            for a, b in line
        )
    return text


def _bar(left: float, right: float, top: float, text: str, opacity: float = 0.75) -> str:
    width, height = max(0.5, right - left - 1), max(0.0, HEIGHT - BOTTOM - top)
    return (
        f'<rect class="bar" x="{left + 0.5:.1f}" y="{top:.1f}" width="{width:.1f}"'
        f' height="{height:.1f}" style="opacity:{opacity:.2f}"><title>{escape(text)}</title></rect>'
    )


def _svg(parts: Iterable[str], title: str) -> Raw:
    start = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
    return Raw(f"{start}{''.join(parts)}</svg>")


def _legend(names: Sequence[str]) -> Raw:
    if len(names) < 2:
        return Raw("")
    first = [
        tag("span", name, style=f"--mark: {color_of(number)}")
        for number, name in enumerate(names[:MOST_LINES])
    ]
    n_more = len(names) - MOST_LINES
    rest = [Raw(f"and {n_more} more, grey")] if n_more > 0 else []
    return tag("div", *first, *rest, class_="legend")


def _round_values(low: float, high: float, most: int) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / most))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    values = [round((first + number) * step, 12) for number in range(most + 2)]
    return [value for value in values if value <= high + 1e-9 * step]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        values = [f * 10.0**n for n in range(first, last + 1) for f in factors]
        values = [value for value in values if low * 0.999 <= value <= high * 1.001]
        if len(values) <= most + 1:
            return values
    return values[:: -(-len(values) // most)]


def _tick(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.0e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.6g}"
