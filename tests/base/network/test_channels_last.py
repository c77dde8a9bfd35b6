"""channels_last by `auto`: only for models that can take it, and without a trace where not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from base.config.schema import MEMORY
from base.errors import DataError
from base.network.layout import prepare_model

CPU = torch.device("cpu")


class Viewing(nn.Module):
    """As many have it: a flat view behind the convolutions, which wants the plain layout."""

    def __init__(self, flatten):
        super().__init__()
        self.conv, self.head, self.flatten = nn.Conv2d(1, 2, 3), nn.Linear(32, 3), flatten
        self.n_calls = 0

    def forward(self, images):
        self.n_calls += 1
        return self.head(self.flatten(self.conv(images)))


FLAT = {"view": lambda x: x.view(-1, 32), "flatten": lambda x: x.flatten(1)}


@pytest.mark.parametrize(("name", "is_chosen"), [("view", False), ("flatten", True)])
def test_auto_leaves_a_model_alone_whose_view_wants_the_plain_layout(name, is_chosen):
    options = {key: spec.default for key, spec in MEMORY.keys.items()}
    model, images = Viewing(FLAT[name]), torch.randn(4, 1, 6, 6)
    before = torch.get_rng_state()
    notes = prepare_model(model, options, CPU, lambda tried: tried(images))
    assert notes == (["channels_last (auto)"] if is_chosen else [])
    assert model.n_calls == 0, "what was tried was a copy"
    assert torch.equal(torch.get_rng_state(), before)
    model(images).sum().backward()


def test_data_that_cannot_be_read_are_told_and_decide_nothing():
    """A fault that comes once would else leave another layout, and other bits, without a word."""

    def forward(_):
        raise DataError("a.jpg: cut short")

    options = {key: spec.default for key, spec in MEMORY.keys.items()}
    with pytest.raises(DataError, match=r"a\.jpg"):
        prepare_model(nn.Conv2d(1, 1, 3), options, CPU, forward)


class Sizes(nn.Module):
    """Notes how many samples each call has."""

    seen: list[int] = []  # noqa: RUF012 (of copies too)

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(32, 3)

    def forward(self, images):
        self.seen.append(len(images))
        return self.head(self.conv(images).flatten(1))


def test_two_samples_decide_so_that_memory_does_not(monkeypatch):
    from base.names.registry import MODELS
    from tests.base.toy import make

    monkeypatch.setitem(MODELS.registered, "Sizes", Sizes)
    Sizes.seen.clear()
    images = ("data_loader.args.shape=[1, 6, 6]", "data_loader.args.batch_size=8")
    trainer = make("model={type: Sizes}", *images)
    assert "channels_last (auto)" in trainer.experiment.memory_notes
    assert Sizes.seen == [2]
