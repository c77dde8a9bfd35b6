"""The predictions of a run in its ``report/``: a CSV file, pictures, and numbers for the page.

``predictions.csv`` has a row for each sample of the validation and test data;
``predictions.json`` has what the page shows of them, and ``mistakes/`` the worst ones as pictures.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from base.report.pictures import Array, as_png, with_errors, with_mask
from base.report.scores import (
    Pair,
    calibration,
    label_scores,
    pair_counts,
    residual_summary,
)
from logger.files import open_file, read_file, write_whole

log = logging.getLogger("kindling")

PARTS = ("valid", "test")
MOST_WORST = 24
"""The mistakes that the page shows of each part."""
MOST_LABELS = 50  # with a probability each in predictions.csv
FORMAT = 1


@dataclass
class Worst:
    """One of the worst predictions."""

    row: int
    """Its row among the predictions."""
    image: Array | None = None
    """uint8 (height, width) or (height, width, 3)."""
    target_mask: Array | None = None
    """(height, width) class numbers; negative ones are not judged."""
    mask: Array | None = None
    place: str = ""
    """Where the sample is, such as ``data/wine.csv:12``, if this differs from its id."""
    columns: dict[str, str] = field(default_factory=dict)
    """The values of a table's columns."""


@dataclass
class Predictions:
    """The predictions of one part of the data by one checkpoint, in the order of the data."""

    part: str
    """``valid`` or ``test``."""
    task: str
    """classification, binary, multilabel, segmentation or regression."""
    ids: Sequence[str]
    names: Sequence[str]
    """The classes, labels or targets."""
    target: Array
    """(sample,) class numbers, or (sample, label) of 0 and 1, both -1 if unknown; or
    (sample, target) numbers, NaN if unknown."""
    prediction: Array
    """The same of the predictions, all known; both are empty for segmentation."""
    probability: Array | None = None
    """(sample,) of the predicted class, or (sample, label)."""
    target_probability: Array | None = None
    """(sample,) of the true class, NaN if unknown."""
    scores: Mapping[str, Array] = field(default_factory=dict)
    """Further numbers of each sample, (sample,): the pixel accuracy of a mask."""
    pairs: Sequence[Pair] = ()
    """Of segmentation: the pixels of each true and predicted class."""
    worst: Sequence[Worst] = ()
    """The worst one first."""
    checkpoint: str = ""
    epoch: int | None = None
    are_ids_known: bool = True
    """Whether ids name samples of the data set; otherwise they number the rows."""


def write_predictions(folder: Path, found: Predictions) -> None:
    """Write the predictions of a part of the data; those of the other part stay.

    Raises:
        FileError: a file cannot be written.
    """
    report = folder / "report"
    columns = {name: _texts(values) for name, values in _columns(found).items()}
    mistakes = _write_pictures(report, found, columns)
    text = _with_rows(report / "predictions.csv", found, columns)
    write_whole(report / "predictions.csv", text.encode(errors="backslashreplace"))
    parts = read_predictions(folder)
    parts[found.part] = {**_summary(found), "mistakes": mistakes}
    content = {"format": FORMAT, "parts": {name: parts[name] for name in PARTS if name in parts}}
    text = json.dumps(_plain(content), allow_nan=False)
    write_whole(report / "predictions.json", text.encode() + b"\n")


def read_predictions(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what the page shows of the predictions, by the part of the data; {} without any."""
    path = folder / "report" / "predictions.json"
    try:
        content = json.loads(read_file(path))
        parts: dict[str, dict[str, Any]] = content["parts"] if content["format"] == FORMAT else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        log.warning("%s: not readable, and left out: %s", path, error)
        return {}
    return parts


def read_rows_of(folder: Path, part: str) -> dict[str, dict[str, str]]:
    """Return the columns of predictions.csv for each sample of a part, by its id."""
    header, rows = _read_csv(folder / "report" / "predictions.csv")
    if header[:2] != ["part", "id"]:
        return {}
    return {row[1]: dict(zip(header, row, strict=True)) for row in rows if row[0] == part}


def _with_rows(path: Path, found: Predictions, columns: Mapping[str, Sequence[str]]) -> str:
    """Return the text of predictions.csv with the rows of a part, and those of the other part."""
    header, kept = _read_csv(path)
    names = list(dict.fromkeys(["part", "id", *columns, *header]))
    places = [header.index(name) if name in header else -1 for name in names]
    own = [columns.get(name) for name in names[2:]]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(names)
    others = [row for row in kept if row[0] != found.part] if header[:1] == ["part"] else []
    blocks = [
        ((row[place] if place >= 0 else "" for place in places) for row in others),
        (
            [found.part, name, *("" if each is None else each[number] for each in own)]
            for number, name in enumerate(found.ids)
        ),
    ]
    is_first = PARTS.index(found.part) == 0
    for block in reversed(blocks) if is_first else blocks:
        writer.writerows(block)
    return buffer.getvalue()


def _columns(found: Predictions) -> dict[str, Any]:
    """Return the columns of predictions.csv after part and id: texts or numbers."""
    names = [str(name) for name in found.names]
    columns: dict[str, Any] = {}
    if found.task in ("classification", "binary"):
        named = [*names, ""]  # -1, an unknown class, is the last one
        columns["target"] = [named[number] for number in found.target]
        columns["prediction"] = [named[number] for number in found.prediction]
        if found.probability is not None and found.target_probability is not None:
            columns["probability"] = found.probability
            columns["target_probability"] = found.target_probability
    elif found.task == "multilabel":
        columns["target"] = [_joined(names, row) for row in found.target > 0]
        columns["prediction"] = [_joined(names, row) for row in found.prediction]
        if (found.target < 0).any():
            columns["unknown"] = [_joined(names, row) for row in found.target < 0]
        if found.probability is not None and len(names) <= MOST_LABELS:
            for number, name in enumerate(names):
                columns[f"probability/{name}"] = found.probability[:, number]
    elif found.task == "regression":
        for number, name in enumerate(names):
            end = "" if len(names) == 1 else f"/{name}"
            columns[f"target{end}"] = found.target[:, number]
            columns[f"prediction{end}"] = found.prediction[:, number]
    return {**columns, **found.scores}


def _joined(names: Sequence[str], is_chosen: Array) -> str:
    return "|".join(names[number] for number in np.flatnonzero(is_chosen).tolist())


def _texts(values: Any) -> list[str]:
    if not isinstance(values, np.ndarray):
        return list(values)
    return ["" if value != value else f"{value:.7g}" for value in values.tolist()]  # NaN: empty


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the whole rows of a CSV file; nothing if it cannot be read."""
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            return header, [row for row in reader if len(row) == len(header)]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, csv.Error) as error:
        log.warning("%s: not readable, and left out: %s", path, error)
    return [], []


