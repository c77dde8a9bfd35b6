"""Iterable data sets: sharding across workers, and the number of batches."""

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
"""The code of a data set that shards its items across workers, for error messages."""


def stream_of(loader: Any) -> tuple[DataLoader[Any], IterableDataset[Any]] | None:
    """Return torch's loader, possibly wrapped in a user's loader, and the stream that it reads."""
    for each in (loader, *getattr(loader, "__dict__", {}).values()):
        if isinstance(each, DataLoader) and isinstance(each.dataset, IterableDataset):
            return each, each.dataset
    return None


def sharing_fault(loader: Any) -> str:
    """Return an error message if each worker would yield all items of a stream, else "".

    torch gives every worker a copy of the data set, and each copy iterates over all items.
    """
    found = stream_of(loader)
    if found is None or found[0].num_workers < 2:
        return ""
    stock, stream = found
    if _shares(stream) or _asks_for_its_worker(stock.worker_init_fn):
        return ""
    name, n = type(stream).__name__, stock.num_workers
    return (
        f"each of the {n} workers would yield all items of {name}, so that each is seen {n} times: "
        "set num_workers to 0, or shard the items across workers, where `self.items()` stands for "
        f"the current body of `__iter__`:{SHARING}\n"
        "If the class shards its items in another way, or draws different ones in each worker, set "
        "its attribute shards_itself = True"
    )


def length_of_stream(loader: Any) -> int | None:
    """Return the number of batches of a pass over a stream whose workers share items evenly.

    torch counts as if a single worker read all items; but each worker fills separate batches, and
    the last one of each may be short. None if this does not apply or the stream has no length.
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
    """Return the number of items of a pass over a stream read without workers.

    None for any other loader, or if the stream has no length.
    """
    is_stock = isinstance(loader, DataLoader) and type(loader).__len__ is DataLoader.__len__
    if not is_stock or stream_of(loader) is None or loader.num_workers or not loader.batch_size:
        return None
    try:
        return len(loader.dataset)
    except TypeError:
        return None


def _shares(stream: Any) -> bool:
    """Return whether workers share the items: the class says so, or calls ``get_worker_info``."""
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
    """Return whether a function, or a function that it uses, calls ``get_worker_info``."""
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
    """Yield the names used in a code object and in its nested functions."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def refuse_stream(dataset: Any) -> None:
    """Refuse an iterable data set if samples are read by index.

    Raises:
        DataError: it is one. The message gives the section to write instead.
    """
    if isinstance(dataset, IterableDataset):
        name = type(dataset).__name__
        raise DataError(
            f"{name} is an IterableDataset, which cannot be read by index (shuffled, split): write "
            f"`{{type: DataLoader, args: {{dataset: {{type: {name}}}, batch_size: 32}}}}`"
        )
