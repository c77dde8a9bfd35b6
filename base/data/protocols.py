"""What data sets and loaders may offer beside ``__len__``, ``__getitem__`` and ``__iter__``.

Each ability is a Protocol: a class of yours that has its members is used for it, and need not
inherit from it. `offered` asks for one::

    if (named := offered(dataset, HasIds)) is not None:
        first = named.ids[0]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

Batch = Any  # whatever the data set and collate_fn make of some samples
Ability = TypeVar("Ability")


def offered(thing: Any, ability: type[Ability]) -> Ability | None:
    """Return a data set or a loader if it has all members of a Protocol, else None."""
    return thing if all(hasattr(thing, name) for name in members(ability)) else None


def members(ability: Any) -> tuple[str, ...]:
    """Return the names of a Protocol's attributes and methods."""
    own = [each for each in ability.__mro__ if each not in (Protocol, Generic, object)]
    names = [name for each in own for name in (*vars(each), *vars(each).get("__annotations__", ()))]
    return tuple(dict.fromkeys(name for name in names if not name.startswith("_")))


def underlying(dataset: Any) -> Any:
    """Return the data set that a wrapper such as `TransformedDataset` reads, or the thing itself.

    A wrapper has it as ``reads_from``.
    """
    return getattr(dataset, "reads_from", dataset)


def name_of(dataset: Any) -> str:
    """Return what errors call a data set: its ``name``, or its class."""
    return str(getattr(dataset, "name", type(dataset).__name__))


# --- Data sets: how samples are read -------------------------------------------------------------


class SupportsBatches(Protocol):
    """Reads many samples at once from memory, without drawing random numbers.

    `BaseDataLoader` then needs no workers. Without it samples are read and collated one by one.
    """

    def get_batch(self, indices: Tensor) -> Batch:
        """Return what collating these samples would give; ``indices`` are (sample,) int64."""


class SupportsRandomBatches(Protocol):
    """Reads many samples at once; what is random follows from (seed, epoch, index) alone.

    Without it each sample is read with torch's, numpy's and Python's generators seeded from these.
    """

    @property
    def readers(self) -> str:
        """What reads fastest: "none" (this process), "threads" or "processes"."""

    @property
    def uses_streams(self) -> bool:
        """Whether torch's, numpy's or Python's global generators are drawn from."""

    def get_random_batch(self, indices: Tensor, seed: int, epoch: int) -> Batch:
        """Return these samples; an index of the length and more is that sample, drawn again."""


class SupportsOrder(Protocol):
    """Chooses the order of an epoch, as files that are read in one pass need.

    Without it a shuffled epoch is a random permutation.
    """

    def shuffled_order(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Return ``indices``, (sample,) int64, in the order in which an epoch reads them."""


class SupportsPlacing(Protocol):
    """Can move its data to the training's device, where they fit. Without it they stay."""

    def place_on(self, device: torch.device) -> bool:
        """Move the data; return whether batches now come from the device."""


# --- Data sets: what is known of the samples -----------------------------------------------------


class HasIds(Protocol):
    """Names its samples, for ``split.csv`` and for the comparison on resume.

    Without it inputs in memory are hashed instead. ``ids_are_numbers = True`` asks
    for that too, where ids only count.
    """

    ids: Sequence[str]


class HasTargets(Protocol):
    """Knows all targets, (sample, ...), without reading a sample: for ``stratify``, balanced
    sampling and the comparison on resume. Without it the first two are errors.
    """

    targets: Any


class HasTargetHash(Protocol):
    """Has targets that are files of their own, such as masks, which a resume compares by a hash."""

    def target_hash(self, index: int) -> int:
        """Return 64 bits of a hash of a target."""


class HasClasses(Protocol):
    """Names its classes in the order of their numbers. They are kept in checkpoints and compared
    between training, validation and test data.
    """

    classes: Sequence[str]


class HasPlaces(Protocol):
    """Says in errors where a sample comes from. Without it a sample is its number."""

    def place(self, index: int) -> str:
        """Return such as ``train.txt:4: daisy/03.jpg``."""


class HasSampleNumbers(Protocol):
    """Has columns of numbers, which ``batch.weight`` may name. Without it attributes are used."""

    def sample_numbers(self, name: str) -> Any:
        """Return one number for each sample, (sample,), or None where there is no such column."""


class HasRecord(Protocol):
    """Finds out something of the training data that other data of the same model need.

    Both are for loaders, too. Without them a checkpoint knows of the classes alone.
    """

    def record(self) -> dict[str, Any]:
        """Return it as plain JSON data, which checkpoints keep."""

    def use_record(self, record: Mapping[str, Any]) -> None:
        """Use what the training data gave; called before the first batch."""


class HasImages(Protocol):
    """Decodes images by itself. Without it the first part of a sample is taken for the image."""

    def image(self, index: int) -> Tensor:
        """Return an image: uint8 (channel, height, width)."""


class Cacheable(HasImages, HasIds, HasPlaces, Protocol):
    """Decodes image files whose pixels `cache` can keep. Without it ``cache`` is an error."""

    def __len__(self) -> int: ...

    def image_shape(self, index: int) -> tuple[int, int, int]:
        """Return the same shape from the file's header alone."""

    def fingerprint(self) -> str:
        """Return a hash that changes when a file, or how it is decoded, changes."""


# --- Loaders -------------------------------------------------------------------------------------


class SupportsPositions(Protocol):
    """Gives batches from any position, so that a run can be resumed in the middle of an epoch.

    Any other loader is wrapped in a `ReplayedLoader`, which draws the batches before and drops
    them.
    """

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""

    def batches(self, first: int, count: int) -> Iterator[Batch]:
        """Yield ``count`` batches from batch ``first`` of the sequence epoch 0, 1, 2, ..."""


class SupportsClosing(Protocol):
    """Has workers or files that are to be closed when the loop is over."""

    def close(self) -> None:
        """Close them; the next loop opens them again."""


class SupportsSeeding(Protocol):
    """Draws its order from a seed, which is the config's unless the loader was given one."""

    def set_seed(self, seed: int) -> None:
        """Use this seed from now on."""


class SupportsSkipping(Protocol):
    """Can leave out samples that cannot be read. Without it ``on_bad_sample: skip`` is an error."""

    n_samples: int

    def skip_bad_samples(
        self, note: Callable[[list[Any]], None], allowed: int, replace: bool
    ) -> None:
        """Leave such samples out, or replace them; hand each to ``note``."""


class HasSamples(Protocol):
    """Knows which samples an epoch has, for ``split.csv`` and for the comparison on resume."""

    @property
    def source_of_ids(self) -> int:
        """A number that is equal for loaders whose ids belong to the same data."""

    def sample_indices(self) -> Tensor | None:
        """Return the indices of an epoch's samples, sorted; None where a sampler chooses them."""

    def sample_ids(self) -> list[str] | None:
        """Return the ids of the same samples."""


class HasCounts(Protocol):
    """Counts the samples of a batch itself. Without it the shapes of a batch show them."""

    def count_samples(self, batch: Batch) -> int:
        """Return the number of samples of a batch."""
