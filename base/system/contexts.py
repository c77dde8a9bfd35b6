"""Contexts that are often off: a step enters none of them then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

NO_CONTEXT = nullcontext()
"""Stands for a context that is off."""


def together(contexts: list[AbstractContextManager[Any]]) -> AbstractContextManager[Any]:
    """Return one context for several, in this order; it is `NO_CONTEXT` if all are off."""
    if contexts.count(NO_CONTEXT) == len(contexts):
        return NO_CONTEXT
    return _stacked(contexts)


@contextmanager
def _stacked(contexts: list[AbstractContextManager[Any]]) -> Iterator[None]:
    first, *others = contexts
    with first, together(others):
        yield
