"""Attributes are captured as plain data and put back, so that an object goes on as if unbroken."""

import io
import logging
from collections import Counter, defaultdict, deque

import numpy as np
import pytest
import torch
from torch import nn

from base.checkpoint.object_state import get_object_state, set_object_state


class Inner:
    def __init__(self) -> None:
        self.total = 0


class Thing:
    def __init__(self) -> None:
        self.number, self.text, self.nothing, self.flag = 0, "", None, False
        self.tensor = torch.zeros(2)
        self.array, self.scalar = np.zeros((2, 2)), np.float64(0)
        self.items, self.pair, self.seen, self.recent = [], (), set(), deque(maxlen=2)
        self.by_name, self.counts, self.plain = defaultdict(list), Counter(), {}
        self.inner = Inner()
        self.layer = nn.BatchNorm1d(2)
        self.function = len
        self.generator = torch.Generator()
        self.log = logging.getLogger("thing")
        self.itself = self

    def fill(self) -> None:
        self.number, self.text, self.nothing, self.flag = 3, "x", 1.5, True
        self.tensor += 2
        self.array[0, 1], self.scalar = 5, self.scalar + np.float64(0.1)
        self.items += [np.arange(3), torch.ones(1), [1, 2]]
        self.pair, self.seen = (1, "a"), {4}
        self.recent.extend([1, 2, 3])
        self.by_name["a"].append(1.5)
        self.counts[7] += 2
        self.plain = {"a": {"b": torch.ones(1)}}
        self.inner.total = 9
        self.layer(torch.randn(4, 2))
        self.late = np.float32(0.1)


def through_a_file(state):
    """What a checkpoint does: written, and read as tensors and plain data only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_all_that_is_plain_comes_back_with_its_own_type():
    old, new = Thing(), Thing()
    old.fill()
    set_object_state(new, through_a_file(get_object_state(old)))

    assert (new.number, new.text, new.nothing, new.flag) == (3, "x", 1.5, True)
    assert new.tensor.tolist() == [2, 2]
    assert new.array.dtype == np.float64
    assert new.array.tolist() == [[0, 5], [0, 0]]
    assert (type(new.scalar), new.scalar) == (np.float64, old.scalar)
    assert (type(new.late), new.late) == (np.float32, old.late)
    assert isinstance(new.items[0], np.ndarray)
    assert new.items[0].dtype == old.items[0].dtype
    assert new.items[1:] == [torch.ones(1), [1, 2]]
    assert (new.pair, new.seen) == ((1, "a"), {4})
    assert new.recent == deque([2, 3], maxlen=2)
    assert new.recent.maxlen == 2
    new.by_name["b"].append(1)
    assert new.by_name == {"a": [1.5], "b": [1]}
    assert (type(new.counts), new.counts) == (Counter, Counter({7: 2}))
    assert new.plain["a"]["b"].tolist() == [1]
    assert (type(new.inner), new.inner.total) == (Inner, 9)
    assert new.layer.running_mean.equal(old.layer.running_mean)
    assert new.layer.weight.equal(old.layer.weight)
    assert new.function is len
    assert new.itself is new


def test_a_captured_state_does_not_change_with_the_object():
    thing = Thing()
    state = get_object_state(thing)
    thing.fill()
    assert state["tensor"].tolist() == [0, 0]
    assert state["by_name"] == {}
    other = Thing()
    set_object_state(other, state)
    other.tensor += 1
    assert state["tensor"].tolist() == [0, 0]


def test_what_is_code_or_of_pythons_own_is_left_out():
    assert not {"function", "generator", "log", "itself"} & set(get_object_state(Thing()))


@pytest.mark.gpu
def test_tensors_of_a_device_go_back_to_it():
    thing = Thing()
    thing.tensor = thing.tensor.cuda()
    state = get_object_state(thing)
    other = Thing()
    set_object_state(other, through_a_file(state), "cuda")
    assert other.tensor.device.type == "cuda"
    assert other.items == []
