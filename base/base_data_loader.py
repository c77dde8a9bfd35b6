"""Batches whose order and randomness follow from (seed, epoch, index) alone, from any position."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, default_collate

from base.checkpoint.data_record import check_classes, class_names, record_of, use_record
from base.data.batch import Rules
from base.data.protocols import (
    Batch,
    HasIds,
    SupportsOrder,
    SupportsPlacing,
    name_of,
    offered,
    underlying,
)
from base.data.reading import BatchReader, Key, NoteBad, Skip, raise_failure, without_bad_samples
from base.data.replayed_loader import as_batches as as_batches
from base.data.sample_items import SampleItems
from base.data.sampler_state import SamplerState, has_state
from base.data.splits import divide, draw_weighted, number_repeats, sample_weights
from base.data.streams import refuse_stream
from base.data.threads import pinned, read_ahead
from base.data.workers import begin_worker, identity, stop_workers, watched
from base.errors import DataError, nearest
from base.names.final_methods import refuse_overridden
from base.system.resources import usable_cores
from base.system.seeding import derive_generator, derive_seed, isolated_random_state

WORKERS = ("auto", "threads", "processes")
NO_SAMPLES = torch.empty(0, dtype=torch.int64)


class BaseDataLoader:
    """Divide a data set into training and validation, and give either in batches.

    The order is f(seed, epoch); torch, numpy and Python are seeded again for each sample from
    (seed, epoch, index). So an epoch is the same with any number of workers and from any start.
    A data set with ``get_batch(indices) -> batch`` (in memory, nothing random) and torch's own
    `TensorDataset` are read a whole batch at a time in this process, whatever `num_workers` says;
    `base/data/protocols.py` has all that a data set may offer.

    The validation part is read from `valid_dataset` where given: the same samples, not augmented.
    It is a share or a number of the samples, or a mapping (see `base/data/splits.py`); `sampling`
    draws the training samples with replacement: ``balanced``, or weights by class or by sample. A
    `sampler` chooses them itself: ``draw(indices, generator)`` gives the order of an epoch, of the
    indices of the training part; or it gives indices as torch's samplers do, of samples that do not
    validate. One with state is saved with the training (see `base/data/sampler_state.py`).
    `num_workers` is a number or ``auto``: the free cores, where reading needs them. They are
    `workers`: ``threads``, ``processes``, or by ``auto`` what serves these data best.
    A `seed` given here stays; without one, order and split follow `set_seed`.
    """

    replays = False
    has_own_loop = False  # set for a subclass with an `__iter__` of its own, which is replayed

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_overridden(cls, {})
        cls.has_own_loop = cls.__iter__ is not BaseDataLoader.__iter__

    def __init__(  # noqa: PLR0913  (the first six are pytorch-template's)
        self,
        dataset: Dataset[Any],
        batch_size: int,
        shuffle: bool,
        validation_split: float | Mapping[str, Any],
        num_workers: int | str,
        collate_fn: Callable[[list[Any]], Batch] = default_collate,
        *,
        valid_dataset: Dataset[Any] | None = None,
        sampling: str | Sequence[float] | None = None,
        sampler: Any = None,
        workers: str = "auto",
        seed: int | None = None,
        drop_last: bool = False,
        pin_memory: bool | str = "auto",
        prefetch_factor: int = 2,
        persistent_workers: bool | str = "auto",
        timeout: float = 300.0,
    ) -> None:
        self.dataset = dataset
        self.valid_dataset = dataset if valid_dataset is None else valid_dataset
        self.batch_size = _at_least(1, batch_size, "batch_size")
        self.shuffle = shuffle
        self.validation_split = validation_split
        self.num_workers = _count_workers(num_workers)
        if workers not in WORKERS:
            text = f"workers: one of {', '.join(WORKERS)}, not {workers!r}"
            raise DataError(f"{text}{nearest(str(workers), WORKERS)}")
        if sampler is not None and sampling is not None:
            raise DataError("give `sampling` or a `sampler`, not both")
        self.sampling, self.workers, self._given_sampler = sampling, workers, sampler
        self.collate_fn = collate_fn
        self.drop_last = drop_last
        self.pin_memory = torch.cuda.is_available() if pin_memory == "auto" else bool(pin_memory)
        self.prefetch_factor = _at_least(1, prefetch_factor, "prefetch_factor")
        self.persistent_workers = bool(persistent_workers)  # "auto" is yes
        self.timeout = timeout  # seconds to wait for a batch from a worker
        self.init_kwargs = {  # read by subclasses written for pytorch-template
            "dataset": dataset,
            "batch_size": batch_size,
            "shuffle": False,
            "collate_fn": collate_fn,
            "num_workers": num_workers,
        }
        self._seed_is_given = seed is not None
        self.seed = 0 if seed is None else seed
        self._next_epoch = 0
        self._is_held_out = False
        self._valid: BaseDataLoader | None = None
        self._stock: DataLoader[Batch] | None = None
        self._skip: Skip | None = None
        self._items: SampleItems | None = None
        self._divide()
        if len(self) == 0:
            raise DataError(
                f"drop_last leaves no batch: batch_size is {batch_size}, "
                f"{type(dataset).__name__} has {self.n_samples} samples"
            )

    def _split_sampler(self, split: Any) -> tuple[Any, Any]:
        """Yours to override, as in pytorch-template: samplers of the training and validation part.

        A training sampler of your own is asked again for each epoch, with all streams seeded.
        """
        return None, None

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        whole, rest = divmod(self.n_samples, self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def __iter__(self) -> Iterator[Batch]:
        """Yield the next epoch: each loop over the loader has an order of its own."""
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.batches(epoch * len(self), len(self))

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        """Yield `count` batches from batch `first` of the endless sequence epoch 0, 1, 2, ..."""
        self._compute_statistics()
        batches = self._read(first, count)
        batches = batches if self._skip is None else without_bad_samples(batches, self._note_bad)
        return batches if self._items is None else self._items.added(batches)

    def add_to_batches(self, rules: Rules) -> None:
        """Add ids and weights of their samples to batches, as ``batch:`` says."""
        is_plain = self.collate_fn is default_collate
        self._items = SampleItems(rules, self.dataset, is_plain, self.pin_memory)
        if self.sampler_state is not None:
            self.sampler_state.places = self._items.places
        self.close()  # workers know of it from their start on

    def n_drawn(self, position: int) -> int:
        """Return how many samples are drawn for the batch at this position."""
        first = position % len(self) * self.batch_size
        return min(self.batch_size, self.n_samples - first)

    def skip_bad_samples(self, note: NoteBad, allowed: int, replace: bool) -> None:
        """Leave out, or `replace` by others of this loader's, what cannot be read; `note` it."""
        own = self._indices if self._weights is None else self._indices[self._weights > 0]
        own = own if self._own_sampler is None else self._order(0).unique()
        self._note_bad, self._skip = note, Skip(allowed, own if replace else None)
        self.close()  # workers know of it from their start on

    def _read(self, first: int, count: int) -> Iterator[Batch]:
        numbers = self._items is not None
        reader = BatchReader(self.dataset, self.collate_fn, self._skip, numbers)
        readers = self._readers(reader)
        n_workers = 0 if readers == "none" else self.num_workers
        as_lists = not reader.takes_tensors or (n_workers > 0 and readers == "processes")
        keys = self._keys(first, count, as_lists, may_repeat=reader.get_batch is None)
        if n_workers and readers == "threads":
            ahead = n_workers * self.prefetch_factor
            read = pinned(reader.__getitems__) if self.pin_memory else reader.__getitems__
            yield from read_ahead(read, keys, n_workers, ahead, self.timeout)
        elif n_workers or self.pin_memory:
            yield from self._stock_batches(reader, keys, n_workers)
        else:
            for key in keys:
                yield raise_failure(reader.__getitems__(key))

    def split_validation(self) -> BaseDataLoader | None:
        """Return the loader of the held-out part, in fixed order, or None where there is none."""
        if self._valid is None and len(self._valid_indices):
            self._valid = self._held_out(self)
            if self._items is not None:
                self._valid.add_to_batches(self._items.rules)
        return self._valid

    @classmethod
    def _held_out(cls, whole: BaseDataLoader) -> BaseDataLoader:
        """Construct the loader of the held-out part of another one, in fixed order.

        It is of the same class and shares all that a subclass has set: settings, data, transforms.
        """
        loader = cls.__new__(cls)
        vars(loader).update(vars(whole))
        loader.shuffle, loader.drop_last, loader._is_held_out = False, False, True
        loader._valid, loader._stock, loader._items = None, None, None
        loader._set_part(whole.valid_dataset, whole._valid_indices, NO_SAMPLES)
        return loader

    def _set_part(self, dataset: Dataset[Any], indices: Tensor, valid_indices: Tensor) -> None:
        """Set which samples of a data set an epoch reads, each once, and which are held out."""
        self.dataset, self.n_samples = dataset, len(indices)
        self._indices, self._valid_indices = indices, valid_indices
        self._own_sampler: Any = None  # gives the order of an epoch by itself
        self._drawing: Any = None  # a sampler that is asked for the order of the training part
        self._weights: Tensor | None = None  # how often each sample is drawn, where that differs
        self.sampler_state: SamplerState | None = None

    def sample_indices(self) -> Tensor | None:
        """Return the indices of an epoch's samples, sorted; None where a sampler chooses them."""
        return None if self._own_sampler is not None else self._indices

    def sample_ids(self) -> list[str] | None:
        """Return the id of each sample of an epoch, sorted by place: its name, or its number."""
        if self._own_sampler is not None:
            return None
        places = self._indices.tolist()
        named = offered(self.dataset, HasIds)
        if named is None:
            return list(map(str, places))
        ids = named.ids
        return [ids[place] for place in places]

    @property
    def source_of_ids(self) -> int:
        """Return a number that is equal for loaders whose ids belong to the same data."""
        return id(underlying(self.dataset))

    def record(self) -> dict[str, Any]:
        """Return what is known of the data: statistics, class names, image size, and what the data
        set itself records (see `base/checkpoint/data_record.py`).
        """
        self._compute_statistics()
        found: dict[str, Any] = {}
        if (classes := class_names(self.dataset)) is not None:
            found["classes"] = classes
        if (size := self._image_size()) is not None:
            found["size"] = size
        return {**found, **record_of(self.dataset)}

    def use_record(self, record: Mapping[str, Any]) -> None:
        """Use what a record says of the training data: its statistics, its class numbers.

        Raises:
            DataError: the classes here are others, or in another order.
        """
        classes = class_names(self.dataset)
        if classes is not None and "classes" in record:
            check_classes(record["classes"], classes, "training", name_of(self.dataset))
        self._use_statistics(record)
        for dataset in {id(each): each for each in (self.dataset, self.valid_dataset)}.values():
            use_record(dataset, record)

    def _compute_statistics(self) -> None:
        """Yours to override: compute what batches need of all training data, if it is not there."""

    def _use_statistics(self, record: Mapping[str, Any]) -> None:
        """Yours to override: take from a record what `_compute_statistics` would compute."""

    def _image_size(self) -> list[int] | None:
        """Return height and width of a first image as the model sees it, where that is cheap."""
        reader = BatchReader(self.valid_dataset, self.collate_fn)
        if not reader.takes_tensors:
            return None  # a `__getitem__` of the user's own
        batch = reader.__getitems__((self.seed, 0, torch.zeros(1, dtype=torch.int64)))
        first: Any = batch[0] if isinstance(batch, list | tuple) and batch else batch
        return list(first.shape[2:]) if isinstance(first, Tensor) and first.dim() == 4 else None

    def set_seed(self, seed: int) -> None:
        """Set the seed of order, split and augmentation, unless one was given at the start."""
        if self._seed_is_given or seed == self.seed:
            return
        self.seed = seed
        if not self._is_held_out:
            self._divide()
        if self._valid is not None:
            self._valid.seed = seed
            self._valid._set_part(self.valid_dataset, self._valid_indices, NO_SAMPLES)

    def place_on(self, device: torch.device) -> None:
        """Move data in memory to the device, where they fit there with the training.

        Not where other processes read them: a forked process cannot use its parent's GPU.
        """
        data = offered(self.dataset, SupportsPlacing)
        if data is not None and self.readers() == "none" and data.place_on(device):
            self.pin_memory = False

    def readers(self) -> str:
        """Return what reads: "none" (the data are in memory), "threads" or "processes"."""
        return self._readers(BatchReader(self.dataset, self.collate_fn))

    def _readers(self, reader: BatchReader) -> str:
        if self.workers == "auto" or (self.workers == "threads" and reader.readers == "processes"):
            return reader.readers  # threads share the random streams: then they cannot serve
        return self.workers

    def how_read(self) -> str:
        """Return a few words on where batches come from."""
        readers = self.readers()
        if readers == "none":
            return "in memory, by the batch"
        return f"{self.num_workers} {readers}" if self.num_workers else "one by one, no workers"

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next ``iter(loader)`` gives."""
        self._next_epoch = epoch

    def close(self) -> None:
        """Stop the workers; the next loop starts new ones."""
        stock, self._stock = self._stock, None
        stop_workers(getattr(stock, "_iterator", None))

    @property
    def sampler(self) -> Any:
        """What chooses this loader's samples, for code that asks its length or indices."""
        chooser = self._own_sampler if self._drawing is None else self._drawing
        return SubsetRandomSampler(self._indices.tolist()) if chooser is None else chooser

    @property
    def valid_sampler(self) -> Any:
        """The same of the held-out part, or None where there is none."""
        indices = self._valid_indices.tolist()
        return SubsetRandomSampler(indices) if indices else None

    def _divide(self) -> None:
        """Choose which samples train and which validate."""
        self.n_samples = n_samples = count_samples(self.dataset)
        with isolated_random_state(derive_seed(self.seed, "split")):
            own, own_valid = self._split_sampler(self.validation_split)
            if own is not None:
                valid_indices = torch.tensor(sorted(own_valid or ()), dtype=torch.int64)
                self._set_part(self.dataset, NO_SAMPLES, valid_indices)
                self._own_sampler, self.n_samples = own, len(own)
                self._keep_state_of(own)
                return
        targets = getattr(self.dataset, "targets", None)
        parts = divide(self.validation_split, n_samples, self.seed, targets)
        self._set_part(self.dataset, *parts)
        self._take_sampler(self._given_sampler)
        weights = sample_weights(self.sampling, targets, n_samples)
        self._weights = None if weights is None else weights[self._indices]

    def is_given(self, sampler: Any) -> bool:
        """Return whether a sampler is the argument of this name."""
        return sampler is self._given_sampler

    def _take_sampler(self, sampler: Any) -> None:
        """Set the sampler that chooses from the training part.

        Raises:
            DataError: it is not a sampler.
        """
        if sampler is None:
            return
        if isinstance(sampler, str | Mapping):  # which have a length and can be run through
            text = (
                f"sampler: {sampler!r} is not a sampler: name its class, `sampler: {{type: NAME}}`"
            )
            raise DataError(text)
        if callable(getattr(sampler, "draw", None)):
            self._drawing = sampler
        elif hasattr(sampler, "__iter__") and hasattr(sampler, "__len__"):
            self._own_sampler, self.n_samples = sampler, len(sampler)
        else:
            text = f"{type(sampler).__name__} has neither draw(indices, generator) nor"
            raise DataError(f"sampler: {text} __iter__ and __len__, as torch's samplers have")
        self._keep_state_of(sampler)

    def _keep_state_of(self, sampler: Any) -> None:
        is_kept = has_state(sampler, self.is_given(sampler))
        self.sampler_state = SamplerState(sampler, self._order) if is_kept else None

    def _order(self, epoch: int) -> Tensor:
        """Return the indices of an epoch's samples, in the order in which they are read."""
        if self.sampler_state is not None:
            self.sampler_state.begin(epoch)
        if self._own_sampler is not None:
            with isolated_random_state(derive_seed(self.seed, "order", epoch)):
                drawn = list(self._own_sampler)
            is_given = self._own_sampler is self._given_sampler
            if not is_given:
                return torch.tensor(drawn, dtype=torch.int64)
            return self._checked(_as_order(drawn, self._own_sampler), self._own_sampler)
        if self._drawing is not None:
            generator = derive_generator(self.seed, "order", epoch)
            order = _as_order(self._drawing.draw(self._indices, generator), self._drawing)
            return self._checked(order, self._drawing)
        if not self.shuffle and self._weights is None:
            return self._indices
        generator = derive_generator(self.seed, "order", epoch)
        if self._weights is not None:
            return self._indices[draw_weighted(self._weights, self.n_samples, generator)]
        if (ordered := offered(self.dataset, SupportsOrder)) is not None:
            return ordered.shuffled_order(self._indices, generator)
        return self._indices[torch.randperm(self.n_samples, generator=generator)]

    def _checked(self, order: Tensor, sampler: Any) -> Tensor:
        """Return the indices that a sampler gave, if they are those of training samples.

        Raises:
            DataError: they are not, or are not as many as an epoch has.
        """
        name, n_all = type(sampler).__name__, len(self.dataset)  # type: ignore[arg-type]
        if order.dim() != 1 or order.is_floating_point() or len(order) != self.n_samples:
            text = f"{name} gave {tuple(order.shape)} {order.dtype}, but an epoch has"
            raise DataError(f"{text} {self.n_samples} indices")
        is_wrong = (order < 0) | (order >= n_all)
        if is_wrong.any():
            text = f"{name} gave index {int(order[is_wrong][0])}, but there are {n_all} samples"
            raise DataError(f"{text}, counted from 0")
        validates = torch.zeros(n_all, dtype=torch.bool)
        if underlying(self.dataset) is underlying(self.valid_dataset):
            validates[self._valid_indices] = True
        if validates[order].any():
            text = f"{name} gave sample {int(order[validates[order]][0])}, which validates: leave"
            raise DataError(f"{text} the validation samples out, or give a `valid_dataset`")
        return order.to(torch.int64)

    def _keys(self, first: int, count: int, as_lists: bool, may_repeat: bool) -> Iterator[Key]:
        """Yield the key of each batch; only the epochs touched are shuffled.

        A sample that is drawn again in an epoch gets the length added, for another random change.
        """
        order, order_epoch = NO_SAMPLES, -1
        choosers = (self._weights, self._own_sampler, self._drawing)
        is_drawn = any(each is not None for each in choosers)
        for position in range(first, first + count):
            epoch, number = divmod(position, len(self))
            if epoch != order_epoch:
                order, order_epoch = self._order(epoch), epoch
                if is_drawn and may_repeat:
                    order = order + number_repeats(order) * len(self.dataset)  # type: ignore[arg-type]
            indices = order[number * self.batch_size : (number + 1) * self.batch_size]
            key_epoch = 0 if self._is_held_out else epoch
            yield self.seed, key_epoch, indices.tolist() if as_lists else indices

    def _stock_batches(
        self, reader: BatchReader, keys: Iterator[Key], n_workers: int
    ) -> Iterator[Batch]:
        """Read through torch's DataLoader, which has the workers and the pinned memory."""
        if self._stock is None:
            self._handed = _HandedKeys()
            self._stock = DataLoader(
                reader,  # type: ignore[arg-type]
                batch_sampler=self._handed,  # type: ignore[arg-type]
                collate_fn=identity,
                num_workers=n_workers,
                pin_memory=self.pin_memory,
                prefetch_factor=self.prefetch_factor if n_workers else None,
                persistent_workers=self.persistent_workers and n_workers > 0,
                worker_init_fn=begin_worker,
                generator=torch.Generator(),  # else each loop draws from the trainer's stream
            )
        self._handed.keys = keys
        batches = watched(self._stock, self.timeout, type(self.dataset).__name__)
        is_whole = False
        try:
            for batch in batches:
                yield batch
                del batch
                if self._handed.keys is not keys:
                    raise DataError("a second loop over this loader began before the first ended")
            is_whole = True
        finally:
            batches.close()
            if not is_whole:
                self.close()


