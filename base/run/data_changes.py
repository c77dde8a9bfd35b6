"""Writes ``split.csv``, and compares the data of a resumed run with it.

Other samples would have another order, and some that were trained on might validate. So each
checkpoint holds class names and hashes of ids, targets and contents (`base/data/fingerprint.py`);
``split.csv`` holds them for each sample, to name those that differ. More than MAX_LISTED samples
are recorded in ``split.npz`` instead (`base/run/large_split.py`).
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from base.checkpoint.data_record import data_of, record_of
from base.checkpoint.store import find_manifest
from base.config.changes import differences
from base.data.fingerprint import Samples, hex_texts, samples_of
from base.distributed.group import ALONE, World
from base.errors import DataError, why
from base.names.object_references import References
from base.run.large_split import PART_NAMES, changes_of_large_split, large_split_bytes
from base.system.run_folder import run_folder_of
from logger.csv_writer import csv_text
from logger.files import open_file, put_aside, write_whole

if TYPE_CHECKING:
    from base.config import Config
    from base.training.experiment import Experiment

log = logging.getLogger("kindling")

SMALL, LARGE = "split.csv", "split.npz"
COLUMNS = ("part", "id", "target", "content")
MAX_SHOWN = 3  # samples or classes in a message
MAX_LISTED = 100_000  # samples in split.csv, which has about 15 bytes and a name for each


Key = tuple[str, str]  # part and id


class Row(NamedTuple):
    """One sample in ``split.csv``; earlier versions wrote the first two columns only."""

    part: str
    id: str
    target: str = ""
    content: str = ""


def write_data_record(
    experiment: Experiment, folder: Path, saved: Mapping[str, Any], allow_change: bool = False
) -> dict[str, Any]:
    """Write the record of a run's data into its folder; return it for the manifests.

    Args:
        saved: the record in the checkpoint of a resumed run; empty for a new run.
        allow_change: whether labels may have changed.

    Raises:
        DataError: a sample is in both parts, or a resumed run has other samples or labels.
    """
    loaders = {"train": experiment.train_loader, "valid": experiment.valid_loader}
    record = record_of(experiment.train_loader)
    samples = compare_split(folder, loaders, record, saved, allow_change)
    path = _split_file(folder, samples)
    hashes = {part: found.digests for part, found in samples.items()}
    found = _sha256_of(path)
    is_damaged = bool(saved) and found is not None and not _has_recorded_hash(path, found, saved)
    if is_damaged:
        aside = put_aside(path)
        text = "%s: damaged; it is written again, and the damaged file is kept as %s"
        log.warning(text, path, aside.name)
    if found is None or is_damaged or hashes != saved.get("samples"):
        content = _split_content(loaders, samples)
        if content:
            path = folder / _name_of_split(samples)
            write_whole(path, content)
            if path.name == LARGE:  # earlier versions listed any number of samples
                (folder / SMALL).unlink(missing_ok=True)
            found = hashlib.sha256(content).hexdigest()
    data = {
        "split_sha256": found,
        "record": record,
        "samples": hashes,
        "n_batches": {k: _length(one) for k, one in loaders.items() if one is not None},
        "batches_per_epoch": experiment.batches_per_epoch,
        "references": experiment.references.values,  # references resolved later are added to it
        "example": experiment.example or saved.get("example", {}),
    }
    write_whole(folder / "data.json", json.dumps(data, indent=2).encode() + b"\n")
    return data


def _name_of_split(samples: Mapping[str, Samples]) -> str:
    return LARGE if sum(map(len, samples.values())) > MAX_LISTED else SMALL


def _split_file(folder: Path, samples: Mapping[str, Samples]) -> Path:
    """Return the file of a run's split: the one that it has, or the one to write."""
    names = [_name_of_split(samples), SMALL, LARGE]
    return folder / next((name for name in names if (folder / name).exists()), names[0])


def _split_content(loaders: Mapping[str, Any], samples: Mapping[str, Samples]) -> bytes:
    """Return what to write as the split, b"" if no sample is known."""
    if _name_of_split(samples) == LARGE:
        return large_split_bytes(_listed(loaders, samples))
    rows = split_rows(loaders, samples)
    return csv_text([COLUMNS, *rows]).encode() if rows else b""


def _listed(loaders: Mapping[str, Any], samples: Mapping[str, Samples]) -> dict[str, Samples]:
    """Return the samples of loaders whose epochs read each of them."""
    return {part: found for part, found in samples.items() if _are_listed(loaders[part])}


def _are_listed(loader: Any) -> bool:
    return not hasattr(loader, "sample_indices") or loader.sample_indices() is not None


