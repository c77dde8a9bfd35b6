"""A loader for any data set, with caching, splits, sampling, transforms and normalization."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from base.base_data_loader import BaseDataLoader
from base.checkpoint.data_record import check_classes, class_names
from base.config.durations import RunLength
from base.data.protocols import HasImages, offered, underlying
from base.data.reading import find_get_batch
from base.data.splits import Division
from base.data.streams import refuse_stream
from base.datasets.cache.decoded import cached
from base.datasets.composed import check_data_set
from base.datasets.image_files import real_paths
from base.datasets.images import find_mode
from base.datasets.in_memory import in_memory
from base.datasets.mixing import single_mixers
from base.datasets.pipeline import GivenImages, Pipeline, TransformedDataset
from base.datasets.spatial_targets import IGNORED
from base.datasets.statistics import channel_statistics
from base.errors import DataError, nearest
from base.system.cores import usable_cores

if TYPE_CHECKING:
    from base.datasets.table_encoding import TargetScale
    from base.datasets.tables import CsvDataset

IMAGENET: dict[str, Sequence[float]] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CACHES = ("none", "memory", "disk")
COMPUTED = ("auto", "inputs")  # values of `normalize` computed from the data


class DatasetLoader(BaseDataLoader):
    """Loads batches of a data set with caching, splits, random transforms and normalization.

    Args:
        dataset: the data set to train on (and, with `split`, to validate on): Kindling's,
            torchvision's or your own. Samples are (image, target). The image is a PIL image, an
            array (height, width, channel) or a tensor (channel, height, width).
        split: the samples to hold out: `0.1`, `500`, `{valid: 0.1, stratify: true}`, or one of
            several folds, `{folds: 5, fold: 0, stratify: true}`.
        valid_dataset, test_dataset: separate validation and test data.
        transforms, valid_transforms: lists of transforms, for training and for evaluation.
        normalize: `auto` (mean and std of the training samples), `imagenet`, `model` (what a model
            of timm expects), `{mean: ..., std: ...}`, or null for values from 0 to 1. For a
            `CsvDataset`, `auto` also standardizes regression targets; `inputs` does not.
        mode: `RGB` or `grey`, to which your own or torchvision's images are converted.
        cache: `none`, or `memory` or `disk` to cache decoded pixels as uint8.
        cache_dir: the folder of caches on disk.
        sampling: `balanced`, or weights per class or per sample.
        sampler: chooses the training samples instead, such as `HardExampleSampler`.
        num_workers: the number of threads, or of processes if transforms draw from the global
            generators. `auto` uses the free cores. Data in memory need none.
        workers: `threads` or `processes`, to override the choice of `auto`.
    """

    def __init__(  # noqa: PLR0913
        self,
        dataset: Any,
        batch_size: int,
        shuffle: bool = True,
        split: float | Mapping[str, Any] | None = None,
        num_workers: int | str = "auto",
        *,
        valid_dataset: Any = None,
        test_dataset: Any = None,
        training: bool = True,
        transforms: Sequence[Callable[..., Any]] = (),
        valid_transforms: Sequence[Callable[..., Any]] = (),
        normalize: str | Mapping[str, Sequence[float]] | None = None,
        mode: str | None = None,
        cache: str = "none",
        cache_dir: str = ".cache",
        sampling: str | Sequence[float] | None = None,
        sampler: Any = None,
        workers: str = "auto",
        drop_last: bool = False,
        pin_memory: bool | str = "auto",
        prefetch_factor: int = 2,
        timeout: float = 300.0,
    ) -> None:
        if not training and test_dataset is None:
            raise DataError("no test data: give the loader a `test_dataset`")
        if split is not None and valid_dataset is not None:
            raise DataError("give `split` or a `valid_dataset`, not both")
        if cache not in CACHES:
            text = f"cache: one of {', '.join(CACHES)}, not {cache!r}"
            raise DataError(f"{text}{nearest(str(cache), CACHES)}")
        if mode is not None:
            find_mode(mode)
        self.cache, self.cache_dir = cache, Path(cache_dir)
        self._caches: dict[int, Any] = {}
        tested = None if test_dataset is None else self._source(test_dataset, mode, "test_dataset")
        self._is_test_alone = dataset is None and not training  # by `arguments_for_test`
        source = tested if self._is_test_alone else self._source(dataset, mode, "dataset")
        if split is not None:
            refuse_repeats(source)
        if tested is not None and not self._is_test_alone:
            check_apart(source, tested, "training", "test")
        self._mode, self._normalize = mode, normalize
        self._trained_on, self._tested, self._trains = (source, split), tested, training
        self._divided: tuple[int, Division] | None = None  # of the training data, by its seed
        self._own_valid = None
        if valid_dataset is not None:
            self._own_valid = self._source(valid_dataset, mode, "valid_dataset")
            check_apart(source, self._own_valid, "training", "validation")
        if not training:
            source, split, shuffle, drop_last = tested, None, False, False
            sampling, sampler = None, None
            self._own_valid, transforms = None, valid_transforms
        white = float(getattr(source, "white", 255.0))
        statistics = _given_statistics(normalize)
        self._pipelines = [Pipeline(x, white, **statistics) for x in (transforms, valid_transforms)]
        held_out = source if self._own_valid is None else self._own_valid
        super().__init__(
            TransformedDataset(self._cached(source), self._pipelines[0], mode),
            batch_size,
            shuffle,
            0 if split is None else split,
            num_workers,
            valid_dataset=TransformedDataset(self._cached(held_out), self._pipelines[1], mode),
            sampling=sampling,
            sampler=sampler,
            workers=workers,
            drop_last=drop_last,
            pin_memory=pin_memory,
            prefetch_factor=prefetch_factor,
            timeout=timeout,
        )
        self._check_transforms(source)

    def set_ignored(self, ignored: int | None) -> None:
        """Set the class number that fills masks beyond the image border: the one the loss ignores.

        Raises:
            DataError: the data set marks pixels without a class with another number.
        """
        parts: tuple[Any, Any] = (self.dataset, self.valid_dataset)
        for dataset, pipeline in zip(parts, self._pipelines, strict=True):
            own = getattr(dataset.reads_from, "ignore_index", None)
            if own is not None and ignored is not None and own != ignored:
                text = (
                    f"{dataset.name} marks pixels without a class by {own}, the loss by {ignored}"
                )
                raise DataError(f"{text}: give the loss `args: {{ignore_index: {own}}}`")
            known = own if ignored is None else ignored
            pipeline.ignored = IGNORED if known is None else known

    @property
    def mixes(self) -> str:
        """The names of the transforms that turn targets into class probabilities, or ""."""
        mixers = single_mixers(self._pipelines[0].mixers)
        return " and ".join(type(each).__name__ for each in mixers)

    def set_training_length(self, length: RunLength, n_batches: int) -> None:
        """Set the length of the training, for transforms that are off at its end.

        Args:
            n_batches: the number of batches of an epoch.
        """
        for mixer in single_mixers(self._pipelines[0].mixers):
            mixer.end_before(length, n_batches / len(self))

    @classmethod
    def missing_test_data(cls, args: Mapping[str, Any]) -> str:
        """Return the setting that provides test data, if it is missing."""
        is_given = args.get("test_dataset") is not None
        return "" if is_given else "`data_loader.args.test_dataset`"

    @classmethod
    def arguments_for_test(
        cls, args: Mapping[str, Any], record: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Remove the training data from the arguments if a record replaces them for testing."""
        is_known = args.get("normalize") not in COMPUTED or bool({"mean", "table"} & set(record))
        if "dataset" not in args or not is_known:
            return args
        needless = ("split", "valid_dataset", "sampling", "sampler")
        return {**{k: v for k, v in args.items() if k not in needless}, "dataset": None}

    def _compute_statistics(self) -> None:
        """Compute the statistics for `normalize: auto` from the training samples, once."""
        source, _ = self._trained_on
        if self._normalize not in COMPUTED or self._pipelines[0].is_normalised:
            return
        if _tables_of(source):
            return  # tables are standardized by their encoding
        assert source is not None, "without training data a record provides the statistics"
        trained_on = self._training_samples()
        white, n_threads = self._pipelines[0].white, usable_cores()
        source = self._cached(source)
        if find_get_batch(source) is None and offered(source, HasImages) is None:
            # In one thread, as the data set may draw from the global generators.
            source, n_threads = GivenImages(source, self._mode, self.seed), 1
        note = None if self._skip is None else self._note_bad
        found = channel_statistics(source, trained_on, white, n_threads, self.cache_dir, note)
        for pipeline in self._pipelines:
            pipeline.normalise(*found)

    def _training_samples(self) -> Tensor:
        """Return the indices of the training samples, also in a loader of other samples."""
        source, split = self._trained_on
        assert source is not None, "its callers need training data"
        if self._divided is None or self._divided[0] != self.seed:
            targets = getattr(source, "targets", None)
            self._divided = self.seed, Division(split, len(source), self.seed, targets)
        return self._divided[1].train

    def _use_statistics(self, record: Mapping[str, Any]) -> None:
        """Normalize by a record's mean and std if the config says `auto`."""
        if self._normalize in COMPUTED and "mean" in record:
            for pipeline in self._pipelines:
                pipeline.normalise(record["mean"], record["std"])

    @property
    def target_scale(self) -> TargetScale | None:
        """Converts predictions back to the unit of the targets, if these are standardized."""
        tables = _tables_of(underlying(self.dataset))
        return tables[0].target_scale if tables else None

    @property
    def input_text(self) -> str | None:
        """A description of the inputs, if they are columns of a table."""
        tables = _tables_of(underlying(self.dataset))
        return tables[0].input_text if tables else None

    def _check_transforms(self, source: Any) -> None:
        """Check before training that the transforms suit the data.

        Raises:
            DataError: one moves images but not their masks, or MixUp cannot mix the targets.
        """
        parts: tuple[Any, Any] = (self.dataset, self.valid_dataset)
        for each in parts:
            each.check()
        if self._pipelines[1].mixers:
            raise DataError("valid_transforms: MixUp and CutMix are for training: remove them")
        for mixer in single_mixers(self._pipelines[0].mixers):
            mixer.take_classes(source)

    def _divide(self) -> None:
        super()._divide()
        if self._trains and self._own_sampler is None:
            self._divided = self.seed, self._division
        self._fit_tables()
        if self._own_valid is not None:
            self._held_out_indices = torch.arange(len(self._own_valid))

    def _fit_tables(self) -> None:
        """Encode, fill in and standardize tables by the training samples, or by a record.

        Separate validation and test data use the same encoding.
        """
        source, _ = self._trained_on
        tables = _tables_of(source)
        if self._is_test_alone:
            return  # a record follows
        if source is not None and tables and not tables[0].has_record:
            trained_on = self._training_samples()
            scaled = self._normalize in COMPUTED, self._normalize == "auto"
            from base.datasets.tables import fit_tables  # a project may leave tables out

            fit_tables(source.table_parts(trained_on), *scaled)
        for other in (*_tables_of(self._own_valid), *_tables_of(self._tested)):
            if tables and not other.has_record:
                other.follow(tables[0].encoding)

    def _source(self, dataset: Any, mode: str | None, argument: str) -> Any:
        """Return the data set, converted to one in memory if torchvision holds it there anyway."""
        check_data_set(dataset, argument)
        refuse_stream(dataset)
        if mode is None:
            return in_memory(dataset) or dataset
        if find_get_batch(dataset) is not None or offered(dataset, HasImages) is not None:
            name = type(dataset).__name__
            raise DataError(f"mode: {name} sets the mode of its images itself; remove it here")
        return dataset

    def _cached(self, source: Any) -> Any:
        """Return the data set with cached images. Equal arguments give the same object."""
        if self.cache == "none" or find_get_batch(source) is not None:
            return source
        if offered(source, HasImages) is None:
            text = f"{type(source).__name__} is not a data set of image files"
            raise DataError(f"cache: {self.cache}: {text}; use ImageFolderDataset or the like")
        if id(source) not in self._caches:
            self._caches[id(source)] = cached(source, self.cache, self.cache_dir)
        return self._caches[id(source)]


