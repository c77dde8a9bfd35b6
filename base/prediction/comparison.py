"""Compares an exported file, loaded again, with the model and with predictions of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from base.errors import KindlingError
from base.prediction.graph_files import Running, tensors_of
from base.prediction.network_inputs import Inputs

BATCH_SIZES = (1, 2, 5)
TOLERANCE = 1e-4  # of the largest output
RESIZED_TOLERANCE = 0.02  # resized pixels may differ by one level of 255


class ExportMismatchError(KindlingError):
    """The exported file does not compute what the model does."""


def batches(inputs: Inputs, size_varies: bool) -> list[Any]:
    """Return the random batches on which the file is compared with the model."""
    found = [inputs.random(size) for size in BATCH_SIZES]
    return [*found, inputs.random(2, inputs.other_size)] if size_varies else found


def compare(
    reference: Running, loaded: Running, inputs: Sequence[Any], out: Path, tolerance: float
) -> str:
    """Compare a loaded file with the model; return the largest difference in words.

    Raises:
        ExportMismatchError: it is above the tolerance, or shapes or dtypes differ.
    """
    largest = 0.0
    for args, kwargs in inputs:
        size = len(tensors_of((args, kwargs))[0])
        wanted = reference(args, kwargs)
        try:
            found = loaded(args, kwargs)
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            text = f"{out}: the exported file fails on a batch of {size}: {text}"
            raise ExportMismatchError(f"{text}; nothing was written") from error
        fault = ""
        if _forms(found) != _forms(wanted):
            fault = "the shapes or dtypes of the outputs differ"
        else:
            largest = max(largest, *map(relative_difference, found, wanted), 0.0)
        if fault or largest > tolerance:
            fault = fault or f"the outputs differ by {largest:.1e} of the largest one"
            text = f"{out}: on a batch of {size}, {fault} (allowed: {tolerance:.0e})"
            raise ExportMismatchError(f"{text}; nothing was written")
    sizes = ", ".join(map(str, BATCH_SIZES))
    return f"largest difference {largest:.1e} of the largest output, batches of {sizes}"


def compare_with_predictions(
    loaded: Running, rows: Sequence[tuple[Tensor, Tensor]], out: Path, tolerance: float
) -> str:
    """Compare a loaded file with what the run predicts; return the largest difference in words.

    Args:
        rows: raw inputs of one sample, each with its prediction.

    Raises:
        ExportMismatchError: it is above the tolerance.
    """
    largest = max(
        relative_difference(loaded((inputs,), {})[0], prediction) for inputs, prediction in rows
    )
    if largest > tolerance:
        text = f"on raw inputs, the graph differs from predictions of the run by {largest:.1e}"
        text = f"{out}: {text} of the largest one (allowed: {tolerance:.0e})"
        raise ExportMismatchError(f"{text}; nothing was written")
    return f"{largest:.1e} from predictions of the run for {len(rows)} samples"


def _forms(tensors: Sequence[Tensor]) -> list[Any]:
    return [(each.shape, each.dtype) for each in tensors]


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference as a share of the largest output; equal NaN do not count."""
    found, wanted = found.detach().cpu().double(), wanted.detach().cpu().double()
    is_same = (found == wanted) | (found.isnan() & wanted.isnan())
    if is_same.all():
        return 0.0
    finite = wanted[wanted.isfinite()].abs()
    scale = float(finite.max()) if len(finite) else 0.0
    difference = float((found - wanted)[~is_same].abs().max())
    return difference / scale if scale and difference == difference else float("inf")
