"""Several ranks in one process: each speaks in turn, the last rank first and rank 0 at the end."""

from __future__ import annotations

import copy
from typing import Any

from base.distributed.group import World


class Store(dict[str, Any]):
    """The launcher's key-value store."""

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def set(self, key: str, value: Any) -> None:
        self[key] = value


class Turn(World):
    """A rank whose messages wait in a list for rank 0, which gathers them."""

    def __init__(self, rank: int, size: int, sent: list[Any]) -> None:
        super().__init__(rank, size)
        self.sent = sent

    def gather(self, value: Any) -> list[Any] | None:
        self.sent.append(copy.deepcopy(value))
        if not self.is_main:
            return None
        found = list(reversed(self.sent[-self.size :]))
        del self.sent[-self.size :]
        return found

    def broadcast(self, value: Any) -> Any:
        assert self.is_main, "a broadcast needs rank 0 to speak first"
        return value


class Listener(World):
    """A rank that receives what rank 0 has broadcast."""

    def __init__(self, rank: int, size: int, received: Any) -> None:
        super().__init__(rank, size)
        self.received = received

    def broadcast(self, value: Any) -> Any:
        assert value is None, "only rank 0 may look at the disk"
        return copy.deepcopy(self.received)


def ranks(size: int) -> list[Turn]:
    """Return the worlds of several ranks."""
    sent: list[Any] = []
    return [Turn(rank, size, sent) for rank in range(size)]