class _HandedKeys:
    """The batch sampler of torch's DataLoader: each loop reads the keys handed over before it."""

    keys: Iterator[Key] = iter(())

    def __iter__(self) -> Iterator[Key]:
        return self.keys


def _at_least(least: int, value: int, name: str) -> int:
    if value < least:
        raise DataError(f"{name} must be at least {least}, not {value}")
    return value


def _count_workers(num_workers: int | str) -> int:
    if num_workers == "auto":
        return usable_cores()
    if not isinstance(num_workers, int):
        raise DataError(f"num_workers: a whole number or 'auto', not {num_workers!r}")
    return _at_least(0, num_workers, "num_workers")


def count_samples(dataset: Any) -> int:
    """Return the length of a data set, which must have one above 0."""
    name = type(dataset).__name__
    refuse_stream(dataset)
    if not hasattr(dataset, "__len__"):
        raise DataError(f"{name} has no length; give a stream to torch's own DataLoader instead")
    if len(dataset) == 0:
        raise DataError(f"{name} is empty: it has no samples")
    return len(dataset)


def _as_order(drawn: Any, sampler: Any) -> Tensor:
    """Return what a sampler has drawn as a tensor; raise DataError if these are not numbers."""
    try:
        return torch.as_tensor(drawn)
    except (TypeError, ValueError, RuntimeError) as error:
        text = f"{type(sampler).__name__} gave {type(drawn).__name__}, not the indices of samples"
        raise DataError(f"{text}: {error}") from error
