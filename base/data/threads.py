"""Reads ahead in threads, for functions that release the GIL."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLongError
from contextlib import closing
from typing import Any

import torch

from base.data.protocols import Batch
from base.data.reading import Key, raise_failure
from base.errors import DataError
from logger.progress import ProgressBar


def read_ahead(
    read: Callable[[Any], Any], keys: Iterator[Any], n_threads: int, ahead: int, seconds: float
) -> Generator[Batch, None, None]:
    """Yield the batch of each key in order, reading at most ``ahead`` batches in advance.

    Args:
        seconds: the timeout for one batch; 0 waits forever.

    Raises:
        DataError: a batch did not arrive in time.
    """
    # One core per thread. torch applies the number to new threads, and to threads that have not
    # computed anything yet. The calling thread keeps what `use_threads` set.
    pool = ThreadPoolExecutor(n_threads, "reader", torch.set_num_threads, (1,))
    pending: deque[Any] = deque()
    try:
        for key in keys:
            pending.append(pool.submit(read, key))
            if len(pending) > ahead:
                yield _result(pending, seconds)
        while pending:
            yield _result(pending, seconds)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def read_each(
    read: Callable[[Any], Any], keys: Sequence[Any], n_threads: int, description: str
) -> Generator[Any, None, None]:
    """Yield the result for each key in order, with a progress bar on a terminal."""
    results = read_ahead(read, iter(keys), n_threads, 4 * n_threads, seconds=0)
    with closing(results), ProgressBar(len(keys), description=description) as bar:
        for result in results:
            yield result
            bar.update()


def pinned(read: Callable[[Key], Any]) -> Callable[[Key], Any]:
    """Return the same function with results in pinned memory."""
    from torch.utils.data._utils.pin_memory import pin_memory

    return lambda key: pin_memory(read(key))


def _result(pending: deque[Any], seconds: float) -> Batch:
    future = pending.popleft()
    try:
        return raise_failure(future.result(seconds or None))
    except TooLongError as error:
        raise DataError(f"no batch for {seconds:g} s; is a disk or a network stuck?") from error
