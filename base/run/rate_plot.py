"""Curves of the loss over the learning rate: as text for the terminal, and as a picture."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from logger.console import format_value
from logger.files import write_whole
from logger.terminal import terminal_width

Curve = tuple[Sequence[float], Sequence[float], Sequence[float], float]
N_ROWS, MOST_COLUMNS = 8, 64
log = logging.getLogger("kindling")


def text_plot(rates: Sequence[float], losses: Sequence[float]) -> str:
    """Return a curve as lines of text; losses far above the first one are cut off."""
    width = max(16, min(MOST_COLUMNS, (terminal_width() or 80) - 14))
    low, first = min(losses), losses[0]
    high = first + 0.2 * (first - low) or 1.0
    span = (high - low) or 1.0
    cells = [[" "] * width for _ in range(N_ROWS)]
    begin, end = math.log10(rates[0]), math.log10(rates[-1])
    for rate, loss in zip(rates, losses, strict=True):
        column = round((math.log10(rate) - begin) / ((end - begin) or 1.0) * (width - 1))
        row = round((high - min(loss, high)) / span * (N_ROWS - 1)) if math.isfinite(loss) else 0
        cells[min(row, N_ROWS - 1)][column] = "*"
    labels = {0: high, N_ROWS - 1: low}
    lines = [
        f"{format_value('loss', labels[k]) if k in labels else '':>11} |{''.join(row).rstrip()}"
        for k, row in enumerate(cells)
    ]
    axis = f"{rates[0]:.0e}".ljust(width - 5) + f"{rates[-1]:.0e}"
    return "\n".join([*lines, " " * 12 + "-" * width, " " * 12 + axis])


def write_plot(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float], float]],
    path: Path,
) -> bool:
    """Draw the losses over the rates; return whether there is a picture.

    Args:
        curves: by name: rates, losses, smooth losses, and the rate of the config.

    Raises:
        FileError: the picture cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # takes a second, so it is imported late
    except ImportError as error:
        log.warning("there is no picture: %s (pip install matplotlib)", error)
        return False
    figure = Figure(figsize=(6.4, 4.0 * len(curves)), layout="constrained")
    for place, (name, (rates, losses, smooth, own)) in enumerate(curves.items(), start=1):
        axis = figure.add_subplot(len(curves), 1, place, title=name, xscale="log")
        axis.set(xlabel="learning rate", ylabel="loss")
        axis.plot(rates, losses, color="0.75", label="each step")
        axis.plot(rates, smooth, label="smooth")
        if own > 0:
            axis.axvline(own, color="0.4", linestyle="--", label=f"config {own:.1e}")
        finite = [loss for loss in smooth if math.isfinite(loss)]
        if finite:
            low, first = min(finite), finite[0]
            margin = max(first - low, abs(first) * 0.1, 1e-12)
            axis.set_ylim(low - 0.1 * margin, first + 0.6 * margin)
        axis.grid(visible=True, alpha=0.3)
        axis.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    write_whole(path, buffer.getvalue())
    return True
