"""Optional abilities of data sets and loaders, besides ``__len__``, ``__getitem__``, ``__iter__``.

Each ability is a Protocol. A class with its members supports it without inheriting from it.
`offered` checks for one::

    if (named := offered(dataset, HasIds)) is not None:
        first = named.ids[0]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

Batch = Any  # the result of the data set and collate_fn
Ability = TypeVar("Ability")


def offered(thing: Any, ability: type[Ability]) -> Ability | None:
    """Return a data set or loader if it has all members of a Protocol, else None."""
    return thing if all(hasattr(thing, name) for name in members(ability)) else None


def members(ability: Any) -> tuple[str, ...]:
    """Return the names of a Protocol's attributes and methods."""
    own = [each for each in ability.__mro__ if each not in (Protocol, Generic, object)]
    names = [name for each in own for name in (*vars(each), *vars(each).get("__annotations__", ()))]
    return tuple(dict.fromkeys(name for name in names if not name.startswith("_")))


def underlying(dataset: Any) -> Any:
    """Return the data set that a wrapper such as `TransformedDataset` reads, or ``dataset`` itself.

    A wrapper stores it as ``reads_from``.
    """
    return getattr(dataset, "reads_from", dataset)


def name_of(dataset: Any) -> str:
    """Return the name of a data set for error messages: its ``name``, or its class."""
    return str(getattr(dataset, "name", type(dataset).__name__))


# --- Data sets: how samples are read -------------------------------------------------------------


class SupportsBatches(Protocol):
    """Reads many samples at once from memory, without drawing random numbers.

    `BaseDataLoader` then needs no workers. Otherwise samples are read and collated one by one.
    """

    def get_batch(self, indices: Tensor) -> Batch:
        """Return the collated samples. ``indices`` are (sample,) int64."""


class SupportsRandomBatches(Protocol):
    """Reads many samples at once, with randomness that depends only on (seed, epoch, index).

    Otherwise torch's, numpy's and Python's generators are seeded from these for each sample.
    """

    @property
    def readers(self) -> str:
        """The fastest way to read: "none" (in this process), "threads" or "processes"."""

    @property
    def uses_streams(self) -> bool:
        """Whether reading draws from torch's, numpy's or Python's global generators."""

    def get_random_batch(self, indices: Tensor, seed: int, epoch: int) -> Batch:
        """Return these samples. An index beyond the length redraws sample ``index % length``."""


class SupportsReadingTogether(SupportsRandomBatches, Protocol):
    """Reads several batches of an epoch in less time together than one after another."""

    def n_together(self, batch_size: int) -> int:
        """Return how many batches to read at once; 1 for one at a time."""

    def get_random_batches(self, parts: Sequence[Tensor], seed: int, epoch: int) -> Iterator[Batch]:
        """Yield what `get_random_batch` returns for each of the parts, in their order."""


