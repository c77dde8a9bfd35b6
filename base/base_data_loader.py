"""A data loader whose order and randomness depend only on (seed, epoch, index)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
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
    ids_at,
    name_of,
    offered,
    underlying,
)
from base.data.reading import (
    BatchReader,
    Failure,
    Key,
    NoteBad,
    PartialBatch,
    Skip,
    raise_failure,
    without_bad_samples,
)
from base.data.replayed_loader import as_batches as as_batches
from base.data.sample_items import SampleItems
from base.data.sampler_state import SamplerState, has_state
from base.data.shares import WHOLE, Share
from base.data.splits import (
    Division,
    draw_weighted,
    number_repeats,
    permutation,
    sample_weights,
)
from base.data.streams import refuse_stream
from base.data.threads import pinned, read_ahead
from base.data.workers import begin_worker, identity, stop_workers, watched
from base.errors import DataError, nearest
from base.names.final_methods import refuse_overridden
from base.system.cores import usable_cores
from base.system.seeding import derive_generator, derive_seed, isolated_random_state

WORKERS = ("auto", "threads", "processes")
NO_SAMPLES = torch.empty(0, dtype=torch.int64)


class BaseDataLoader:
    """Splits a data set into training and validation samples and yields batches of either.

    The order depends on (seed, epoch). torch, numpy and Python are seeded for each sample from
    (seed, epoch, index), so an epoch is the same for any number of workers and any start position.
    A data set with ``get_batch(indices) -> batch`` (in memory, without randomness) and torch's
    `TensorDataset` are read a batch at a time in this process, regardless of `num_workers`.
    `base/data/protocols.py` lists all that a data set may offer.

    The validation samples are read from `valid_dataset` if given: the same samples without
    augmentation. `validation_split` is a fraction, a number or a mapping (see
    `base/data/splits.py`). `sampling` draws the training samples with replacement: ``balanced``,
    or weights per class or per sample. A `sampler` chooses them itself:
    ``draw(indices, generator)`` returns the order of an epoch from the training indices; or it
    yields indices as torch's samplers do, excluding validation samples. The state of a stateful
    sampler is saved with the training (see `base/data/sampler_state.py`).
    `num_workers` is a number or ``auto``: the free cores if reading needs workers. `workers` is
    ``threads``, ``processes`` or ``auto``, which chooses what suits the data.
    A `seed` given here is kept. Without one, order and split depend on `set_seed`.
    """

    replays = False
    has_own_loop = False  # set for a subclass that overrides `__iter__`, which is replayed

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
        self._pins_by_default = pin_memory == "auto"
        self.pin_memory = torch.cuda.is_available() if self._pins_by_default else bool(pin_memory)
        self.prefetch_factor = _at_least(1, prefetch_factor, "prefetch_factor")
        self.persistent_workers = bool(persistent_workers)  # "auto" means true
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
        self.batch_share = WHOLE
        self.n_own: int | None = None
        self._train_indices: Tensor | None = None  # those of the division, once it is needed
        self._held_out_indices: Tensor | None = None
        self._divide()
        if len(self) == 0:
            raise DataError(
                f"drop_last leaves no batch: batch_size is {batch_size}, "
                f"{type(dataset).__name__} has {self.n_samples} samples"
            )

    def _split_sampler(self, split: Any) -> tuple[Any, Any]:
        """Yours to override, as in pytorch-template: return the training and validation samplers.

        A custom training sampler is iterated again for each epoch, with all generators seeded.
        """
        return None, None

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        whole, rest = divmod(self.n_samples, self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the next epoch. Each loop over the loader has a new order."""
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        return self.batches(epoch * len(self), len(self))

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        """Yield `count` batches from batch `first` of the sequence of epochs 0, 1, 2, ..."""
        self._compute_statistics()
        if self.batch_share.size > 1:
            return self._batches_of_rank(first, count)
        batches = self._read(first, count)
        batches = batches if self._skip is None else without_bad_samples(batches, self._note_bad)
        return batches if self._items is None else self._items.added(batches)

    def shard(self, rank: int, size: int) -> None:
        """Read a rank's part of each batch from now on: its samples ``[rank::size]``.

        Positions, length, `batch_size` and `n_drawn` stay those of the global batches, so that any
        number of ranks reads each sample once in an epoch. This applies to the validation loader
        too. ``shard(0, 1)`` restores whole batches.

        `n_own` is then the number of samples of the last batch that belong to this rank: 0 if it
        has none and has borrowed the batch's first sample; None if batches are whole.
        """
        self.batch_share, self.n_own = Share.of_rank(rank, size), None
        if self._valid is not None:
            self._valid.shard(rank, size)

    def add_to_batches(self, rules: Rules) -> None:
        """Add sample ids and weights to batches, as ``batch:`` asks."""
        is_plain = self.collate_fn is default_collate
        self._items = SampleItems(rules, self.dataset, is_plain, self.pin_memory)
        if self.sampler_state is not None:
            self.sampler_state.places = self._items.places
        self.close()  # workers read this setting when they start

    def n_drawn(self, position: int) -> int:
        """Return the number of samples drawn for the batch at this position."""
        first = position % len(self) * self.batch_size
        return min(self.batch_size, self.n_samples - first)

    def skip_bad_samples(self, note: NoteBad, allowed: int, replace: bool) -> None:
        """Skip unreadable samples, or `replace` them by others. Report them to `note`."""
        own = self._indices[self._weights > 0] if self._is_weighted else self._indices
        own = own if self._own_sampler is None else self._order(0).unique()
        self._note_bad, self._skip = note, Skip(allowed, own if replace else None)
        self.close()  # workers read this setting when they start

    def _batches_of_rank(self, first: int, count: int) -> Iterator[Batch]:
        """Yield this rank's part of each batch, with `n_own` set to match.

        If all samples of a part are unreadable, and none replaces them, another sample is
        borrowed: each rank yields as many batches as the others.
        """
        drawn: deque[int] = deque()
        for batch in self._read(first, count, drawn):
            n_own, n_bad = drawn.popleft(), 0
            if isinstance(batch, PartialBatch):
                self._note_bad(batch.bad)
                is_replaced = self._skip is not None and self._skip.stand_ins is not None
                n_bad = 0 if is_replaced else len(batch.bad)
                batch = raise_failure(batch.batch)
            batch = self._borrowed() if batch is None else batch
            batch = batch if self._items is None else self._items.add(*batch)
            self.n_own = max(0, n_own - n_bad)
            yield batch
            del batch  # frees it before the next one is read

    def _borrowed(self) -> Batch:
        """Read the first readable sample of the data set."""
        reader = BatchReader(self.dataset, self.collate_fn, self._skip, self._items is not None)
        for index in range(len(self.dataset)):  # type: ignore[arg-type]
            batch = reader.__getitems__((self.seed, 0, [index]))
            if not isinstance(batch, PartialBatch):
                return raise_failure(batch)
        raise DataError(f"{name_of(self.dataset)}: none of its samples can be read")

    def _read(self, first: int, count: int, drawn: deque[int] | None = None) -> Iterator[Batch]:
        """Yield the batches of `_keys`, as they are read.

        Args:
            drawn: receives the number of samples of each batch that belong to this rank.
        """
        numbers = self._items is not None
        reader = BatchReader(self.dataset, self.collate_fn, self._skip, numbers)
        readers = self._readers(reader)
        n_workers = 0 if readers == "none" else self.num_workers
        as_lists = not reader.takes_tensors or (n_workers > 0 and readers == "processes")
        keys = self._keys(first, count, as_lists, reader.get_batch is None, drawn)
        if n_workers and readers == "threads":
            ahead = n_workers * self.prefetch_factor
            read = pinned(reader.__getitems__) if self.pin_memory else reader.__getitems__
            yield from read_ahead(read, keys, n_workers, ahead, self.timeout)
        elif n_workers or self.pin_memory:
            yield from self._stock_batches(reader, keys, n_workers)
        else:
            is_known = self._own_sampler is None and self._drawing is None
            n_together = reader.n_together(self.batch_size) if is_known else 1
            one_by_one = map(reader.__getitems__, keys)
            for batch in one_by_one if n_together == 1 else reader.read_together(keys, n_together):
                yield raise_failure(batch) if isinstance(batch, Failure) else batch
                del batch

    def split_validation(self) -> BaseDataLoader | None:
        """Return the validation loader, in fixed order, or None if no samples are held out."""
        if self._valid is None and len(self._valid_indices):
            self._valid = self._held_out(self)
            if self._items is not None:
                self._valid.add_to_batches(self._items.rules)
        return self._valid

    @classmethod
    def _held_out(cls, whole: BaseDataLoader) -> BaseDataLoader:
        """Construct the loader of the samples that another loader holds out, in fixed order.

        It has the same class and shares all attributes that a subclass has set.
        """
        loader = cls.__new__(cls)
        vars(loader).update(vars(whole))
        loader.shuffle, loader.drop_last, loader._is_held_out = False, False, True
        loader._valid, loader._stock, loader._items = None, None, None
        loader._set_part(whole.valid_dataset, whole._valid_indices, NO_SAMPLES)
        return loader

    @property
    def _indices(self) -> Tensor:
        """The sorted indices of the samples that an epoch reads."""
        if self._train_indices is None:
            with torch.inference_mode(False):  # the first use may be in an evaluation
                self._train_indices = self._division.train
        return self._train_indices

    @property
    def _valid_indices(self) -> Tensor:
        """The sorted indices of the samples that are held out."""
        if self._held_out_indices is None:
            with torch.inference_mode(False):
                self._held_out_indices = self._division.valid
        return self._held_out_indices

    def _set_part(self, dataset: Dataset[Any], indices: Tensor, valid_indices: Tensor) -> None:
        """Set the samples that an epoch reads, each once, and the samples that are held out."""
        self.dataset, self.n_samples = dataset, len(indices)
        self._train_indices, self._held_out_indices = indices, valid_indices
        self._own_sampler: Any = None  # yields the order of an epoch itself
        self._drawing: Any = None  # draws the order of the training samples
        self._is_weighted = False
        self.sampler_state: SamplerState | None = None
        self._shuffled: tuple[tuple[int, int], Tensor] | None = None

    @cached_property  # a loader of yours may set an attribute of this name
    def n_classes(self) -> int:
        """The number of classes that the data set names, for `${data_loader.n_classes}`."""
        classes = class_names(self.dataset)
        if classes is None:
            raise AttributeError(f"{name_of(self.dataset)} names no classes")
        return len(classes)

    def sample_indices(self) -> Tensor | None:
        """Return the sorted indices of an epoch's samples; None if a sampler chooses them."""
        return None if self._own_sampler is not None else self._indices

    def order_of_evaluation(self) -> Tensor:
        """Return the indices of the samples in the order in which an evaluation reads them."""
        return self._order(0)

    def sample_ids(self) -> list[str] | None:
        """Return the id (name or number) of each sample of an epoch, sorted by index."""
        if self._own_sampler is not None:
            return None
        named = offered(self.dataset, HasIds)
        if named is None:
            return list(map(str, self._indices.tolist()))
        return ids_at(named.ids, self._indices)

    @property
    def source_of_ids(self) -> int:
        """Return a number that is equal for loaders whose ids refer to the same data."""
        return id(underlying(self.dataset))

    def record(self) -> dict[str, Any]:
        """Return the data record: statistics, class names, image size and the data set's own record
        (see `base/checkpoint/data_record.py`).
        """
        self._compute_statistics()
        found: dict[str, Any] = {}
        if (classes := class_names(self.dataset)) is not None:
            found["classes"] = classes
        if (size := self._image_size()) is not None:
            found["size"] = size
        return {**found, **record_of(self.dataset)}

    def use_record(self, record: Mapping[str, Any]) -> None:
        """Use the statistics and class numbers in the record of the training data.

        Raises:
            DataError: the classes or their order differ.
        """
        classes = class_names(self.dataset)
        if classes is not None and "classes" in record:
            check_classes(record["classes"], classes, "training", name_of(self.dataset))
        self._use_statistics(record)
        for dataset in {id(each): each for each in (self.dataset, self.valid_dataset)}.values():
            use_record(dataset, record)

    def _compute_statistics(self) -> None:
        """Yours to override: compute statistics of the training data unless they are set."""

    def _use_statistics(self, record: Mapping[str, Any]) -> None:
        """Yours to override: take the result of `_compute_statistics` from a record."""

    def _image_size(self) -> list[int] | None:
        """Return the height and width of the model's first input image if that is cheap."""
        reader = BatchReader(self.valid_dataset, self.collate_fn)
        if not reader.takes_tensors:
            return None  # a user's `__getitem__`
        batch = reader.__getitems__((self.seed, 0, torch.zeros(1, dtype=torch.int64)))
        first: Any = batch[0] if isinstance(batch, list | tuple) and batch else batch
        return list(first.shape[2:]) if isinstance(first, Tensor) and first.dim() == 4 else None

    def set_seed(self, seed: int) -> None:
        """Set the seed of order, split and augmentation unless the constructor was given one."""
        if self._seed_is_given or seed == self.seed:
            return
        self.seed = seed
        if not self._is_held_out:
            self._divide()
        if self._valid is not None:
            self._valid.seed = seed
            self._valid._set_part(self.valid_dataset, self._valid_indices, NO_SAMPLES)

    def place_on(self, device: torch.device) -> None:
        """Move data in memory to the device if they fit there along with the training.

        Data that worker processes read stay: a forked process cannot use its parent's GPU. Without
        a GPU in use, `pin_memory: auto` does not pin batches, which would start CUDA.
        """
        if device.type != "cuda" and self._pins_by_default:
            self.pin_memory = False
            if self._items is not None:
                self._items.pin_memory = False
        data = offered(self.dataset, SupportsPlacing)
        if data is not None and self.readers() == "none" and data.place_on(device):
            self.pin_memory = False

    def readers(self) -> str:
        """Return the kind of workers: "none" (data in memory), "threads" or "processes"."""
        return self._readers(BatchReader(self.dataset, self.collate_fn))

    def _readers(self, reader: BatchReader) -> str:
        if self.workers == "auto" or (self.workers == "threads" and reader.readers == "processes"):
            return reader.readers  # threads share the random streams and may be ruled out
        return self.workers

    def how_read(self) -> str:
        """Return a short description of how batches are read, for the log."""
        readers = self.readers()
        if readers == "none":
            return "in memory, by the batch"
        return f"{self.num_workers} {readers}" if self.num_workers else "one by one, no workers"

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next ``iter(loader)``."""
        self._next_epoch = epoch

    def close(self) -> None:
        """Stop the workers. The next loop starts new ones."""
        stock, self._stock = self._stock, None
        stop_workers(getattr(stock, "_iterator", None))

    @property
    def sampler(self) -> Any:
        """The sampler of this loader, for code that needs its length or indices."""
        chooser = self._own_sampler if self._drawing is None else self._drawing
        return SubsetRandomSampler(self._indices.tolist()) if chooser is None else chooser

    @property
    def valid_sampler(self) -> Any:
        """The sampler of the validation samples, or None."""
        indices = self._valid_indices.tolist()
        return SubsetRandomSampler(indices) if indices else None

    def _divide(self) -> None:
        """Split the samples into training and validation."""
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
        self._set_part(self.dataset, NO_SAMPLES, NO_SAMPLES)
        self._division = Division(self.validation_split, n_samples, self.seed, targets)
        self._train_indices, self._held_out_indices = None, None
        self.n_samples = self._division.n_train
        self._take_sampler(self._given_sampler)
        self._is_weighted = self._all_weights is not None

    @cached_property
    def _all_weights(self) -> Tensor | None:
        """The relative sampling weight of each sample of the data set, if they differ."""
        targets = getattr(self.dataset, "targets", None)
        return sample_weights(self.sampling, targets, count_samples(self.dataset))

    @property
    def _weights(self) -> Tensor:
        """The relative sampling weights of an epoch's samples, (sample,)."""
        assert self._all_weights is not None
        return self._all_weights[self._indices]

    def is_given(self, sampler: Any) -> bool:
        """Return whether a sampler is the constructor's `sampler` argument."""
        return sampler is self._given_sampler

    def _take_sampler(self, sampler: Any) -> None:
        """Set the sampler of the training samples.

        Raises:
            DataError: it is not a sampler.
        """
        if sampler is None:
            return
        if isinstance(sampler, str | Mapping):  # these have a length and an iterator too
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
            raise DataError(f"sampler: {text} __iter__ and __len__, as torch's samplers do")
        self._keep_state_of(sampler)

    def _keep_state_of(self, sampler: Any) -> None:
        is_kept = has_state(sampler, self.is_given(sampler))
        self.sampler_state = SamplerState(sampler, self._order) if is_kept else None

    def _order(self, epoch: int) -> Tensor:
        """Return the indices of an epoch's samples in reading order."""
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
        if not self.shuffle and not self._is_weighted:
            return self._indices
        # Kept, as the first epoch is read twice: by the checks before it too.
        if self._shuffled is None or self._shuffled[0] != (self.seed, epoch):
            self._shuffled = None  # freed before the next one is drawn
            with torch.inference_mode(False):
                self._shuffled = (self.seed, epoch), self._shuffle(epoch)
        return self._shuffled[1]

    def _shuffle(self, epoch: int) -> Tensor:
        generator = derive_generator(self.seed, "order", epoch)
        if self._is_weighted:
            drawn = draw_weighted(self._weights, self.n_samples, generator)
            return self._indices.index_select(0, drawn)
        if (ordered := offered(self.dataset, SupportsOrder)) is not None:
            return ordered.shuffled_order(self._indices, generator)
        return self._indices.index_select(0, permutation(self.n_samples, generator))

    def _checked(self, order: Tensor, sampler: Any) -> Tensor:
        """Return a sampler's indices after checking that they are training samples.

        Raises:
            DataError: they are not, or their number differs from an epoch's.
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
            text = f"{name} gave sample {int(order[validates[order]][0])}, which is for validation:"
            raise DataError(f"{text} exclude the validation samples, or give a `valid_dataset`")
        return order.to(torch.int64)

    def _keys(
        self,
        first: int,
        count: int,
        as_lists: bool,
        may_repeat: bool,
        drawn: deque[int] | None = None,
    ) -> Iterator[Key]:
        """Yield the key of each batch, shuffling only the epochs needed.

        The length is added to an index drawn again in an epoch, for different augmentation.
        """
        order, order_epoch, key_epoch = NO_SAMPLES, -1, 0
        choosers = (self._own_sampler, self._drawing)
        is_drawn = self._is_weighted or any(each is not None for each in choosers)
        n_batches, size = len(self), self.batch_size
        for position in range(first, first + count):
            epoch, number = divmod(position, n_batches)
            if epoch != order_epoch:
                order, order_epoch = self._order(epoch), epoch
                key_epoch = 0 if self._is_held_out else epoch
                if is_drawn and may_repeat:
                    order = order + number_repeats(order) * len(self.dataset)  # type: ignore[arg-type]
            begin = number * size
            indices = order[begin : begin + size]
            if drawn is not None:
                drawn.append(self.batch_share.count_own(len(indices)))
                indices = self.batch_share.of(indices)
            yield self.seed, key_epoch, indices.tolist() if as_lists else indices

    def _stock_batches(
        self, reader: BatchReader, keys: Iterator[Key], n_workers: int
    ) -> Iterator[Batch]:
        """Read through torch's DataLoader, which provides workers and pinned memory."""
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
                generator=torch.Generator(),  # or loops would draw from the trainer's
            )
        self._handed.keys = keys
        batches = watched(self._stock, self.timeout, type(self.dataset).__name__)
        is_whole = False
        try:
            for batch in batches:
                yield batch
                del batch
                if self._handed.keys is not keys:
                    raise DataError("a second loop over this loader started before the first ended")
            is_whole = True
        finally:
            batches.close()
            if not is_whole:
                self.close()


class _HandedKeys:
    """The batch sampler of torch's DataLoader. Each loop reads the keys set before it."""

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
    """Return the length of a data set, which must be positive."""
    name = type(dataset).__name__
    refuse_stream(dataset)
    if not hasattr(dataset, "__len__"):
        raise DataError(f"{name} has no length; use torch's DataLoader for a stream")
    if len(dataset) == 0:
        raise DataError(f"{name} is empty: it has no samples")
    return len(dataset)


def _as_order(drawn: Any, sampler: Any) -> Tensor:
    """Return a sampler's indices as a tensor; raise DataError if they are not numbers."""
    try:
        return torch.as_tensor(drawn)
    except (TypeError, ValueError, RuntimeError) as error:
        text = f"{type(sampler).__name__} gave {type(drawn).__name__}, not the indices of samples"
        raise DataError(f"{text}: {error}") from error
