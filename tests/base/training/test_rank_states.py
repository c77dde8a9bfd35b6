"""The state of several ranks in one checkpoint, and its way back to as many, fewer or more."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch

from base.checkpoint.state_dicts import load_state_dicts
from base.checkpoint.state_file import plain_copy
from base.data.bad_samples import BadSamples
from base.distributed.group import ALONE
from base.errors import CheckpointError
from base.system.seeding import seed_everything
from base.training.progress import Progress, RandomState
from base.training.rank_states import (
    RANKS,
    gather_bad_samples,
    gather_state,
    start_random_streams,
    state_of_rank,
)
from logger.meters import Meters
from tests.base.ranks import ranks
from tests.base.toy import assert_same, make


class Sum:
    """A metric of one number, which can be merged."""

    def __init__(self, value: Any = 0) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]

    def merged(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        return {"value": sum(state["value"] for state in states)}


def parts(seed: int = 0, value: Any = 0) -> dict[str, Any]:
    seed_everything(seed)
    meters = Meters()
    found = {"progress": Progress(), "random": RandomState(), "metric.sum": Sum(value)}
    if np.any(value):
        found["progress"].step = 3
    return {**found, "meters": meters}


def draws() -> list[Any]:
    return [torch.rand(2).tolist(), np.random.rand(), random.random()]


def saved(size: int) -> tuple[dict[str, Any], list[Any]]:
    """Return the checkpoint of ranks with the sums 1, 10, 100 ..., and what each draws next."""
    worlds, state, expected = ranks(size), {}, []
    for world in reversed(worlds):
        stateful = parts(seed=50 + world.rank, value=10**world.rank)
        state = gather_state(stateful, world)
        expected.insert(0, draws())
    return copy.deepcopy(plain_copy(state, "state", {})), expected


def test_a_single_process_saves_what_it_always_did() -> None:
    stateful = make().stateful
    state = gather_state(stateful, ALONE)
    assert list(state) == list(stateful)
    assert RANKS not in state


def test_only_what_differs_is_stored_for_other_ranks() -> None:
    state, _ = saved(3)
    assert state[RANKS]["size"] == 3
    assert [sorted(each) for each in state[RANKS]["states"]] == [
        ["meters", "metric.sum", "random"]
    ] * 2
    assert state["metric.sum"] == {"value": 1}  # of rank 0


@pytest.mark.parametrize("size", [1, 2, 4])
def test_as_many_ranks_continue_with_their_own_state(size: int, caplog: Any) -> None:
    state, expected = saved(size)
    for world in ranks(size):
        stateful = parts(seed=1)
        load_state_dicts(stateful, state_of_rank(state, stateful, world))
        start_random_streams(7, world, state, step=3)
        assert stateful["metric.sum"].value == 10**world.rank
        assert draws() == expected[world.rank]
    assert not caplog.records


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 2), (4, 1), (2, 1), (1, 3)])
def test_another_number_of_ranks_counts_each_sample_once(
    before: int, after: int, caplog: Any
) -> None:
    state, expected = saved(before)
    values, streams = [], []
    for world in ranks(after):
        stateful = parts(seed=1)
        load_state_dicts(stateful, state_of_rank(state, stateful, world))
        start_random_streams(7, world, state, step=3)
        values.append(stateful["metric.sum"].value)
        streams.append(draws())
        assert stateful["progress"].step == 3
    assert values == [sum(10**rank for rank in range(before)), *[0] * (after - 1)]
    assert streams[0] == expected[0]  # rank 0 goes on with its stream
    assert len({str(each) for each in streams}) == after
    (record,) = caplog.records
    numbers = [f"{n} process{'es' * (n > 1)}" for n in (before, after)]
    assert all(number in record.getMessage() for number in numbers)
    assert "equal to the bit" in record.getMessage()


@pytest.mark.parametrize("has_device", [True, False])  # False: of earlier versions
def test_each_rank_takes_the_stream_of_its_gpu(has_device: bool, monkeypatch: Any) -> None:
    """Ranks 0 and 1 trained on the GPUs 0 and 1, and go on with the GPUs 2 and 3."""
    streams: dict[int, int] = {}

    def use(device: int) -> None:
        monkeypatch.setattr(torch.cuda, "current_device", lambda: device)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(
        torch.cuda, "get_rng_state_all", lambda: [torch.tensor([each]) for each in range(4)]
    )
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: streams.update({device: int(state)})
    )
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: None)
    state: dict[str, Any] = {}
    for world in reversed(ranks(2)):
        use(world.rank)
        state = gather_state(parts(), world)
    if not has_device:
        del state[RANKS]["states"][0]["random"]["cuda_device"]
    for world in ranks(2):
        use(2 + world.rank)
        load_state_dicts(stateful := parts(), state_of_rank(state, stateful, world))
        assert streams[2 + world.rank] == world.rank


def test_a_new_run_keeps_the_stream_of_one_process_on_rank_0() -> None:
    seed_everything(7)
    expected = draws()
    found = []
    for world in ranks(3):
        seed_everything(7)
        start_random_streams(7, world)
        found.append(draws())
    assert found[0] == expected
    assert len({str(each) for each in found}) == 3


def test_what_a_checkpoint_cannot_hold_is_refused_before_it_is_sent() -> None:
    world = ranks(2)[1]
    with pytest.raises(CheckpointError, match=r"metric\.sum.*ndarray"):
        gather_state(parts(value=np.ones(2)), world)
    assert not world.sent


def test_bad_samples_of_all_ranks_are_known_and_listed_once(tmp_path: Any) -> None:
    config = make("trainer.on_bad_sample=skip", "trainer.max_bad_samples=9").config
    found = []
    for world in reversed(ranks(2)):
        bad = BadSamples(config)
        if world.is_main:
            bad.open(tmp_path)
        for index in (5, 10 + world.rank):  # 5 was seen by both
            bad.known.setdefault("train", set()).add(index)
            bad.add_row({"part": "train", "index": index, "path": f"{index}.png", "reason": "cut"})
        gather_bad_samples(bad, world)
        found.append(bad)
    assert found[-1].state_dict() == {"train": [5, 10, 11]}
    lines = (tmp_path / "bad_samples.csv").read_text().splitlines()
    assert sorted(line.split(",")[1] for line in lines[1:]) == ["10", "11", "5"]


def test_a_checkpoint_of_two_ranks_opens_in_one_process() -> None:
    for world in reversed(ranks(2)):
        trainer = make()
        state = gather_state(trainer.stateful, world)
    alone = make("seed=4")
    load_state_dicts(alone.stateful, state_of_rank(state, alone.stateful, ALONE))
    assert_same(alone.model.state_dict(), trainer.model.state_dict())


def test_a_metric_over_the_epoch_goes_on_with_more_ranks() -> None:
    words = ["metrics=[{type: accuracy, over: epoch}]"]
    before = make(*words)
    before.metrics["accuracy"].update(torch.eye(3), torch.tensor([0, 1, 2]))
    state = copy.deepcopy(gather_state(before.stateful, ALONE))
    after = []
    for world in ranks(2):
        trainer = make(*words)
        load_state_dicts(trainer.stateful, state_of_rank(state, trainer.stateful, world))
        metric = trainer.metrics["accuracy"]
        metric.update(torch.eye(3)[:1], torch.tensor([world.rank]))  # half of it is right
        after.append(metric)
    whole = after[0].whole([metric.state_dict() for metric in after])
    assert whole.compute() == pytest.approx(4 / 5)
