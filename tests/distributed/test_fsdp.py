"""Runs whose model is divided over processes: they resume to the bit, and load crosswise."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from base.checkpoint.store import read, read_manifest
from tests.base.toy import assert_same
from tests.distributed.test_resume import Place, newest
from tests.stores import flip

FSDP = "distributed.strategy=fsdp"
# Without dropout and batch statistics, any number of processes trains the same model.
PLAIN = [
    "model={type: MLP, args: {n_inputs: 64, hidden: [9, 9, 9], n_outputs: 10}}",
    "data_loader.args.augment=false",
    "trainer.save_every=5 steps",
]

pytestmark = [pytest.mark.end_to_end, pytest.mark.slow]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def test_a_divided_model_resumes_to_the_bit(place: Place) -> None:
    done = place.train(2, "-c", "c.yaml", "--set", FSDP)
    assert done.returncode == 0, done.stderr
    (whole,) = place.runs()
    assert len(list(checkpoints(whole)[-1].glob("shard-*.pt"))) == 2
    place.train(2, "-c", "c.yaml", "--set", FSDP, STOP_AT=7)
    cut = next(run for run in place.runs() if run != whole)
    assert newest(cut) == 7
    done = place.train(2, "-r", str(cut))
    assert done.returncode == 0, done.stderr
    assert_same(read(cut), read(whole))


def test_checkpoints_load_crosswise_and_a_damaged_file_falls_back(place: Place) -> None:
    done = place.train(1, "-c", "c.yaml", "--set", *PLAIN)
    assert done.returncode == 0, done.stderr
    (whole,) = place.runs()
    expected = read(whole)
    place.train(2, "-c", "c.yaml", "--set", *PLAIN, FSDP, STOP_AT=7)
    cut = next(run for run in place.runs() if run != whole)
    assert [path.name[-2:] for path in checkpoints(cut)] == ["05", "07"]
    for number, (size, strategy) in enumerate(
        [(1, "auto"), (2, "data_parallel"), (3, "fsdp"), (2, "fsdp")]
    ):
        copy = shutil.copytree(cut, cut.with_name(f"copy-{number}"))
        is_damaged = number == 3
        if is_damaged:
            flip(checkpoints(copy)[-1] / "shard-00002-of-00002.pt")
        words = ["-r", str(copy), "--set", f"distributed.strategy={strategy}"]
        done = place.train(size, *words)
        assert done.returncode == 0, done.stderr
        falls_back = f"falling back to {checkpoints(copy)[0]}" in done.stderr
        assert falls_back == is_damaged
        assert "shards" in read_manifest(checkpoints(copy)[-1]) or strategy != "fsdp"
        ended = read(copy)
        assert ended["progress"] == expected["progress"]
        for name, weight in expected["model"].items():
            torch.testing.assert_close(ended["model"][name], weight, rtol=1e-4, atol=1e-6)