def _has_recorded_hash(path: Path, found: str, saved: Mapping[str, Any]) -> bool:
    """Return whether ``split.csv`` has its recorded hash; earlier versions recorded none."""
    if "split_sha256" in saved:
        return bool(saved["split_sha256"] == found)
    try:
        read_split(path)
    except DataError:
        return False
    return True


def _sha256_of(path: Path) -> str | None:
    """Return the hash of a file; None if it does not exist, empty if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open_file(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except FileNotFoundError:
        return None
    except OSError:
        return ""
    return digest.hexdigest()


def refuse_changed_data(experiment: Experiment, resume_from: Path, allow_change: bool) -> None:
    """Compare the data with those of a run before they are used; rank 0 does it for all.

    Raises:
        DataError: as `write_data_record`, which repeats this once the checkpoint is verified.
    """
    if not experiment.world.is_main:
        return
    loaders = {"train": experiment.train_loader, "valid": experiment.valid_loader}
    record = record_of(experiment.train_loader)
    saved = data_of(find_manifest(resume_from))
    if not saved:
        refuse_scaled_targets(experiment.train_loader, resume_from)
    compare_split(run_folder_of(resume_from), loaders, record, saved, allow_change)


def refuse_scaled_targets(train_loader: Any, checkpoint: Path) -> None:
    """Check that a checkpoint of an earlier version gets the targets that it was trained on.

    Raises:
        DataError: the targets are standardised; earlier versions did not with `normalize: auto`.
    """
    if getattr(train_loader, "target_scale", None) is not None:
        text = f"{checkpoint}: an earlier version trained it on targets in their own unit, and"
        text += " `normalize: auto` standardises the targets of a table now: add"
        raise DataError(f"{text} `--set data_loader.args.normalize=inputs` for the former ones")


def record_to_resume(
    config: Config, resume_from: Path | None, world: World = ALONE
) -> Mapping[str, Any]:
    """Return the data record of a resumed run; if its data section changed, only the decoder.

    Statistics are not computed again, as a file repaired since then would change them.
    """
    if resume_from is None:
        return {}
    data, has_other_data = _data_to_resume(config, resume_from, world)
    record = data.get("record", {})
    if has_other_data:
        return {key: value for key, value in record.items() if key == "decoder"}
    return {key: value for key, value in record.items() if key != "classes"}  # compared later


def references_to_resume(
    config: Config, resume_from: Path | None, world: World = ALONE
) -> References:
    """Return the references to built objects; those of a resumed run keep their values."""
    if resume_from is None:
        return References(config)
    data, has_other_data = _data_to_resume(config, resume_from, world)
    return References(config, data.get("references"), is_resumed=not has_other_data)


def _data_to_resume(config: Config, resume_from: Path, world: World) -> tuple[dict[str, Any], bool]:
    """Return the record of a run's data, and whether the data section changed, as rank 0 reads."""
    found: Any = None
    if world.is_main:
        changed = [key for key, _, _ in differences(config, run_folder_of(resume_from))]
        has_other_data = any(key.startswith("data_loader") for key in changed)
        found = [data_of(find_manifest(resume_from)), has_other_data]
    data, has_other_data = world.broadcast(found)
    return data, has_other_data


def compare_split(
    folder: Path,
    loaders: Mapping[str, Any],
    record: Mapping[str, Any],
    saved: Mapping[str, Any],
    allow_change: bool = False,
) -> dict[str, Samples]:
    """Return the samples of the loaders if they are those of the run.

    Args:
        folder: of the run, whose split names the samples that differ. Checkpoints of earlier
            versions have no hashes; their ids in ``split.csv`` are compared.
        saved: the record that `write_data_record` returned for the run.

    Raises:
        DataError: a sample is in both parts, or samples or labels differ.
    """
    samples = {part: found for part, one in loaders.items() if (found := samples_of(one))}
    refuse_overlap(loaders, samples)
    changes: list[tuple[str, str]] = []
    if saved:
        hashes = {part: found.digests for part, found in samples.items()}
        changes = changed_hashes(saved["samples"], hashes)
        one, other = (each.get("classes") for each in (saved["record"], record))
        if one and other and one != other:
            changes.insert(0, ("classes", changed_classes(one, other)))
        if not changes:
            return samples
    path, details, are_named = _split_file(folder, samples), [], False
    try:
        if path.exists():
            details = _changes_of_split(path, loaders, samples)
            are_named = bool(details)
    except DataError as error:
        if not saved:
            raise
        details.append(str(error))  # the hashes show that the data differ
    lines = [text for what, text in changes if what == "classes"]
    if not are_named:
        lines += [text for what, text in changes if what != "classes"]
    lines += details
    if lines:
        text = f"{folder}: the data changed since the run began: {'; '.join(lines)}"
        kinds = {what for what, _ in changes}
        can_be_allowed = kinds in ({"classes"}, {"targets"})  # both: the class indices differ
        if not (can_be_allowed and allow_change):
            raise DataError(f"{text}; {_advice(folder, kinds)}")
        log.warning("%s; the run continues with the new labels", text)
    return samples


