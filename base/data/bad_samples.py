"""How unreadable samples are handled: the policy ``on_bad_sample``.

`base/data/reading.py` finds the unreadable samples and reads their replacements. See
docs/reliability.md.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from base.config import Config
from base.data.reading import BadSample
from base.errors import ConfigError, DataError
from logger.csv_writer import CsvWriter, read_table
from logger.files import put_aside

log = logging.getLogger("kindling")

NAMES = {"train": "training", "valid": "validation", "test": "test"}
LOG_EVERY = 10  # bad samples
COLUMNS = ("part", "index", "path", "reason")
MAX_LISTED = 5  # bad samples in an error message


class BadSamples:
    """Counts the skipped samples, lists them in ``bad_samples.csv`` and enforces the limit.

    Its state holds the data set indices of the known bad samples, for each part of the data.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.skips = config["trainer"]["on_bad_sample"] == "skip"
        self.known: dict[str, set[int]] = {}
        self._limits: dict[str, tuple[int, int]] = {}  # by part: samples, and bad ones allowed
        self._file: CsvWriter | None = None
        self._rows: dict[tuple[str, str], Mapping[str, Any]] = {}  # written or waiting

    def watch(self, loader: Any, part: str) -> None:
        """Make a loader skip bad samples if the config asks for it.

        Args:
            part: train, valid or test. In training, another sample replaces each bad one.

        Raises:
            ConfigError: the loader is not a `BaseDataLoader` and cannot skip samples.
        """
        if not self.skips or loader is None:
            return
        if not hasattr(type(loader), "skip_bad_samples"):  # read as it is, batch by batch
            name = type(getattr(loader, "loader", loader)).__name__
            text = f"skip is for a BaseDataLoader without an __iter__ of its own, not for {name}"
            raise ConfigError([self.config.problem(("trainer", "on_bad_sample"), text)])
        allowed = count_allowed(self.config["trainer"]["max_bad_samples"], loader.n_samples)
        self._limits[part] = (loader.n_samples, allowed)
        note = functools.partial(self.note, part)
        loader.skip_bad_samples(note, allowed, replace=part == "train")

    def note(self, part: str, bad: list[BadSample]) -> None:
        """Count and list the bad samples of a batch. Each sample counts once.

        Raises:
            DataError: there are more bad samples than the config allows.
        """
        known = self.known.setdefault(part, set())
        for sample in bad:
            path, reason = (_plain(text) for text in (sample.path, sample.reason))
            self.add_row({"part": part, "index": sample.sample, "path": path, "reason": reason})
            if sample.sample in known:
                continue
            known.add(sample.sample)
            if sum(map(len, self.known.values())) % LOG_EVERY == 1:
                done = "replaced by another sample" if part == "train" else "skipped"
                text = "sample %d of the %s data cannot be read and is %s: %s: %s (so far %s)"
                log.warning(text, sample.sample, NAMES[part], done, path, reason, self._summary())
        self.check(part)

    def check(self, part: str) -> None:
        """Refuse more bad samples of a part of the data than the config allows.

        Raises:
            DataError: there are more.
        """
        known = self.known.get(part, ())
        n_samples, allowed = self._limits.get(part, (0, len(known)))
        if len(known) > allowed:
            text = f"{len(known):,} of {n_samples:,} {NAMES[part]} samples cannot be read"
            cap = f"trainer.max_bad_samples={self.config['trainer']['max_bad_samples']}"
            rows = [row for row in self._rows.values() if row["part"] == part][-MAX_LISTED:]
            last = "".join(f"\n  sample {r['index']}: {r['path']}: {r['reason']}" for r in rows)
            raise DataError(f"{text}, and {cap} allows {allowed:,}{self._place()}; the last:{last}")

    def open(self, folder: Path) -> None:
        """Continue the list of a run. Each sample is listed once."""
        if not self.skips or self._file is not None:
            return
        path, found = folder / "bad_samples.csv", self._rows
        table = read_table(path)
        whole = [row for row in table.rows if set(COLUMNS) <= set(row)]
        self._rows = {(row["part"], row["index"]): row for row in whole}
        if table.faults or len(whole) < len(table.rows):
            fault = table.faults[0] if table.faults else f"its columns are not {', '.join(COLUMNS)}"
            log.warning("%s: damaged: %s; its %d complete rows are kept", path, fault, len(whole))
        self._file = CsvWriter(path)
        if table.faults or whole != table.rows:
            put_aside(path)
            self._file.rewrite(whole)
        for row in found.values():  # noted before the folder existed
            self.add_row(row)

    def log_summary(self) -> None:
        """Log how many samples were skipped."""
        if any(self.known.values()):
            log.warning("unreadable samples were skipped: %s", self._summary())

    def state_dict(self) -> dict[str, Any]:
        return {part: sorted(known) for part, known in sorted(self.known.items()) if known}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Add the samples of a checkpoint to those already known."""
        for part, indices in state_dict.items():
            self.known.setdefault(part, set()).update(indices)

    def rows(self) -> list[dict[str, Any]]:
        """Return the listed samples, each with part, index, path and reason."""
        return [dict(row) for row in self._rows.values()]

    def add_row(self, row: Mapping[str, Any]) -> None:
        """List a bad sample, once."""
        key = (row["part"], str(row["index"]))
        if key in self._rows:
            return
        self._rows[key] = row
        if self._file is not None:
            try:
                self._file.add_row(row)
            except OSError as error:  # a failed list must not stop the run
                log.warning("%s: not written: %s", self._file.path, error)
                self._file = None

    def _summary(self) -> str:
        counts = (f"{len(known):,} {NAMES[part]}" for part, known in sorted(self.known.items()))
        return f"{', '.join(counts)}{self._place()}"

    def _place(self) -> str:
        return "" if self._file is None else f", listed in {self._file.path}"


def count_allowed(cap: int | str, n_samples: int) -> int:
    """Return how many samples may be bad. ``cap`` is a number or a share such as ``0.1%``."""
    if isinstance(cap, int):
        return cap
    return math.ceil(round(float(cap.rstrip("%")) / 100 * n_samples, 6))


def _plain(text: str) -> str:
    """Return the text on one line, escaped so that UTF-8 can encode it."""
    return " ".join(text.split()).encode(errors="backslashreplace").decode()