def _summary(found: Predictions) -> dict[str, Any]:
    """Return the numbers of a part for the page."""
    names = [str(name) for name in found.names]
    summary: dict[str, Any] = {
        "task": found.task,
        "names": names,
        "n_samples": len(found.ids),
        "checkpoint": found.checkpoint,
        "epoch": found.epoch,
        "are_ids_known": found.are_ids_known,
    }
    if found.task in ("classification", "binary"):
        summary["pairs"] = pair_counts(found.target, found.prediction)
        if found.probability is not None:
            known = found.target >= 0
            is_correct = (found.target == found.prediction)[known]
            summary["calibration"] = calibration(found.probability[known], is_correct)
    elif found.task == "multilabel":
        scores = label_scores(found.target, found.prediction, names)
        summary["labels"] = [[each.support, each.predicted, each.correct] for each in scores]
        known, is_correct = found.target >= 0, found.target == found.prediction
        is_judged = known.any(axis=1)
        summary["n_judged"] = int(is_judged.sum())
        summary["n_exact"] = int((is_judged & (is_correct | ~known).all(axis=1)).sum())
        if found.probability is not None:
            confidence = np.maximum(found.probability, 1 - found.probability)
            summary["calibration"] = calibration(confidence[known], is_correct[known])
    elif found.task == "segmentation":
        summary["pairs"] = [list(pair) for pair in found.pairs]
    else:
        columns = zip(found.target.T, found.prediction.T, names, strict=True)
        summary["targets"] = [residual_summary(*column) for column in columns]
    return summary


def _write_pictures(
    report: Path, found: Predictions, columns: Mapping[str, Sequence[str]]
) -> list[dict[str, Any]]:
    """Write the pictures of the worst predictions; return a description of each."""
    folder = report / "mistakes"
    if any(worst.image is not None for worst in found.worst):
        report.mkdir(exist_ok=True)  # not its parents: a deleted run folder is not made again
    described, written = [], set()
    for number, worst in enumerate(found.worst[:MOST_WORST], start=1):
        one: dict[str, Any] = {"id": found.ids[worst.row], "place": worst.place}
        one["values"] = {name: values[worst.row] for name, values in columns.items()}
        one["columns"] = worst.columns
        pictures = {}
        for kind, pixels in _pictures_of(worst).items():
            end = f"-{kind}" if kind else ""
            path = folder / f"{found.part}-{number:02}{end}.png"
            write_whole(path, as_png(pixels))
            written.add(path.name)
            pictures[kind] = f"mistakes/{path.name}"
        described.append({**one, "pictures": pictures})
    for path in folder.glob(f"{found.part}-*.png") if folder.is_dir() else ():
        if path.name not in written:  # of an earlier report
            path.unlink()
    return described


def _pictures_of(worst: Worst) -> dict[str, Array]:
    if worst.image is None:
        return {}
    if worst.mask is None or worst.target_mask is None:
        return {"": worst.image}
    return {
        "image": worst.image,
        "target": with_mask(worst.image, worst.target_mask),
        "prediction": with_mask(worst.image, worst.mask),
        "wrong": with_errors(worst.image, worst.target_mask, worst.mask),
    }


def _plain(value: Any) -> Any:
    """Return plain data for JSON, which has no NaN."""
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, str) or not isinstance(value, Iterable):
        is_bad = isinstance(value, float) and not np.isfinite(value)
        return None if is_bad else value
    return [_plain(part) for part in value]
