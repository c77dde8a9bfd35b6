"""``split.csv``, which samples train and which validate, and what has changed there on a resume.

With other samples the order of a run is another one, and some that have trained may validate. So
each checkpoint has the names of the classes and hashes of ids, targets and contents (see
`base/data_fingerprint.py`); ``split.csv`` has them sample by sample, to say which ones differ.
"""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from base.changed_config import differences
from base.checkpoint import peek_manifest
from base.data_fingerprint import Samples, hex_texts, samples_of
from base.data_record import data_of, record_of
from base.errors import DataError
from base.run_folder import run_of
from logger.csv_writer import csv_text
from logger.files import write_whole

if TYPE_CHECKING:
    from base.config import Config
    from base.experiment import Experiment

log = logging.getLogger("kindling")

COLUMNS = ("part", "id", "target", "content")
NAMES = {"train": "training", "valid": "validation"}
FEW = 3  # samples or classes that a message names
MOST_CONTENTS = 1_000_000  # samples; of more, split.csv has no hash of the inputs


class Row(NamedTuple):
    """One sample in ``split.csv``; runs of earlier versions have the first two columns."""

    part: str
    id: str
    target: str = ""
    content: str = ""


def keep_data(
    experiment: Experiment, folder: Path, then: Mapping[str, Any], allow_change: bool = False
) -> dict[str, Any]:
    """Write what a run knows of its data into its folder, and return it for the manifests.

    Args:
        then: what this returned when the checkpoint was saved from which training goes on.
        allow_change: whether labels may have been corrected meanwhile.

    Raises:
        DataError: a sample is in both parts, or a run that goes on has other samples or labels.
    """
    loaders = {"train": experiment.train_loader, "valid": experiment.valid_loader}
    record = record_of(experiment.train_loader)
    path = folder / "split.csv"
    samples = compare_split(path, loaders, record, then, allow_change)
    hashes = {part: found.digests() for part, found in samples.items()}
    if not path.exists() or hashes != then.get("samples"):
        rows = split_rows(loaders, samples)
        if rows:
            write_whole(path, csv_text([COLUMNS, *rows]).encode())
    data = {
        "record": record,
        "samples": hashes,
        "n_batches": {k: _length(one) for k, one in loaders.items() if one is not None},
        "batches_per_epoch": experiment.batches_per_epoch,
    }
    write_whole(folder / "data.json", json.dumps(data, indent=2).encode() + b"\n")
    return data


def refuse_changed_data(experiment: Experiment, resume_from: Path, allow_change: bool) -> None:
    """Compare the data with those of a run, before anything else is tried on them.

    Raises:
        DataError: as `keep_data`, which looks again once the checkpoint itself is verified.
    """
    loaders = {"train": experiment.train_loader, "valid": experiment.valid_loader}
    record = record_of(experiment.train_loader)
    path = run_of(resume_from) / "split.csv"
    compare_split(path, loaders, record, data_of(peek_manifest(resume_from)), allow_change)


def record_to_resume(config: Config, resume_from: Path | None) -> Mapping[str, Any]:
    """Return the statistics that a run goes on with; {} where its data section is another now.

    They are not computed again: a file that was repaired meanwhile would change them.
    """
    if resume_from is None:
        return {}
    changed = [key for key, _, _ in differences(config, run_of(resume_from))]
    record = data_of(peek_manifest(resume_from)).get("record", {})
    if any(key.startswith("data_loader") for key in changed):
        return {}
    return {key: value for key, value in record.items() if key != "classes"}  # compared later