def _changes_of_split(
    path: Path, loaders: Mapping[str, Any], samples: Mapping[str, Samples]
) -> list[str]:
    """Describe how samples differ from those in the file of a split; [] if they do not."""
    if path.name == LARGE:
        return changes_of_large_split(path, _listed(loaders, samples))
    kept = read_split(path)
    parts = {row.part for row in kept}  # earlier versions listed Kindling's loaders only
    parts |= {part for part, loader in loaders.items() if hasattr(loader, "sample_ids")}
    rows = [row for row in split_rows(loaders, samples) if row.part in parts]
    return changed_rows(kept, rows, functools.partial(_place, samples)) if kept else []


def refuse_overlap(loaders: Mapping[str, Any], samples: Mapping[str, Samples]) -> None:
    """Check that no sample is in both the training and the validation part.

    Raises:
        DataError: samples are in both.
    """
    sources = {getattr(loader, "source_of_ids", part) for part, loader in loaders.items()}
    indices = [getattr(one, "sample_indices", lambda: None)() for one in loaders.values()]
    if len(sources) > 1 or any(each is None for each in indices):
        return
    train, valid = map(torch.as_tensor, indices)
    highest = max((int(part.max()) for part in (train, valid) if len(part)), default=-1)
    trains = torch.zeros(1 + highest, dtype=torch.bool)
    trains[train] = True
    shared = valid[trains[valid]].tolist()
    if shared:
        names = getattr(samples["train"].dataset, "ids", None)
        first = shared[0] if names is None else names[shared[0]]
        text = f"{_samples(shared)} in both training and validation, such as {first}"
        raise DataError(f"the split overlaps: {text}")


def split_rows(loaders: Mapping[str, Any], samples: Mapping[str, Samples]) -> list[Row]:
    """Return a row for each sample with a known id."""
    rows: list[Row] = []
    for part, loader in loaders.items():
        found = samples.get(part)
        ids = _ids_of(loader, found)
        if ids is None:
            continue
        targets, contents = [""] * len(ids), [""] * len(ids)
        if found is not None:
            targets = found.target_texts()
            if found.contents is not None:
                contents = hex_texts(found.contents)
        rows += map(Row, [part] * len(ids), ids, targets, contents)
    return rows


def read_split(path: Path) -> list[Row]:
    """Return the rows of a ``split.csv``, also of an earlier version.

    Raises:
        DataError: the file is damaged.
    """
    place = 1
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if header not in ([*COLUMNS[:2]], [*COLUMNS]):
                raise DataError(f"{path}: damaged: line 1 does not name the columns")
            rows = []
            for cells in reader:
                place = reader.line_num
                if (
                    len(cells) != len(header)
                    or cells[0] not in PART_NAMES
                    or "\0" in "".join(cells)
                ):
                    raise DataError(f"{path}: damaged: line {place} is not a sample of the split")
                rows.append(Row(*cells))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged behind line {place}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {why(error)}") from error
    return rows


def changed_rows(
    then: Sequence[Row], now: Sequence[Row], label: Callable[[Row], str] = lambda row: row.id
) -> list[str]:
    """Describe how the rows of a run changed; an empty list if they did not.

    Args:
        label: returns the name of a current sample in a message.
    """
    before, after = ({(row.part, row.id): row for row in rows} for rows in (then, now))
    if before.keys() != after.keys():
        if all(row.content for row in (*then, *now)):  # ids are indices, which shift
            missing, new = _unmatched(then, now), _unmatched(now, then)
            return [
                f"{len(then)} samples then, {len(now)} now",
                *_missing_and_new(missing, new, label),
            ]
        return _changed_ids(before, after, label)
    lines = []
    if list(before) != list(after):
        lines.append("the samples are in another order")
    pairs = [(before[key], row) for key, row in after.items()]
    targets = [(old, row) for old, row in pairs if _differ(old.target, row.target)]
    contents = [(old, row) for old, row in pairs if _differ(old.content, row.content)]
    if contents and not _unmatched(then, now):
        n_moved = len({row for _, row in (*targets, *contents)})
        return [f"the samples are the same, but {n_moved} of {len(now)} have moved"]
    if targets:
        names = (f"{label(row)}: {old.target} then, {row.target} now" for old, row in targets)
        lines.append(f"{len(targets)} of {len(pairs)} targets differ ({_first_few(names)})")
    if contents:
        what = "inputs" if any(row.target for row in now) else "contents"
        text = f"the {what} of {len(contents)} of {len(pairs)} samples differ"
        lines.append(f"{text} ({_first_few(label(row) for _, row in contents)})")
    return lines


