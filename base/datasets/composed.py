"""Data sets composed of others: concatenations and subsets."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from base.base_data_loader import count_samples
from base.checkpoint.data_record import offers_record, record_of, use_record
from base.data.fingerprint import is_unnamed
from base.data.protocols import HasIds, ids_at, offered
from base.data.sample_items import sample_numbers
from base.datasets.image_files import read_text
from base.datasets.labels import N_SHOWN, raise_problems
from base.errors import DataError, Problem, nearest

if TYPE_CHECKING:
    from base.datasets.tables import CsvDataset

OFFERED = (
    "targets", "classes", "ids", "files", "place", "image", "image_shape", "fingerprint",
    "mask_files", "classes_in", "ignore_index", "target_hash",
)  # fmt: skip


class _Composed(Dataset[Any]):
    """Samples of other data sets, each located by the number of its part and its index there.

    It offers what all parts offer: OFFERED, shuffled_order, and get_batch for equal shapes.
    """

    def __init__(self, parts: list[Any], numbers: Tensor, indices: Tensor) -> None:
        self.parts, self._numbers, self._indices = parts, numbers, indices
        if _all_have(parts, "table_parts"):
            self.table_parts = self._table_parts
            if len(parts) > 1:  # a single encoding for all
                from base.datasets.tables import fit_tables  # a project may exclude tables

                fit_tables(self._table_parts(torch.arange(len(self))))
        for name in OFFERED:
            if _all_have(parts, name):
                setattr(self, name, self._joined(name))
        if _all_have(parts, "get_batch"):
            first = [part.get_batch(torch.tensor([0])) for part in parts]
            if len({str([(each.shape, each.dtype) for each in batch]) for batch in first}) == 1:
                self.get_batch = self._get_batch
        if len({getattr(part, "mode", None) for part in parts}) == 1 and hasattr(parts[0], "mode"):
            self.mode = parts[0].mode
        self.has_unnamed_parts = any(map(is_unnamed, parts))
        if all(map(offers_record, parts)):
            self.record, self.use_record = self._record, self._use_record
        if _all_have(parts, "shuffled_order"):
            self.shuffled_order = self._shuffled_order

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Any:
        return self.parts[self._numbers[index]][int(self._indices[index])]

    def _table_parts(self, indices: Tensor) -> list[tuple[CsvDataset, Tensor]]:
        """Return the tables, each with the rows that the given samples select."""
        numbers, inner = self._numbers[indices], self._indices[indices]
        return [
            pair
            for number, part in enumerate(self.parts)
            for pair in part.table_parts(inner[numbers == number])
        ]

    def sample_numbers(self, name: str) -> Tensor | None:
        """Return the values of that name, (sample,), or None unless all parts have them."""
        found = [sample_numbers(part, name) for part in self.parts]
        if any(each is None for each in found):
            return None
        firsts = torch.tensor([0, *map(len, found[:-1])]).cumsum(0)
        return torch.cat(list(map(torch.as_tensor, found)))[firsts[self._numbers] + self._indices]

    def _of_part(self, name: str, index: int) -> Any:
        return getattr(self.parts[self._numbers[index]], name)(int(self._indices[index]))

    def _get_batch(self, indices: Tensor) -> list[Tensor]:
        """Read many samples at once, each from its part."""
        numbers, inner = self._numbers[indices], self._indices[indices]
        if len(self.parts) == 1:
            batch: list[Tensor] = self.parts[0].get_batch(inner)
            return batch
        order = numbers.argsort(stable=True)
        batches = [
            self.parts[number].get_batch(inner[numbers == number])
            for number in numbers.unique().tolist()
        ]
        back = order.argsort()
        return [torch.cat(each)[back] for each in zip(*batches, strict=True)]

    def _record(self) -> dict[str, Any]:
        """Return the common record of all parts.

        Raises:
            DataError: the parts encode their columns differently.
        """
        records = list(map(record_of, self.parts))
        for number, record in enumerate(records):
            if record != records[0]:
                keys = records[0].keys() | record.keys()
                others = [key for key in sorted(keys) if record.get(key) != records[0].get(key)]
                text = f"{', '.join(others)} of data set {number} are not those of data set 0"
                raise DataError(f"{type(self).__name__}: {text}: join them into one file")
        return records[0]

    def _use_record(self, record: Mapping[str, Any]) -> None:
        for part in self.parts:
            use_record(part, record)

    def _shuffled_order(self, indices: Tensor, generator: torch.Generator) -> Tensor:
        """Return the order in which an epoch reads these samples.

        Each part has its own order and is read in one pass. The next part is drawn at random, so
        that parts are mixed.
        """
        numbers = self._numbers[indices]
        mixed = numbers[torch.randperm(len(numbers), generator=generator)]
        order = torch.empty_like(indices)
        for number in numbers.unique().tolist():
            own = indices[numbers == number]
            inner, places = self._indices[own].sort()
            sequence = self.parts[number].shuffled_order(inner, generator)
            order[mixed == number] = own[places[torch.searchsorted(inner, sequence)]]
        return order

    def _joined(self, name: str) -> Any:
        """Return an offered attribute, combined from all parts."""
        if name == "fingerprint":
            return self._fingerprint
        if name in ("place", "image", "image_shape", "target_hash"):
            return functools.partial(self._of_part, name)
        values = [getattr(part, name) for part in self.parts]
        if name in ("classes", "ignore_index", "classes_in"):
            return values[0]
        if name == "mask_files":
            return _Composed(values, self._numbers, self._indices)
        if name == "targets":
            firsts = torch.tensor([0, *map(len, values[:-1])]).cumsum(0)
            places = firsts[self._numbers] + self._indices
            return torch.cat(list(map(torch.as_tensor, values)))[places]
        return _Texts(values, self._numbers, self._indices, are_ids=name == "ids")

    def _fingerprint(self) -> str:
        """Return a hash of the parts' fingerprints and of the samples selected."""
        state = hashlib.blake2b(repr([part.fingerprint() for part in self.parts]).encode())
        state.update(torch.stack([self._numbers, self._indices]).numpy().tobytes())
        return state.hexdigest()[:32]