def compare_split(
    path: Path,
    loaders: Mapping[str, Any],
    record: Mapping[str, Any],
    then: Mapping[str, Any],
    allow_change: bool = False,
) -> dict[str, Samples]:
    """Return the samples of the loaders, once they are known to be those of the run.

    Args:
        path: the ``split.csv`` of the run. It says which samples differ; of a checkpoint of an
            earlier version, which has no hashes, its ids are what is compared.
        then: what `keep_data` returned for the run.

    Raises:
        DataError: a sample is in both parts, or there are other samples or labels.
    """
    samples = {part: found for part, one in loaders.items() if (found := samples_of(one))}
    refuse_overlap(loaders, samples)
    changes: list[tuple[str, str]] = []
    if then:
        hashes = {part: found.digests() for part, found in samples.items()}
        changes = changed_hashes(then["samples"], hashes)
        one, other = (each.get("classes") for each in (then["record"], record))
        if one and other and one != other:
            changes.insert(0, ("classes", changed_classes(one, other)))
        if not changes:
            return samples
    kept = read_split(path) if path.exists() else []
    details = []
    if kept:
        parts = {row.part for row in kept}  # earlier versions knew of Kindling's loaders only
        parts |= {part for part, loader in loaders.items() if hasattr(loader, "sample_ids")}
        rows = [row for row in split_rows(loaders, samples) if row.part in parts]
        details = changed_rows(kept, rows)
    lines = [text for what, text in changes if what == "classes"]
    lines += details or [text for what, text in changes if what != "classes"]
    if lines:
        text = f"{path.parent}: its data have changed since it began: {'; '.join(lines)}"
        are_labels = all(what in ("classes", "targets") for what, _ in changes) and bool(then)
        if not (are_labels and allow_change):
            raise DataError(f"{text}; {_advice(path.parent, are_labels)}")
        log.warning("%s; the new labels are used from here on", text)
    return samples


def refuse_overlap(loaders: Mapping[str, Any], samples: Mapping[str, Samples]) -> None:
    """Make sure that no sample of one data set both trains and validates.

    Raises:
        DataError: some do.
    """
    sources = {getattr(loader, "source_of_ids", part) for part, loader in loaders.items()}
    indices = [getattr(one, "sample_indices", lambda: None)() for one in loaders.values()]
    if len(sources) > 1 or any(each is None for each in indices):
        return
    train, valid = map(torch.as_tensor, indices)
    trains = torch.zeros(1 + int(torch.cat([train, valid]).max()), dtype=torch.bool)
    trains[train] = True
    shared = valid[trains[valid]].tolist()
    if shared:
        names = getattr(samples["train"].dataset, "ids", None)
        first = shared[0] if names is None else names[shared[0]]
        text = f"{len(shared)} samples both train and validate, such as {first}"
        raise DataError(f"the split overlaps: {text}")


def split_rows(loaders: Mapping[str, Any], samples: Mapping[str, Samples]) -> list[Row]:
    """Return a row for each sample of which it is known in which part it is."""
    rows: list[Row] = []
    has_contents = sum(map(len, samples.values())) <= MOST_CONTENTS
    for part, loader in loaders.items():
        found = samples.get(part)
        ids = _ids_of(loader, found)
        if ids is None:
            continue
        targets, contents = [""] * len(ids), [""] * len(ids)
        if found is not None:
            targets = found.target_texts()
            if has_contents and found.contents is not None:
                contents = hex_texts(found.contents)
        rows += map(Row, [part] * len(ids), ids, targets, contents)
    return rows


