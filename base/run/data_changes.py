"""``split.csv``, which samples train and which validate, and what has changed there on a resume.

With other samples the order of a run is another one, and some that have trained may validate. So
each checkpoint has the names of the classes and hashes of ids, targets and contents (see
`base/data/fingerprint.py`); ``split.csv`` has them sample by sample, to say which ones differ.
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
from base.errors import DataError, why
from base.names.object_references import References
from base.system.run_folder import run_folder_of
from logger.csv_writer import csv_text
from logger.files import open_file, put_aside, write_whole

if TYPE_CHECKING:
    from base.config import Config
    from base.training.experiment import Experiment

log = logging.getLogger("kindling")

COLUMNS = ("part", "id", "target", "content")
NAMES = {"train": "training", "valid": "validation"}
FEW = 3  # samples or classes that a message names
MOST_CONTENTS = 1_000_000  # samples; of more, split.csv has no hash of the inputs


Key = tuple[str, str]  # part and id


class Row(NamedTuple):
    """One sample in ``split.csv``; runs of earlier versions have the first two columns."""

    part: str
    id: str
    target: str = ""
    content: str = ""


def write_data_record(
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
    hashes = {part: found.digests for part, found in samples.items()}
    found = _sha256_of(path)
    is_damaged = bool(then) and found is not None and not _is_as_written(path, found, then)
    if is_damaged:
        aside = put_aside(path)
        text = "%s: damaged, not as this run wrote it; written again, and kept as %s"
        log.warning(text, path, aside.name)
    if found is None or is_damaged or hashes != then.get("samples"):
        rows = split_rows(loaders, samples)
        if rows:
            content = csv_text([COLUMNS, *rows]).encode()
            write_whole(path, content)
            found = hashlib.sha256(content).hexdigest()
    data = {
        "split_sha256": found,
        "record": record,
        "samples": hashes,
        "n_batches": {k: _length(one) for k, one in loaders.items() if one is not None},
        "batches_per_epoch": experiment.batches_per_epoch,
        "references": experiment.references.values,  # which gain those that are looked up later
    }
    write_whole(folder / "data.json", json.dumps(data, indent=2).encode() + b"\n")
    return data


def _is_as_written(path: Path, found: str, then: Mapping[str, Any]) -> bool:
    """Tell whether ``split.csv`` is what the run wrote, by its hash; earlier versions kept none."""
    if "split_sha256" in then:
        return bool(then["split_sha256"] == found)
    try:
        read_split(path)
    except DataError:
        return False
    return True


def _sha256_of(path: Path) -> str | None:
    """Return the hash of a file; None where there is none, empty where it cannot be read."""
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
    """Compare the data with those of a run, before anything else is tried on them.

    Raises:
        DataError: as `write_data_record`, which looks again once the checkpoint itself is verified.
    """
    loaders = {"train": experiment.train_loader, "valid": experiment.valid_loader}
    record = record_of(experiment.train_loader)
    path, then = run_folder_of(resume_from) / "split.csv", data_of(find_manifest(resume_from))
    if not then:
        refuse_scaled_targets(experiment.train_loader, resume_from)
    compare_split(path, loaders, record, then, allow_change)


def refuse_scaled_targets(train_loader: Any, checkpoint: Path) -> None:
    """Make sure that a checkpoint of an earlier version gets the targets that it was trained on.

    Raises:
        DataError: they would be standardised, which ``normalize: auto`` did not do then.
    """
    if getattr(train_loader, "target_scale", None) is not None:
        text = f"{checkpoint}: an earlier version trained it on targets in their own unit, but"
        text += " `normalize: auto` standardises those of a table now: add"
        raise DataError(f"{text} `--set data_loader.args.normalize=inputs`, which is what it was")


def record_to_resume(config: Config, resume_from: Path | None) -> Mapping[str, Any]:
    """Return the statistics that a run goes on with; {} where its data section is another now.

    They are not computed again: a file that was repaired meanwhile would change them.
    """
    if resume_from is None:
        return {}
    record = data_of(find_manifest(resume_from)).get("record", {})
    if _has_other_data(config, resume_from):
        return {}
    return {key: value for key, value in record.items() if key != "classes"}  # compared later


def references_to_resume(config: Config, resume_from: Path | None) -> References:
    """Return what looks up references to built objects; a run goes on with what they gave."""
    if resume_from is None:
        return References(config)
    kept = data_of(find_manifest(resume_from)).get("references")
    return References(config, kept, is_resumed=not _has_other_data(config, resume_from))


def _has_other_data(config: Config, resume_from: Path) -> bool:
    changed = [key for key, _, _ in differences(config, run_folder_of(resume_from))]
    return any(key.startswith("data_loader") for key in changed)


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
        then: what `write_data_record` returned for the run.

    Raises:
        DataError: a sample is in both parts, or there are other samples or labels.
    """
    samples = {part: found for part, one in loaders.items() if (found := samples_of(one))}
    refuse_overlap(loaders, samples)
    changes: list[tuple[str, str]] = []
    if then:
        hashes = {part: found.digests for part, found in samples.items()}
        changes = changed_hashes(then["samples"], hashes)
        one, other = (each.get("classes") for each in (then["record"], record))
        if one and other and one != other:
            changes.insert(0, ("classes", changed_classes(one, other)))
        if not changes:
            return samples
    kept, details = [], []
    try:
        kept = read_split(path) if path.exists() else []
    except DataError as error:
        if not then:
            raise
        details.append(str(error))  # the hashes have said that something differs
    if kept:
        parts = {row.part for row in kept}  # earlier versions knew of Kindling's loaders only
        parts |= {part for part, loader in loaders.items() if hasattr(loader, "sample_ids")}
        rows = [row for row in split_rows(loaders, samples) if row.part in parts]
        details += changed_rows(kept, rows, functools.partial(_place, samples))
    lines = [text for what, text in changes if what == "classes"]
    if not kept or not details:
        lines += [text for what, text in changes if what != "classes"]
    lines += details
    if lines:
        text = f"{path.parent}: its data have changed since it began: {'; '.join(lines)}"
        kinds = {what for what, _ in changes}
        can_be_allowed = kinds in ({"classes"}, {"targets"})  # both: the classes' numbers differ
        if not (can_be_allowed and allow_change):
            raise DataError(f"{text}; {_advice(path.parent, kinds)}")
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
    """Return the rows of a ``split.csv`` of this version or of an earlier one.

    Raises:
        DataError: it is damaged.
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
                if len(cells) != len(header) or cells[0] not in NAMES or "\0" in "".join(cells):
                    raise DataError(f"{path}: damaged: line {place} is not a sample of the split")
                rows.append(Row(*cells))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged behind line {place}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {why(error)}") from error
    return rows


def changed_rows(
    then: Sequence[Row], now: Sequence[Row], named: Callable[[Row], str] = lambda row: row.id
) -> list[str]:
    """Say how the samples of a run differ from those that it had; nothing where they do not.

    Args:
        named: what a message calls one of the samples that are there now.
    """
    before, after = ({(row.part, row.id): row for row in rows} for rows in (then, now))
    if before.keys() != after.keys():
        if all(row.content for row in (*then, *now)):  # ids are numbers, and say nothing here
            gone, new = _left_over(then, now), _left_over(now, then)
            return [f"{len(then)} samples then, {len(now)} now", *_gone_and_new(gone, new, named)]
        return _other_keys(before, after, named)
    lines = []
    if list(before) != list(after):
        lines.append("the samples are in another order")
    pairs = [(before[key], row) for key, row in after.items()]
    targets = [(old, row) for old, row in pairs if _differ(old.target, row.target)]
    contents = [(old, row) for old, row in pairs if _differ(old.content, row.content)]
    if contents and not _left_over(then, now):
        n_moved = len({row for _, row in (*targets, *contents)})
        return [f"the samples are the same, but {n_moved} of {len(now)} are at other places"]
    if targets:
        names = (f"{named(row)}: {old.target} then, {row.target} now" for old, row in targets)
        lines.append(f"{len(targets)} of {len(pairs)} targets differ ({_few(names)})")
    if contents:
        what = "inputs" if any(row.target for row in now) else "contents"
        text = f"the {what} of {len(contents)} of {len(pairs)} samples differ"
        lines.append(f"{text} ({_few(named(row) for _, row in contents)})")
    return lines


def _differ(one: str, other: str) -> bool:
    return bool(one and other) and one != other  # an empty cell: it is not known


def _left_over(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """Return the rows with a target and content that the others do not have as often."""
    left = Counter((row.target, row.content) for row in others)
    found = []
    for row in rows:
        left[row.target, row.content] -= 1
        if left[row.target, row.content] < 0:
            found.append(row)
    return found


def _other_keys(
    before: Mapping[Key, Row], after: Mapping[Key, Row], named: Callable[[Row], str]
) -> list[str]:
    """Say which ids are gone, new, or in the other part."""
    gone = [row for key, row in before.items() if key not in after]
    new = [row for key, row in after.items() if key not in before]
    part_then, part_now = ({row.id: row.part for row in rows} for rows in (gone, new))
    moved = [row for row in gone if row.id in part_now]
    lines = _gone_and_new(
        [row for row in gone if row.id not in part_now],
        [row for row in new if row.id not in part_then],
        named,
    )
    if moved:
        names = (f"{row.id}: {NAMES[row.part]} then" for row in moved)
        lines.append(f"{_samples(moved)} in the other part ({_few(names)})")
    return lines


def _gone_and_new(
    gone: Sequence[Row], new: Sequence[Row], named: Callable[[Row], str]
) -> list[str]:
    lines = [f"{_samples(gone)} gone ({_few(row.id for row in gone)})"] if gone else []
    return lines + ([f"{_samples(new)} new ({_few(map(named, new))})"] if new else [])


def _samples(rows: Sequence[Row]) -> str:
    return f"{len(rows)} samples are" if len(rows) > 1 else "1 sample is"


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


def _place(samples: Mapping[str, Samples], row: Row) -> str:
    """Return the id of a sample that is there now, or where it is if ids are only numbers."""
    found = samples.get(row.part)
    if found is None or found.names is not None or not hasattr(found.dataset, "place"):
        return row.id
    return str(found.dataset.place(int(row.id)))


def _few(names: Iterable[str]) -> str:
    first = list(itertools.islice(names, FEW + 1))
    return ", ".join(first[:FEW]) + ", ..." * (len(first) > FEW)


def _advice(run: Path, kinds: Collection[str]) -> str:
    anew = f"start over from the weights: leave out -r and write `model: {{weights: {run}}}`"
    if kinds in ({"classes"}, {"targets"}):
        return f"put the labels back; or, if they were corrected, add --allow-change; or {anew}"
    if kinds == {"classes", "targets"}:
        return (
            "the outputs of the model stand for the classes as they were numbered, so "
            "--allow-change does not help: put the names back, or have `classes` list them in the "
            f"order of then; or {anew}"
        )
    return (
        "with other samples the order is another, and some that have trained may validate, so "
        f"--allow-change does not help: put the data and the split back, or {anew}"
    )
