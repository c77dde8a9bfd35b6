"""What is damaged on the disk is seen, told, and passed over where something whole is left."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import pytest
from faults.table import Trials
from stores import forge, make_state, same, save

from base.checkpoint.store import CheckpointStore, read
from base.errors import CheckpointError


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.mark.fault("F12")
@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_every_flipped_bit_is_detected(store: CheckpointStore, name: str, trials: Trials) -> None:
    """Anywhere in the file; of the state, again as often in its pickle and its archive's tables."""
    path = save(store, 7, metrics={"loss": 0.25}, facts={"config": "lr: 1"})
    good = (path / name).read_bytes()
    draw = random.Random(name)
    parts = [(0, len(good), trials.count(50, 1000 if name == "state.pt" else 200))]
    if name == "state.pt":
        start, tables = good.index(b"data.pkl"), good.rindex(b"PK\1\2")
        parts += [(start, start + 800, trials.count(10, 200))]
        parts += [(tables, len(good), trials.count(10, 200))]

    for start, end, n_flips in parts:
        for _ in range(n_flips):
            place = draw.randrange(start * 8, end * 8)
            with trials.trial(f"bit {place}"):
                bad = bytearray(good)
                bad[place // 8] ^= 1 << place % 8
                (path / name).write_bytes(bad)
                with pytest.raises(CheckpointError, match="step-00000007"):
                    read(path)
    (path / name).write_bytes(good)
    assert same(read(path), make_state(7))


@pytest.mark.fault("F11")
@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_a_cut_file_is_passed_over_with_one_line_that_names_both(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture, name: str, trials: Trials
) -> None:
    save(store, 1)
    path = save(store, 2)
    content = (path / name).read_bytes()
    n = len(content)
    lengths = [0, 1, 3, 4, 10, 100, n // 2, n - 64, n - 22, n - 1]
    rest = [each for each in range(n) if each not in lengths]
    more = random.Random(name).sample(rest, min(len(rest), trials.count(0, 200)))
    for length in [*lengths, *more]:
        with trials.trial(f"{length} of {n} bytes"):
            (path / name).write_bytes(content[:length])
            caplog.clear()
            with pytest.raises(CheckpointError):
                read(path)
            assert same(read(store.folder), make_state(1))
            (message,) = caplog.messages
            parts = message.partition("falling back to")
            assert "step-00000002" in parts[0]
            assert "step-00000001" in parts[2]
            assert "\n" not in message


@pytest.mark.fault("F11")
@pytest.mark.parametrize("content", [b"", b"hello\n" * 99, bytes(4096), pickle.dumps({"a": 1})])
def test_garbage_with_a_fitting_manifest_is_a_clear_error(
    store: CheckpointStore, content: bytes
) -> None:
    path = forge(save(store, 1), content)
    with pytest.raises(CheckpointError, match=r"state\.pt: \w+"):
        read(path)


@pytest.mark.fault("F11")
def test_a_missing_file_is_a_damaged_checkpoint(store: CheckpointStore) -> None:
    save(store, 1)
    (save(store, 2) / "state.pt").unlink()
    (save(store, 3) / "manifest.json").unlink()
    newest = store.newest()
    assert newest is not None
    assert newest.name == "step-00000001"


@pytest.mark.fault("F13")
def test_all_damaged_is_an_error_that_says_what_to_do(store: CheckpointStore) -> None:
    for step in (1, 2):
        (save(store, step) / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"(?s)from scratch without -r.*00000002.*00000001"):
        store.newest()
    with pytest.raises(CheckpointError, match="start from scratch"):
        read(store.folder.parent)
