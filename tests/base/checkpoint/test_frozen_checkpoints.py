"""Checkpoints of each released format are read, and resumed as on the day they were written.

`tests/data/make_frozen_checkpoint.py` has made them, once each; they are never made again.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from digest import digest_of
from toy import make, run

from base.checkpoint import store as checkpoint
from base.checkpoint.state_dicts import load_state_dicts
from base.checkpoint.state_file import manifest_bytes
from base.checkpoint.store import read
from base.errors import CheckpointError

DATA = Path(__file__).resolve().parents[2] / "data"
FORMATS = range(1, checkpoint.FORMAT + 1)


@pytest.fixture(params=FORMATS)
def frozen(request) -> Path:
    return DATA / f"format_{request.param}"


def config(frozen: Path) -> str:
    return (frozen / "config.yaml").read_text(encoding="utf-8")


def expected(frozen: Path) -> dict:
    return json.loads((frozen / "expected.json").read_text(encoding="utf-8"))


def test_each_format_has_a_frozen_checkpoint_of_a_few_kilobytes():
    for number in FORMATS:
        files = list((DATA / f"format_{number}").rglob("*.*"))
        assert 1000 < sum(path.stat().st_size for path in files if path.is_file()) < 60_000


@pytest.mark.fault("F32")
def test_a_frozen_checkpoint_is_read_to_the_bit(frozen):
    assert digest_of(read(frozen)) == expected(frozen)["digest"]


@pytest.mark.fault("F32")
def test_resuming_for_no_step_gives_the_state_that_was_saved(frozen):
    made, saved = make(text=config(frozen)), read(frozen)
    load_state_dicts(made.stateful, saved)
    state = {name: value.state_dict() for name, value in made.stateful.items()}
    assert digest_of(without_later_keys(state, saved)) == expected(frozen)["digest"]


def without_later_keys(state, saved):
    """Leave out what a later version of the same format has added to the state of an object."""
    if not isinstance(saved, dict):
        return state
    assert saved.keys() <= state.keys()
    return type(saved)((key, without_later_keys(state[key], saved[key])) for key in saved)


@pytest.mark.fault("F32")
def test_a_resumed_run_ends_as_then(frozen, tmp_path):
    shutil.copytree(frozen / "checkpoints", tmp_path / "checkpoints")
    run(tmp_path, text=config(frozen), resume=True)
    ended, then = read(tmp_path), expected(frozen)
    # What no float arithmetic touches is equal; the rest may differ in its last bits by the CPU.
    assert ended["progress"] == then["final_progress"]
    assert ended["model"]["2.num_batches_tracked"] == 10
    for name, value in ended["model"].items():
        theirs = torch.tensor(then["final_model"][name], dtype=value.dtype)
        torch.testing.assert_close(value, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.fault("F32")
def test_a_format_of_a_later_version_is_refused_with_what_to_do(frozen, tmp_path):
    shutil.copytree(frozen / "checkpoints", tmp_path / "checkpoints")
    (path,) = tmp_path.glob("checkpoints/*/manifest.json")
    manifest = json.loads(path.read_text())
    later = {**manifest, "format": checkpoint.FORMAT + 1}
    path.write_bytes(manifest_bytes(later))
    text = f"newer version: its format is {checkpoint.FORMAT + 1}, this one reads up to"
    with pytest.raises(CheckpointError, match=text) as raised:
        run(tmp_path, text=config(frozen), resume=True)
    assert "update Kindling" in str(raised.value)