def read_split(path: Path) -> list[Row]:
    """Return the rows of a ``split.csv`` of this version or of an earlier one."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Row(*cells[: len(COLUMNS)]) for cells in list(csv.reader(file))[1:]]


def changed_rows(then: Sequence[Row], now: Sequence[Row]) -> list[str]:
    """Say how the samples of a run differ from those that it had; nothing where they do not."""
    before, after = ({(row.part, row.id): row for row in rows} for rows in (then, now))
    gone = [key for key in before if key not in after]
    new = [key for key in after if key not in before]
    to = {name: part for part, name in new}
    moved = [key for key in gone if to.get(key[1], key[0]) != key[0]]
    moved_ids = {name for _, name in moved}
    lines = []
    for keys, text in ((gone, "are gone"), (new, "are new")):
        names = [name for _, name in keys if name not in moved_ids]
        lines += [f"{len(names)} samples {text}, such as {_few(names)}"] if names else []
    if moved:
        names = [f"{name} ({NAMES[part]} then)" for part, name in moved]
        lines.append(f"{len(moved)} samples are in the other part, such as {_few(names)}")
    if not gone and not new and list(before) != list(after):
        lines.append("the samples are in another order")
    common = [(before[key], after[key]) for key in before if key in after]
    differ = [
        [
            each
            for each in common
            if all(x[field] for x in each) and each[0][field] != each[1][field]
        ]
        for field in (2, 3)
    ]
    if differ[1] and not gone and not new and Counter(map(_what, then)) == Counter(map(_what, now)):
        n_moved = len({id(one) for each in differ for one, _ in each})
        return [f"the samples are the same, but {n_moved} of {len(now)} are at other places"]
    if differ[0]:
        names = [f"{one.id} ({one.target} then, {other.target} now)" for one, other in differ[0]]
        lines.append(f"{len(names)} of {len(common)} targets differ, such as {_few(names)}")
    if differ[1]:
        names = [one.id for one, _ in differ[1]]
        what = "inputs" if any(one.target for one, _ in differ[1]) else "contents"
        text = f"the {what} of {len(names)} of {len(common)} samples differ"
        lines.append(f"{text}, such as {_few(names)}")
    return lines


def _what(row: Row) -> tuple[str, str]:
    return row.target, row.content


def changed_hashes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what differs by the hashes alone, each with its kind."""
    changes = []
    for part, name in NAMES.items():
        before, after = then.get(part), now.get(part)
        if (before is None) != (after is None):
            text = "was none" if before is None else "is none"
            changes.append(("samples", f"there {text} of {name} data that can be compared"))
        if before is None or after is None:
            continue
        numbers = (before["n_samples"], after["n_samples"])
        if numbers[0] != numbers[1]:
            changes.append(("samples", f"{numbers[0]} {name} samples then, {numbers[1]} now"))
        elif before["ids"] != after["ids"]:
            changes.append(("samples", f"other {name} samples, or another order of them"))
        for key, what in (("targets", "targets"), ("contents", "inputs")):
            pair = (before[key], after[key])
            if None not in pair and pair[0] != pair[1] and numbers[0] == numbers[1]:
                changes.append((what, f"{what} of the {name} samples differ"))
    return changes


def changed_classes(then: Sequence[str], now: Sequence[str]) -> str:
    """Say which names of classes are gone or new, or that their order is another."""
    gone, new = ([name for name in one if name not in other] for one, other in
                 ((then, set(now)), (now, set(then))))  # fmt: skip
    if not gone and not new:
        number = next(i for i, (a, b) in enumerate(zip(then, now, strict=True)) if a != b)
        text = f"class {number} was {then[number]!r} and is {now[number]!r}"
        return f"the classes are numbered in another order: {text}"
    parts = [f"{_few(map(repr, names))} {'is' if len(names) == 1 else 'are'} {state}"
             for names, state in ((gone, "gone"), (new, "new")) if names]  # fmt: skip
    return f"of the {len(then)} classes {' and '.join(parts)}"


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # a stream
        return None


def _ids_of(loader: Any, samples: Samples | None) -> list[str] | None:
    """Return the ids that ``split.csv`` lists: those the loader gives, names, or indices."""
    if hasattr(loader, "sample_ids"):
        ids: list[str] | None = loader.sample_ids()
        return ids
    if samples is None:
        return None
    return samples.names or list(map(str, samples.indices.tolist()))


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")


def _advice(run: Path, are_labels: bool) -> str:
    anew = f"start over from the weights: leave out -r and write `model: {{weights: {run}}}`"
    if are_labels:
        return f"put the labels back; or, if they were corrected, add --allow-change; or {anew}"
    return (
        "with other samples the order is another, and some that have trained may validate, so "
        f"--allow-change does not help: put the data and the split back, or {anew}"
    )