def _differ(one: str, other: str) -> bool:
    return bool(one and other) and one != other  # an empty cell is unknown


def _unmatched(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Return the rows whose target and content have no counterpart among the others."""
    left = Counter((row.target, row.content) for row in others)
    found = []
    for row in rows:
        left[row.target, row.content] -= 1
        if left[row.target, row.content] < 0:
            found.append(row)
    return found


def _changed_ids(
    before: Mapping[Key, Row], after: Mapping[Key, Row], label: Callable[[Row], str]
) -> list[str]:
    """Describe which ids are missing, new, or in the other part."""
    missing = [row for key, row in before.items() if key not in after]
    new = [row for key, row in after.items() if key not in before]
    part_then, part_now = ({row.id: row.part for row in rows} for rows in (missing, new))
    moved = [row for row in missing if row.id in part_now]
    lines = _missing_and_new(
        [row for row in missing if row.id not in part_now],
        [row for row in new if row.id not in part_then],
        label,
    )
    if moved:
        names = (f"{row.id}: {PART_NAMES[row.part]} then" for row in moved)
        lines.append(f"{_samples(moved)} in the other part ({_first_few(names)})")
    return lines


def _missing_and_new(
    missing: Sequence[Row], new: Sequence[Row], label: Callable[[Row], str]
) -> list[str]:
    lines = (
        [f"{_samples(missing)} missing ({_first_few(row.id for row in missing)})"]
        if missing
        else []
    )
    return lines + ([f"{_samples(new)} new ({_first_few(map(label, new))})"] if new else [])


def _samples(rows: Sequence[object]) -> str:
    return f"{len(rows)} samples are" if len(rows) > 1 else "1 sample is"


def changed_hashes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the kind and a description of each difference between hashes."""
    changes = []
    for part, name in PART_NAMES.items():
        before, after = then.get(part), now.get(part)
        if (before is None) != (after is None):
            text = "had no" if before is None else "has no"
            changes.append(("samples", f"the run {text} {name} data with hashes"))
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
    """Describe which class names are missing or new, or how their order changed."""
    missing, new = ([name for name in one if name not in other] for one, other in
                 ((then, set(now)), (now, set(then))))  # fmt: skip
    if not missing and not new:
        number = next(i for i, (a, b) in enumerate(zip(then, now, strict=True)) if a != b)
        text = f"class {number} was {then[number]!r} and is {now[number]!r}"
        return f"the classes are numbered in another order: {text}"
    parts = [f"{_first_few(map(repr, names))} {'is' if len(names) == 1 else 'are'} {state}"
             for names, state in ((missing, "missing"), (new, "new")) if names]  # fmt: skip
    return f"of the {len(then)} classes {' and '.join(parts)}"


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # a stream
        return None


def _ids_of(loader: Any, samples: Samples | None) -> list[str] | None:
    """Return the ids for ``split.csv``: those of the loader, names of samples, or indices."""
    if hasattr(loader, "sample_ids"):
        ids: list[str] | None = loader.sample_ids()
        return ids
    if samples is None:
        return None
    return samples.names or list(map(str, samples.indices.tolist()))


def _place(samples: Mapping[str, Samples], row: Row) -> str:
    """Return the id of a current sample, or its place if ids are indices."""
    found = samples.get(row.part)
    return row.id if found is None or found.has_names else found.place(int(row.id))


def _first_few(names: Iterable[str]) -> str:
    first = list(itertools.islice(names, MAX_SHOWN + 1))
    return ", ".join(first[:MAX_SHOWN]) + ", ..." * (len(first) > MAX_SHOWN)


def _advice(run: Path, kinds: Collection[str]) -> str:
    restart = f"start a new run from its weights: omit -r and set `model: {{weights: {run}}}`"
    if kinds in ({"classes"}, {"targets"}):
        return f"restore the labels; if they were corrected, add --allow-change; or {restart}"
    if kinds == {"classes", "targets"}:
        return (
            "the outputs of the model follow the former class indices, so --allow-change does not "
            "help: restore the names, or list them in `classes` in their former order; "
            f"or {restart}"
        )
    return (
        "other samples change the order, and some that were trained on may validate, so "
        f"--allow-change does not help: restore the data and the split, or {restart}"
    )