def check_apart(one: Any, other: Any, name: str, other_name: str) -> None:
    """Check that two data sets share no file and number their classes alike.

    Raises:
        DataError: they share a file, or number their classes differently.
    """
    classes, other_classes = class_names(one), class_names(other)
    if classes is not None and other_classes is not None:
        check_classes(classes, other_classes, name, other_name)
    files = {path: i for i, path in enumerate(real_paths(getattr(one, "files", ())))}
    others = enumerate(real_paths(getattr(other, "files", ())))
    shared = [(files[path], i) for i, path in others if path in files]
    if shared:
        first, second = one.place(shared[0][0]), other.place(shared[0][1])
        text = f"{len(shared)} files are both {name} and {other_name} data"
        raise DataError(f"{text}: {first} is {second}")


def refuse_repeats(dataset: Any) -> None:
    """Check that joined data sets share no file, which a split could put on both sides.

    Raises:
        DataError: they share a file.
    """
    first: dict[str, int] = {}
    if len(getattr(dataset, "parts", ())) > 1:  # a single data set has checked already
        for index, path in enumerate(real_paths(getattr(dataset, "files", ()))):
            if first.setdefault(path, index) != index:
                text = f"{dataset.place(index)}: this file is in two of the joined data sets"
                raise DataError(f"{text}; `split` could put it on both sides: list it once")


def _tables_of(source: Any) -> list[CsvDataset]:
    """Return the tables of a data set. A project may exclude tables."""
    if not hasattr(source, "table_parts"):
        return []
    from base.datasets.tables import tables_of

    return tables_of(source)


def _given_statistics(normalize: Any) -> dict[str, Sequence[float]]:
    """Return mean and std if the config gives them. They are empty if computed or not needed."""
    if normalize is None or normalize in COMPUTED:
        return {}
    if normalize == "imagenet":
        return IMAGENET
    if not isinstance(normalize, Mapping) or set(normalize) != {"mean", "std"}:
        text = "normalize: auto, imagenet, inputs, {mean: ..., std: ...} or null"
        raise DataError(f"{text}, not {normalize!r}")
    lists: dict[str, Sequence[float]] = {
        k: v if isinstance(v, list) else [v] for k, v in normalize.items()
    }
    if not all(lists.values()) or not all(map(_is_number, [*lists["mean"], *lists["std"]])):
        raise DataError(f"normalize: mean and std are numbers, found {normalize!r}")
    if min(lists["std"]) <= 0:
        raise DataError(f"normalize: std must be above 0, found {lists['std']}")
    return lists


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
