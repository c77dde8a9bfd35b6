"""The predictions for samples, a batch at a time: rows of a table, masks, or arrays."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.data.batch import map_leaves, tensors_in
from base.data.reading import BadSample
from base.datasets.images import image_shape
from base.errors import BatchError, DataError, OutOfMemoryError, UsageError
from base.network.layers import NoForward
from base.prediction.file_loaders import dataset_section, evaluation_section
from base.prediction.found_files import FoundFile
from base.prediction.masks import MaskFolder
from base.prediction.output import N_SHOWN, OutputFile, table_text
from base.prediction.samples import Samples, Unreadable
from base.prediction.task_columns import Cell, Table, chosen_classes, table_of
from base.prediction.trained_model import TrainedModel
from base.prediction.views import each_view, views_named
from base.system.resources import is_out_of_memory
from base.training.task import Task
from logger.files import as_file_error
from logger.progress import ProgressBar

KEEP_THE_FRAME = frozenset((
    "Resize", "ConvertImageDtype", "Grayscale", "Identity", "Normalize", "RGB", "ToDtype",
    "PILToTensor", "ToImage", "ToPureTensor", "ToTensor",
))  # fmt: skip
"""Transforms after which an image still shows all that its file does."""


NOT_FINITE = "the model returns NaN or infinite values"
OF_SAMPLES = ("names", "classes", "file")
"""Arrays of an npz file that are no predictions; `file` is a parameter of numpy's function."""
NOTEBOOK_WIDTH = 100  # characters of a line in a notebook's cell


