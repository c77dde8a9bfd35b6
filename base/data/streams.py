"""Data sets that are only iterated: who reads which of their items, and how many batches come."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch.utils.data import ChainDataset, DataLoader, IterableDataset

from base.errors import DataError

SHARING = """
    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for item in itertools.islice(self.items(), first, None, step):
            yield item"""
"""What to write into a data set whose workers are each to give a share of the items."""


def stream_of(loader: Any) -> tuple[DataLoader[Any], IterableDataset[Any]] | None:
    """Return torch's loader, in a user's own one or itself, and the stream that it reads."""
    for each in (loader, *getattr(loader, "__dict__", {}).values()):
        if isinstance(each, DataLoader) and isinstance(each.dataset, IterableDataset):
            return each, each.dataset
    return None


def sharing_fault(loader: Any) -> str:
    """Return an error text where each worker would give all items of a stream, else an empty one.

    Torch hands every worker a copy of the data set, and a copy iterates over all of it.
    """
    found = stream_of(loader)
    if found is None or found[0].num_workers < 2:
        return ""
    stock, stream = found
    if _shares(stream) or _asks_for_its_worker(stock.worker_init_fn):
        return ""
    name, n = type(stream).__name__, stock.num_workers
    return (
        f"each of the {n} workers would give all items of {name}, so that each is seen {n} times: "
        "set num_workers to 0, or give each worker its share of what `__iter__` gives now, here "
        f"`self.items()`:{SHARING}\n"
        "A class that shares its items in another way, or draws other ones in each worker, says "
        "so by an attribute: shards_itself = True"
    )


def length_of_stream(loader: Any) -> int | None:
    """Return the batches of a pass over a stream whose workers share its items evenly.

    Torch counts as if one worker gave them all; but each fills batches of its own, and the last
    one of each may be short. None where that is not the case, or the stream has no length.
    """
    is_stock = isinstance(loader, DataLoader) and type(loader).__len__ is DataLoader.__len__
    if not is_stock or stream_of(loader) is None or loader.num_workers == 0:
        return None
    try:
        n_items = len(loader.dataset)
    except TypeError:
        return None
    n_workers, size, drop_last = loader.num_workers, loader.batch_size or 1, loader.drop_last
    shares = [n_items // n_workers + (number < n_items % n_workers) for number in range(n_workers)]
    counts: list[int] = [share // size if drop_last else -(-share // size) for share in shares]
    return sum(counts)


def items_of_stream(loader: Any) -> int | None:
    """Return the items of a pass over a stream that torch's loader reads without workers.

    None for any other loader, or where the stream has no length.
    """
    is_stock = isinstance(loader, DataLoader) and type(loader).__len__ is DataLoader.__len__
    if not is_stock or stream_of(loader) is None or loader.num_workers or not loader.batch_size:
        return None
    try:
        return len(loader.dataset)
    except TypeError:
        return None


def _shares(stream: Any) -> bool:
    """Return whether each worker gives a share: the class says so, or asks for its worker."""
    if getattr(stream, "shards_itself", False):
        return True
    if isinstance(stream, ChainDataset):
        parts = stream.datasets
        return isinstance(parts, list | tuple) and all(map(_shares, parts))
    inner = [each for each in vars(stream).values() if isinstance(each, IterableDataset)]
    own = [cls for cls in type(stream).__mro__ if not cls.__module__.startswith("torch.")]
    methods = (value for cls in own for value in vars(cls).values())
    return any(map(_asks_for_its_worker, methods)) or any(map(_shares, inner))


def _asks_for_its_worker(function: Any, depth: int = 2) -> bool:
    """Return whether a function, or one that it names, calls ``get_worker_info``."""
    function = getattr(function, "__func__", getattr(function, "func", function))
    function = getattr(function, "fget", function)
    if not callable(function):
        return False
    function = inspect.unwrap(function)
    if not isinstance(function, FunctionType):
        return False
    names = set(_names_in(function.__code__))
    if "get_worker_info" in names:
        return True
    named = (function.__globals__.get(name) for name in names)
    return depth > 0 and any(
        _asks_for_its_worker(each, depth - 1) for each in named if isinstance(each, FunctionType)
    )


def _names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that code uses, those of the functions in it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def refuse_stream(dataset: Any) -> None:
    """Refuse a stream where samples are read by their index.

    Raises:
        DataError: with the section to write instead.
    """
    if isinstance(dataset, IterableDataset):
        name = type(dataset).__name__
        raise DataError(
            f"{name} is an IterableDataset, which cannot be read by index (shuffled, split): write "
            f"`{{type: DataLoader, args: {{dataset: {{type: {name}}}, batch_size: 32}}}}`"
        )