class SupportsOrder(Protocol):
    """Chooses the order of an epoch, as sequentially read files need.

    Otherwise a shuffled epoch is a random permutation.
    """

    def shuffled_order(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``indices``, (sample,) int64, in the order of an epoch."""


class SupportsPlacing(Protocol):
    """Can move its data to the training device if they fit. Otherwise they stay on the CPU."""

    def place_on(self, device: torch.device) -> bool:
        """Move the data. Return whether batches now come from the device."""


# --- Data sets: information about the samples ----------------------------------------------------


class HasIds(Protocol):
    """Names its samples, for ``split.csv`` and for the comparison on resume.

    Otherwise inputs in memory are hashed instead. Set ``ids_are_numbers = True`` to hash them
    too if ids are only running numbers.
    """

    ids: Sequence[str]


def ids_at(ids: Sequence[str], places: Tensor) -> list[str]:
    """Return the ids of some samples. Ids made on demand have ``texts_at(places)``, for speed."""
    texts_at = getattr(ids, "texts_at", None)  # pandas has `at`
    if texts_at is None:
        return [ids[place] for place in places.tolist()]
    found: list[str] = texts_at(places)
    return found


class HasTargets(Protocol):
    """Has all targets, (sample, ...), without reading samples: for ``stratify``, balanced
    sampling and the comparison on resume. Otherwise the first two are errors.
    """

    targets: Any


class HasTargetHash(Protocol):
    """Has targets in separate files, such as masks, which are compared by a hash on resume."""

    def target_hash(self, index: int) -> int:
        """Return a 64-bit hash of a target."""


class HasClasses(Protocol):
    """Names its classes in order of their numbers. Checkpoints store them, and training,
    validation and test data must agree on them.
    """

    classes: Sequence[str]


class HasPlaces(Protocol):
    """Locates a sample for error messages. Otherwise they give its number."""

    def place(self, index: int) -> str:
        """Return a location such as ``train.txt:4: daisy/03.jpg``."""


class HasSampleNumbers(Protocol):
    """Has numeric columns, which ``batch.weight`` may name. Otherwise attributes are used."""

    def sample_numbers(self, name: str) -> Any:
        """Return one number per sample, (sample,), or None if the column does not exist."""


class HasRecord(Protocol):
    """Derives information from the training data that other data of the same model need.

    Loaders may have both methods too. Otherwise a checkpoint stores only the classes.
    """

    def record(self) -> dict[str, Any]:
        """Return it as plain JSON data, to be stored in checkpoints."""

    def use_record(self, record: Mapping[str, Any]) -> None:
        """Use the record of the training data. Called before the first batch."""


class HasImages(Protocol):
    """Decodes images itself. Otherwise the first item of a sample is the image."""

    def image(self, index: int) -> Tensor:
        """Return an image: uint8 (channel, height, width)."""


class Cacheable(HasImages, HasIds, HasPlaces, Protocol):
    """Decodes image files whose pixels `cache` can store. Otherwise ``cache`` is an error."""

    def __len__(self) -> int: ...

    def image_shape(self, index: int) -> tuple[int, int, int]:
        """Return the shape of an image, read from the file's header."""

    def fingerprint(self) -> str:
        """Return a hash that changes if a file, or the way it is decoded, changes."""


# --- Loaders -------------------------------------------------------------------------------------


class SupportsPositions(Protocol):
    """Yields batches from any position, so that a run can resume in the middle of an epoch.

    Any other loader is wrapped in a `ReplayedLoader`, which draws and drops the batches before
    the position.
    """

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        """Yield ``count`` batches from batch ``first`` of the sequence of epochs 0, 1, 2, ..."""


class SupportsClosing(Protocol):
    """Has workers or files to close after the loop."""

    def close(self) -> None:
        """Close them. The next loop opens them again."""


class SupportsSeeding(Protocol):
    """Draws its order from a seed. Without a seed argument, the config's seed is set."""

    def set_seed(self, seed: int) -> None:
        """Use this seed from now on."""


class SupportsSharing(Protocol):
    """Reads a rank's part of each batch by itself. Otherwise it is cut from the whole batch."""

    n_own: int | None
    """The number of samples of the last batch that belong to this rank."""

    def shard(self, rank: int, size: int) -> None:
        """Yield the samples ``[rank::size]`` of each batch from now on, or any one if none is left.

        Length and positions stay those of the whole batches.
        """


class SupportsSkipping(Protocol):
    """Can skip unreadable samples. Otherwise ``on_bad_sample: skip`` is an error."""

    n_samples: int

    def skip_bad_samples(
        self, note: Callable[[list[Any]], None], allowed: int, replace: bool
    ) -> None:
        """Skip or replace unreadable samples and report each to ``note``."""


class HasSamples(Protocol):
    """Lists the samples of an epoch, for ``split.csv`` and for the comparison on resume."""

    @property
    def source_of_ids(self) -> int:
        """A number that is equal for loaders whose ids refer to the same data."""

    def sample_indices(self) -> Tensor | None:
        """Return the sorted indices of an epoch's samples; None if a sampler chooses them."""

    def sample_ids(self) -> list[str] | None:
        """Return the ids of these samples."""


class HasCounts(Protocol):
    """Counts the samples of a batch itself. Otherwise the shapes of a batch determine the count."""

    def count_samples(self, batch: Batch) -> int:
        """Return the number of samples of a batch."""