class _Texts(Sequence[str]):
    """The ids or files of the samples, looked up in those of the parts when they are used."""

    def __init__(
        self, parts: list[Sequence[str]], numbers: Tensor, indices: Tensor, are_ids: bool
    ) -> None:
        self._parts, self._numbers, self._indices = parts, numbers, indices
        self._are_ids = are_ids and len(parts) > 1  # of several parts: may be equal

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        number, text = self._of(place)
        return f"{number}:{text}" if self._are_ids and self._are_repeated else text

    def texts_at(self, places: Tensor) -> list[str]:
        """Return the texts at some places."""
        if len(self._parts) == 1:
            return ids_at(self._parts[0], self._indices[places])
        return [self[place] for place in places.tolist()]

    def __iter__(self) -> Iterator[str]:
        for number, text in self._all():
            yield f"{number}:{text}" if self._are_ids and self._are_repeated else text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    @functools.cached_property
    def _are_repeated(self) -> bool:
        """Whether parts have equal ids, so that only the part's number makes them unique."""
        return len({text for _, text in self._all()}) < len(self)

    def _all(self) -> Iterator[tuple[int, str]]:
        """Yield the number of the part and the text of each sample."""
        for number, index in zip(self._numbers.tolist(), self._indices.tolist(), strict=True):
            yield number, self._parts[number][index]

    def _of(self, place: int) -> tuple[int, str]:
        number = int(self._numbers[place])
        return number, self._parts[number][int(self._indices[place])]