class Predictions:
    """The predictions for samples. Iterating over them yields rows; `rows` has them as dicts.

    ``unreadable`` has the samples that were left out so far, each with the reason.

    Args:
        top_k: how many classes to name, the most probable first.
        threshold: the probability from which a label, or the second of two classes, is chosen.
        tta: average over views of the image: ``flip``, ``five_crop`` or ``multi_crop``.
        masks: the folder for masks of a segmentation, as PNG files.
        overwrite: whether masks that exist are replaced.
        progress: whether to draw a progress bar on stderr.

    Raises:
        UsageError: while iterating, as the task is known with the first predictions: an option
            does not apply to it, or no sample can be read.
    """

    def __init__(
        self,
        run: TrainedModel,
        samples: Samples,
        *,
        top_k: int = 1,
        threshold: float | None = None,
        tta: str | None = None,
        masks: Path | str | None = None,
        overwrite: bool = False,
        progress: bool = False,
    ) -> None:
        self.run, self.samples = run, samples
        self.unreadable: list[Unreadable] = list(samples.unreadable)
        self.task: Task | None = None
        self.columns: list[str] = []
        self._top_k, self._threshold = top_k, threshold
        self._views = [] if tta is None else views_named(tta)
        self._others = dict(samples.columns)
        self._progress = progress
        self._masks: MaskFolder | None = None
        if masks is not None:
            self._masks = MaskFolder(Path(masks), self._files(), overwrite)

    def __iter__(self) -> Iterator[list[Cell]]:
        """Yield a row for each sample that can be read: its name, other columns, predictions."""
        table: Table | None = None
        n_rows = 0
        for indices, scores in self.scores():
            if table is None:
                table = self._begin(scores)
            indices, scores = self._finite(indices, scores)
            if not indices:
                continue
            cells = table.cells(scores)
            if self._masks is not None:
                self._write_masks(self._masks, indices, scores)
            for index, row in zip(indices, cells, strict=True):
                others = [column[index] for column in self._others.values()]
                yield [self.samples.names[index], *others, *row]
                n_rows += 1
        if not n_rows:
            raise UsageError(f"{self.run.folder}: {NOT_FINITE} for all of these samples")

    def _finite(self, indices: list[int], scores: Tensor) -> tuple[list[int], Tensor]:
        """Leave out samples for which the model returns NaN or infinite values, and list them."""
        is_finite = (
            scores.isfinite().flatten(1).all(dim=1) if scores.dim() > 1 else scores.isfinite()
        )
        if bool(is_finite.all()):
            return indices, scores
        names, kept = self.samples.names, is_finite.tolist()
        lost = [index for index, is_kept in zip(indices, kept, strict=True) if not is_kept]
        self.unreadable += [Unreadable(names[index], NOT_FINITE) for index in lost]
        return [i for i, is_kept in zip(indices, kept, strict=True) if is_kept], scores[is_finite]

    @cached_property
    def rows(self) -> list[dict[str, Cell]]:
        """All rows, each as a dict of its columns."""
        rows = list(self)
        return [dict(zip(self.columns, row, strict=True)) for row in rows]

    def predict_all(self) -> None:
        """Predict all samples now; `rows` is then known."""
        assert self.rows

    def __repr__(self) -> str:
        rows = [list(row.values()) for row in self.rows[:N_SHOWN]]
        n_more = len(self.rows) - len(rows)
        more = f"\n  ... and {n_more:,} more rows, in `rows`" if n_more else ""
        return table_text(self.columns, rows, NOTEBOOK_WIDTH) + more

    def to_csv(self, path: Path | str, overwrite: bool = False) -> None:
        """Write all rows into a CSV file.

        Raises:
            UsageError: the file exists, or cannot be written.
        """
        with OutputFile(Path(path), overwrite) as file:
            rows = [list(row.values()) for row in self.rows]
            file.write_rows([self.columns, *rows])

    def to_npz(self, file: OutputFile) -> int:
        """Write the predictions as arrays into an open npz file; return the number of samples.

        ``predictions`` are probabilities, or values in the unit of the targets; several outputs
        have their own names. ``names`` has the name of each sample, ``classes`` those of classes.
        """
        import numpy as np

        parts: dict[str, list[Tensor]] = {}
        names: list[str] = []
        for indices, scores in self.scores():
            names += [self.samples.names[index] for index in indices]
            for name, tensor in _named(scores):
                name = f"{name}_predicted" if name in OF_SAMPLES else name
                parts.setdefault(name, []).append(tensor)
        try:
            arrays = {name: torch.cat(tensors).numpy() for name, tensors in parts.items()}
        except RuntimeError as error:
            text = "the predictions of these samples differ in shape, so they are not one array"
            raise UsageError(f"{text}: give samples of one size") from error
        classes = {"classes": list(self.task.classes)} if self.task and self.task.classes else {}
        try:
            np.savez(file.binary, names=np.array(names), **classes, **arrays)  # type: ignore[arg-type]
        except OSError as error:
            raise as_file_error(error, file.path) from error
        return len(names)

    def scores(self) -> Iterator[tuple[list[int], Any]]:
        """Yield the indices of some samples, and their predictions: probabilities, or values.

        Raises:
            UsageError: the model has no predictions for files, or no sample can be read.
            OutOfMemoryError: the batch is too large.
        """
        loader, n_samples = self.samples.loader, len(self.samples.names)
        n_read = n_bad = 0
        bar = ProgressBar(
            n_samples, description="predict", enabled=self._progress, stream=sys.stderr
        )

        def note(bad: list[BadSample]) -> None:
            nonlocal n_bad
            n_bad += len(bad)
            names = self.samples.names
            self.unreadable += [Unreadable(names[each.sample], each.reason) for each in bad]
            bar.update(len(bad))

        loader.skip_bad_samples(note, n_samples, replace=False)
        batches = self.run.batches(loader)
        with bar, closing(batches):  # type: ignore[type-var]  # a generator
            for ids, batch in self._sound(batches):
                indices = ids.tolist()
                yield indices, self._scores_of(batch)
                n_read += len(indices)
                bar.update(len(indices))
        if not n_read:
            first = self.unreadable[0]
            text = f"none of the {n_bad} files can be read; the first: " if n_bad > 1 else ""
            raise UsageError(f"{text}{first.name}: {first.reason}")

    def _sound(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield batches; explain the errors that new files can cause."""
        try:
            yield from batches
        except BatchError as error:
            raise UsageError(f"{error}; images of any size: --batch-size 1") from error
        except DataError as error:
            raise UsageError(str(error)) from error

    def _scores_of(self, batch: Any) -> Any:
        """Return the activated predictions of a batch, averaged over the views."""
        try:
            if not self._views:
                return self._activated(self.run.predict_batch(batch))
            total: Tensor | None = None
            for view, changed in zip(self._views, each_view(batch, self._views), strict=True):
                scores = self._activated(self.run.predict_batch(changed))
                scores = self._undone(scores, view.undo)
                total = scores if total is None else total + scores
            assert total is not None
            return total / len(self._views)
        except NoForward as error:
            name = type(self.run.trainer).__name__
            text = (
                f"{name} makes no predictions for files: it trains networks that generate samples"
            )
            raise UsageError(f"{self.run.folder}: {text}") from error
        except (RuntimeError, MemoryError) as error:
            raise self._explained(error, batch) from error

    def _activated(self, predictions: Any) -> Any:
        if self.task is None:
            self.task = self.run.task(predictions)
        if not isinstance(predictions, Tensor):
            return map_leaves(predictions, lambda x: x.detach() if isinstance(x, Tensor) else x)
        return self.task.probabilities(predictions.detach())

    def _undone(self, scores: Any, undo: Any) -> Tensor:
        assert self.task is not None
        if isinstance(scores, Tensor) and scores.dim() <= 2:
            return scores
        if self.task.name == "segmentation" and undo is not None:
            undone: Tensor = undo(scores)
            return undone
        what = "crops" if self.task.name == "segmentation" else "views"
        text = f"the predictions for {what} of an image cannot be averaged; this run is a"
        hint = ": use --tta flip" if what == "crops" else ""
        raise UsageError(f"--tta: {text} {self.task.name}{hint}")

    def _explained(self, error: Exception, batch: Any) -> Exception:
        """Return the error to raise for one of the model."""
        if is_out_of_memory(error):
            return OutOfMemoryError("out of memory: give a smaller --batch-size")
        expected = list(self.run.input_shape)
        given = next((list(each.shape[1:]) for each in tensors_in(batch)), expected)
        if not expected or given == expected:
            return error
        text = f"the model was trained on inputs of shape {tuple(expected)}, and these have"
        first = str(error).strip().splitlines()[0]
        return UsageError(f"{text} {tuple(given)}: {first}")

    def _begin(self, scores: Any) -> Table:
        """Choose the columns when the first predictions are known."""
        assert self.task is not None
        if not isinstance(scores, Tensor):
            kind = type(scores).__name__
            text = f"the predictions are a {kind} of several outputs, not a row of a table"
            raise UsageError(f"{text}: write arrays, -o predictions.npz")
        table = table_of(
            self.task, scores.shape, self._target_names(), self._top_k, self._threshold
        )
        if self._masks is not None:
            if self.task.name != "segmentation":
                text = f"masks are for segmentation, and this run is a {self.task.name}"
                raise UsageError(f"{self._masks.folder}: {text}: give a CSV file, -o FILE.csv")
            source = dataset_section(evaluation_section(self.run)).get("args", {})
            self._masks.begin(self.task.classes, source.get("colors"))
        taken = {self.samples.key, *table.columns}
        self._others = {k: v for k, v in self._others.items() if k not in taken}
        self.columns = _distinct([self.samples.key, *self._others, *table.columns])
        return table

    def _write_masks(self, masks: MaskFolder, indices: Sequence[int], scores: Tensor) -> None:
        classes = chosen_classes(scores, self._threshold)
        for index, mask in zip(indices, classes, strict=True):
            size = None
            if self.samples.files and self._shows_whole_images:
                size = image_shape(Path(self.samples.files[index].path))[1:]
            masks.write(index, mask, size)

    @cached_property
    def _shows_whole_images(self) -> bool:
        """Whether the run's transforms neither crop nor pad its validation images."""
        changes = evaluation_section(self.run)["args"].get("valid_transforms") or ()
        names = {each["type"] if isinstance(each, dict) else str(each) for each in changes}
        return names <= KEEP_THE_FRAME

    def _files(self) -> Sequence[FoundFile]:
        return self.samples.files or [FoundFile(name, name) for name in self.samples.names]

    def _target_names(self) -> list[str]:
        """Return the names of the targets of a regression, if the run knows them."""
        if "table" in self.run.record:
            return list(self.run.record["table"]["targets"])
        target = dataset_section(evaluation_section(self.run)).get("args", {}).get("target")
        named = [target] if isinstance(target, str) else target
        return list(map(str, named)) if isinstance(named, list) else []


def _named(scores: Any, name: str = "predictions") -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of nested predictions, with the keys that lead to it as its name."""
    if isinstance(scores, Tensor):
        yield name, scores
    elif isinstance(scores, dict):
        for key, part in scores.items():
            yield from _named(part, str(key) if name == "predictions" else f"{name}.{key}")
    elif isinstance(scores, list | tuple):
        for number, part in enumerate(scores):
            yield from _named(part, f"{name}_{number}")


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names, numbered where one occurs again."""
    found: dict[str, None] = {}
    n_uses: dict[str, int] = {}
    for name in names:
        other = name
        while other in found:
            n_uses[name] = n_uses.get(name, 1) + 1
            other = f"{name}_{n_uses[name]}"
        found[other] = None
    return list(found)
