"""What is predicted: a loader of the samples that words name, and what each sample is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from base.datasets.image_files import image_suffixes, read_text, split_fields
from base.errors import DataError, UsageError, nearest
from base.prediction.array_samples import ARRAYS, array_loader, is_array
from base.prediction.file_loaders import (
    dataset_section,
    evaluation_section,
    file_hook,
    image_loader,
    image_settings,
    loader_of,
    own_loader,
)
from base.prediction.found_files import FoundFile, find_files
from base.prediction.trained_model import TrainedModel
from base.system.run_folder import must_exist

PATH_COLUMNS = ("file", "path", "image", "filename")
"""The columns of a table in which paths are looked for, if the run's config names none."""


class Unreadable(NamedTuple):
    """A sample that was left out, and why."""

    name: str
    reason: str


@dataclass
class Samples:
    """The samples to predict.

    ``names`` has what each is called: the column ``key`` of the results. ``columns`` are copied
    beside it. ``unreadable`` are those that were left out already.
    """

    loader: Any
    key: str
    names: Sequence[str]
    columns: dict[str, list[str]] = field(default_factory=dict)
    unreadable: list[Unreadable] = field(default_factory=list)
    files: Sequence[FoundFile] = ()


def open_samples(
    run: TrainedModel, words: Sequence[str | Path], batch_size: int | None = None
) -> Samples:
    """Return the samples that words name, prepared as the run's validation data are.

    Words are files, folders (all images in them) and patterns such as ``"images/*.jpg"``; a CSV or
    text file with paths of images; for a run trained on a table, one CSV file; or one npz, npy or
    IDX file with the inputs as the run's data set has them (``x.npz:name`` chooses an array); or
    tar shards. If the run's loader or data set has a function ``prepare_file(path)``, it reads
    any files.

    Raises:
        UsageError: there is nothing to predict, or the run has no use for these files.
    """
    try:
        if any(is_array(str(word)) for word in words) and file_hook(run) is None:
            return _arrays(run, str(_only(words, "array file")), batch_size)
        if "table" in run.record:
            return _table(run, str(_only(words, "table")), batch_size)
        if all(str(word).lower().endswith(".tar") for word in words) and file_hook(run) is None:
            return _shards(run, words, batch_size)
        return _files(run, words, batch_size)
    except DataError as error:
        raise UsageError(str(error)) from error


def _files(run: TrainedModel, words: Sequence[str | Path], batch_size: int | None) -> Samples:
    hook = file_hook(run)
    if hook is not None:
        files = find_files(words, ())
    else:
        endings = tuple(sorted(image_suffixes()))
        files = find_files(words, endings, lambda word: _listed(run, word))
    names = [file.path for file in files]
    if hook is None:
        return Samples(image_loader(run, names, batch_size), "file", names, files=files)
    return Samples(own_loader(run, names, hook, batch_size), "file", names, files=files)


def _arrays(run: TrainedModel, word: str, batch_size: int | None) -> Samples:
    loader = array_loader(run, word, batch_size)
    return Samples(loader, "sample", list(map(str, range(loader.n_samples))))


def _shards(run: TrainedModel, words: Sequence[str | Path], batch_size: int | None) -> Samples:
    from base.datasets.shards import ShardDataset  # a project may leave shards out

    mode, resize = image_settings(run)
    images = ShardDataset([str(word) for word in words], mode, resize)
    return Samples(loader_of(run, images, batch_size), "file", images.files)


def _table(run: TrainedModel, word: str, batch_size: int | None) -> Samples:
    from base.prediction.table_rows import table_loader  # a project may leave tables out

    if must_exist(word).is_dir():
        raise UsageError(f"{word}: a folder; this run was trained on a table: give a CSV file")
    loader, table, unreadable = table_loader(run, word, batch_size)
    names = list(map(str, table.lines))
    left_out = [Unreadable(f"line {line}", reason) for line, reason in unreadable]
    return Samples(loader, "line", names, table.others, left_out)


def _only(words: Sequence[str | Path], kind: str) -> str | Path:
    if len(words) != 1:
        raise UsageError(f"{len(words)} files: give one {kind} at a time")
    return words[0]


def _listed(run: TrainedModel, word: str) -> list[str] | None:
    """Return the paths in a list of files, which are relative to its folder; None for others."""
    suffix = Path(word).suffix.lower()
    if suffix in (".csv", ".tsv"):
        paths = _column_of_paths(run, word, "\t" if suffix == ".tsv" else None)
    elif suffix in (".txt", ".lst"):
        lines = [split_fields(line)[0] for line in read_text(word).split("\n")]
        paths = [fields[0] for fields in lines if fields]
    elif suffix in ARRAYS:
        raise UsageError(f"{word}: give images, or one array file")
    else:
        return None
    if not paths:
        raise UsageError(f"{word}: no paths in this list")
    root = dataset_section(evaluation_section(run)).get("args", {}).get("root")
    return [_below(Path(word).parent, root, path) for path in paths]


def _below(folder: Path, root: str | None, path: str) -> str:
    """Return a path relative to its list's folder, or to the data set's root if it is there."""
    first = folder / path
    if root is not None and not first.exists() and Path(root, path).exists():
        return str(Path(root, path))
    return str(first)


def _column_of_paths(run: TrainedModel, word: str, delimiter: str | None) -> list[str]:
    from base.datasets.table_columns import read_table  # a project may leave tables out

    args = dataset_section(evaluation_section(run)).get("args", {})
    table = read_table(word, delimiter or args.get("delimiter") or ",")
    wanted = [args["image"]] if isinstance(args.get("image"), str) else list(PATH_COLUMNS)
    column = next((name for name in wanted if name in table.columns), None)
    if column is None:
        known = nearest(wanted[0], table.columns) or f"; it has {', '.join(table.columns)}"
        text = f"no column {' or '.join(map(repr, wanted))} of paths"
        raise UsageError(f"{word}: {text}{known}")
    return table.column(column)
