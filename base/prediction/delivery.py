"""What predict.py does with predictions: writes them, prints them, and says what was left out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.errors import CheckpointError, DataError, UsageError, disk_error, why
from base.prediction.output import OutputFile, print_rows, print_unreadable
from base.system.run_folder import remove_empty

if TYPE_CHECKING:
    from base.prediction.predictions import Predictions

TABLES = (".csv", ".tsv")
WITHOUT_ALL, COMPLETE = 1, 0  # exit codes


class Delivery:
    """The places of the results: a file (``-o``) and a folder of masks, or the console."""

    def __init__(self, file: OutputFile | None, masks: Path | None) -> None:
        self.file, self.masks = file, masks

    def deliver(self, predictions: Predictions) -> int:
        """Write or print predictions; return the exit code, 1 if a sample was left out."""
        if self.file is None:
            rows = iter(predictions)
            first = next(rows)
            n_rows = print_rows(predictions.columns, rows, first)
            places = [self.masks] if self.masks else []
        elif self.file.path.suffix.lower() == ".npz":
            n_rows, places = predictions.to_npz(self.file), [self.file.path]
        else:
            n_rows = self.file.write_rows(_with_header(predictions))
            places = [self.file.path, *([self.masks] if self.masks else [])]
        if places:
            plural = "" if n_rows == 1 else "s"
            stream = sys.stderr if self.file is None else sys.stdout  # where the rows are not
            text = f"{n_rows:,} prediction{plural} in {' and '.join(map(str, places))}"
            print(text, file=stream)
        print_unreadable(predictions.unreadable)
        return WITHOUT_ALL if predictions.unreadable else COMPLETE


@contextmanager
def open_delivery(
    output: Path | None, masks: Path | None, overwrite: bool = False
) -> Iterator[Delivery]:
    """Open the places of the results before any work; remove what is incomplete after a failure.

    Args:
        output: a CSV, TSV or npz file; or a folder, for masks and a CSV file of a segmentation.

    Raises:
        UsageError: a file exists, or cannot be written.
    """
    with ExitStack() as stack:
        if output is not None and (output.is_dir() or not output.suffix):
            if masks is not None:
                raise UsageError(f"-o {output}: a folder; with --masks give a CSV file")
            masks, output = output, output / "predictions.csv"
            stack.enter_context(_folder(masks))
        elif output is not None and output.suffix.lower() not in (*TABLES, ".npz"):
            text = "a name that ends in .csv, .tsv or .npz, or a folder for masks"
            raise UsageError(f"-o {output}: give {text}")
        elif masks is not None:
            stack.enter_context(_folder(masks))
        if masks is not None and output is not None and output.suffix.lower() == ".npz":
            raise UsageError(f"-o {output}: with --masks give a CSV file")
        file = None if output is None else stack.enter_context(OutputFile(output, overwrite))
        try:
            yield Delivery(file, masks)
        except (CheckpointError, DataError) as error:  # of the command's words
            if error.exit_code != 1:
                raise
            raise UsageError(str(error)) from error


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make a folder, which is removed if it stays empty."""
    is_new = not path.exists()
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        text = f"{path}: the folder cannot be made: {why(error)}"
        raise disk_error(error, text, UsageError) from error
    try:
        yield
    finally:
        if is_new:
            remove_empty([path])


def _with_header(predictions: Predictions) -> Iterator[Any]:
    """Yield the column names, which the first row makes known, and the rows."""
    rows = iter(predictions)
    first = next(rows)
    yield predictions.columns
    yield first
    yield from rows