class ConcatenatedDataset(_Composed):
    """Concatenates several data sets.

    Raises:
        DataError: their classes, or the dtypes or shapes of their targets, differ.
    """

    def __init__(self, datasets: list[Dataset[Any]]) -> None:
        if not isinstance(datasets, list) or not datasets:
            raise DataError("datasets: a list; give at least one")
        for each in datasets:
            check_data_set(each, "datasets")
        _refuse_others("classes", [getattr(each, "classes", None) for each in datasets])
        forms = [_form(each.targets) if hasattr(each, "targets") else None for each in datasets]
        _refuse_others("targets", forms)
        _refuse_others("ignore_index", [getattr(each, "ignore_index", None) for each in datasets])
        sizes = torch.tensor([len(each) for each in datasets])  # type: ignore[arg-type]
        numbers = torch.arange(len(sizes)).repeat_interleave(sizes)
        indices = torch.cat([torch.arange(size) for size in sizes.tolist()])
        super().__init__(list(datasets), numbers, indices)


class SubsetDataset(_Composed):
    """A subset of a data set: the `first` samples, or those with given indices or ids.

    Args:
        ids: a text file with an id per line, such as the path of an image.

    Raises:
        DataError: none or several of the three are given, or a sample does not exist.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        indices: Sequence[int] | None = None,
        first: int | None = None,
        ids: str | None = None,
    ) -> None:
        if sum(each is not None for each in (indices, first, ids)) != 1:
            raise DataError("SubsetDataset: give one of indices, first and ids")
        check_data_set(dataset, "dataset")
        n_samples = len(dataset)  # type: ignore[arg-type]
        if first is not None:
            indices = range(first)
        if not isinstance(indices, Sequence | None):
            raise DataError(f"SubsetDataset: indices: a list, not {indices!r}")
        chosen = _indices_of_ids(dataset, ids) if ids is not None else indices or ()
        if not chosen:
            raise DataError("SubsetDataset: no samples are chosen")
        # The valid indices of `first` are not looked at one by one.
        is_first = isinstance(chosen, range) and chosen == range(min(len(chosen), n_samples))
        wrong = [] if is_first else [each for each in chosen if not _is_index(each, n_samples)]
        if wrong or (not is_first and len(set(chosen)) < len(chosen)):
            text = f"there is no sample {wrong[0]}" if wrong else "an index is given twice"
            raise DataError(f"SubsetDataset: {text}; {n_samples} samples, counted from 0")
        places = torch.arange(len(chosen)) if is_first else torch.tensor(list(chosen))
        super().__init__([dataset], torch.zeros_like(places), places)


def _is_index(value: Any, n_samples: int) -> bool:
    return type(value) is int and 0 <= value < n_samples


def check_data_set(value: Any, argument: str) -> None:
    """Check that an argument is a data set, not a name or a number."""
    if not hasattr(value, "__getitem__") or isinstance(value, str | list | Mapping):
        found = f"a value of type {type(value).__name__}, {str(value)[:60]!r}"
        raise DataError(f"{argument}: expected {{type: ..., args: ...}}, found {found}")
    count_samples(value)


def _indices_of_ids(dataset: Any, file: str) -> list[int]:
    if offered(dataset, HasIds) is None:
        raise DataError(f"{file}: {type(dataset).__name__} has no ids; choose by indices")
    known = {name: index for index, name in enumerate(dataset.ids)}
    found: dict[str, int] = {}
    problems = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        name = line.strip()
        if name in found:
            problems.append(Problem(f"{file}:{number}", f"{name!r} is in line {found[name]}, too"))
        elif name and name not in known:
            is_sought = len(problems) < N_SHOWN and len(known) < 10_000  # slow otherwise
            near = nearest(name, known) if is_sought else ""
            problems.append(Problem(f"{file}:{number}", f"there is no id {name!r}{near}"))
        elif name:
            found[name] = number
    raise_problems(problems)
    return [known[name] for name in found]


def _all_have(parts: list[Any], name: str) -> bool:
    return all(hasattr(part, name) for part in parts)


def _form(targets: Any) -> str:
    targets = torch.as_tensor(targets)
    return f"{targets.dtype} {('n', *targets.shape[1:])}"


def _refuse_others(what: str, values: list[Any]) -> None:
    for number, value in enumerate(values):
        if value != values[0]:
            text = f"{what} of data set {number} are {value}, those of data set 0 {values[0]}"
            raise DataError(f"ConcatenatedDataset: {text}")
