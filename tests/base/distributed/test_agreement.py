"""What a rank reports of itself, and what the others make of it."""

from __future__ import annotations

from typing import Any

import pytest

from base.distributed import agreement
from base.distributed.agreement import Agreement, PeerError, RankLostError, text_of
from base.errors import OutOfMemoryError

TIMED_OUT = RuntimeError("Timed out waiting 3000ms for recv operation to complete")
BROKEN = RuntimeError("Connection closed by peer")


class Store(dict[str, bytes]):
    """The launcher's key-value store; it fails when the process that held it has ended."""

    has_ended = False

    def check(self, keys: list[str]) -> bool:
        if self.has_ended:
            raise RuntimeError("Connection reset by peer")
        return all(key in self for key in keys)

    def set(self, key: str, value: str) -> None:
        self.check([])
        self[key] = value.encode()

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(agreement, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(Agreement, "_end_stopped", lambda *_: None)  # it would kill this process
    return Store()


def rank(number: int, store: Any, group: Any = None) -> Agreement:
    return Agreement(number, 2, group, store, timeout=3)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (
            ValueError("mine"),
            1,
            r"(?s)rank 1: Traceback.*ValueError: mine|rank 1: ValueError: mine",
        ),
        (OutOfMemoryError("too large"), 3, "rank 1: too large"),
        (KeyboardInterrupt(), 130, "rank 1: stopped by SIGINT, nothing more was saved"),
    ],
)
def test_an_error_is_known_though_the_connection_broke(
    store: Store, error: BaseException, code: int, told: str
) -> None:
    """The rank that failed has ended before the others came to its message."""
    others = rank(0, store)
    rank(1, store, group=NoGroup()).fail(error, text_of(error))
    found = others.lost(BROKEN, "the gradients", 7)
    assert isinstance(found, PeerError)
    assert found.exit_code == code
    assert found.needs_advice == isinstance(error, ValueError)
    with pytest.raises(PeerError, match=told):
        raise found


class NoGroup:
    """A process group whose other processes have ended."""

    def _allgather_base(self, *_: Any) -> Any:
        raise BROKEN


def test_a_rank_that_does_not_answer_is_named_with_step_and_wait(store: Store) -> None:
    rank(1, store)
    found = rank(0, store).lost(TIMED_OUT, "a checkpoint to be written", 5, seconds=30)
    told = r"rank 1 \(.*\) has not answered for 30 s at step 5, while the others waited for a"
    with pytest.raises(RankLostError, match=told):
        raise found
    assert found.reporter == 0


def test_ranks_that_wait_for_different_things_are_all_named(store: Store) -> None:
    both = [rank(number, store) for number in (0, 1)]
    both[1].lost(TIMED_OUT, "the gradients", 7)
    found = both[0].lost(TIMED_OUT, "the batches of a step", 8)
    told = "rank 0 waits for the batches of a step at step 8; rank 1 waits for the gradients at"
    assert told in str(found)


def test_without_the_store_the_error_still_has_a_step(store: Store) -> None:
    one = rank(1, store)
    store.has_ended = True
    assert one.failures() == []
    assert "rank 0's machine, is gone at step 4" in str(one.lost(BROKEN, "the gradients", 4))
