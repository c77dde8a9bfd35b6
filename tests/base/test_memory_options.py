"""Each memory option, alone and beside another, gives the weights of the plain way."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import CPU, make, weights

from base.errors import ConfigError
from base.memory.activations import OffloadedActivations
from base.memory.optimizer import OffloadedState
from base.registry import MODELS

IMAGES = (
    "data_loader={type: SyntheticDataLoader, args: {n_samples: 22, shape: [1, 8, 8], "
    "n_classes: 3, batch_size: 8, validation_split: 4}}"
)
PLAIN = ("memory={channels_last: false, fused: false}",)
SGD = "optimizer={type: SGD, args: {lr: 0.1, momentum: 0.9}, "
SGD += "param_groups: [{match: '*bias', lr: 0.05}]}"
EXACT, CLOSE, HALF = 0.0, 1e-5, 3e-2


class Convolutions(nn.Module):
    """A residual net without BatchNorm: the numbers of a sample do not depend on its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GELU(), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        return self.head((features + self.block(features)).mean(dim=(2, 3)))


TRANSFORMER = "{type: TransformerClassifier, args: {width: 8, depth: 2, n_heads: 2, n_classes: 3"
NETS = {
    "convolutions": ("model={type: Convolutions}", "['block']"),
    "transformer": (f"model={TRANSFORMER}, dropout: 0}}}}", "['layers.*']"),
}
OPTIONS: dict[str, tuple[str, float]] = {
    "precision": ("bf16", HALF),
    "micro_batch": ("3", CLOSE),
    "checkpoint_activations": ("", EXACT),
    "offload_activations": ("true", EXACT),
    "offload_optimizer": ("true", EXACT),
    "optimizer_in_backward": ("true", EXACT),
    "inplace": ("true", EXACT),
    "set_to_none": ("false", EXACT),
    "channels_last": ("true", CLOSE),
    "fused": ("true", CLOSE),
    "cudnn_benchmark": ("true", EXACT),
    "empty_cache": ("2 steps", EXACT),
}


@pytest.fixture(autouse=True)
def _other_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let CPU memory be both sides of what is moved, so that the moving itself is tested."""
    monkeypatch.setitem(MODELS.registered, "Convolutions", Convolutions)
    monkeypatch.setattr("base.experiment.offload_state", lambda optimizer, _: Boundary(optimizer))
    here = {True: partial(OffloadedActivations, CPU), False: nullcontext}
    monkeypatch.setattr("base.base_trainer.offload_activations", lambda wanted, _: here[wanted])


class Boundary(OffloadedState):
    """Moves the state to and fro; what was left behind on the other side is spoilt."""

    def __init__(self, optimizer: Any, part_bytes: int = 100) -> None:
        self.sent = self.brought = 0
        super().__init__(optimizer, self.send, self.bring, part_bytes)

    def send(self, value: Tensor, host: Tensor | None) -> Tensor:
        self.sent += 1
        host = torch.empty_like(value) if host is None else host
        assert host is not value, "it is there already"
        host.copy_(value)
        value.fill_(float("nan"))
        return host

    def bring(self, host: Tensor, like: Tensor) -> Tensor:
        self.brought += 1
        assert host.shape == like.shape
        value = host.clone()
        host.fill_(float("nan"))
        return value


def trained(net: str, *options: str, **how: Any) -> Any:
    """Train three steps on 18 images in batches of 8, 8 and 2."""
    model, pattern = NETS[net]
    written = [option.replace("checkpoint_activations=", f"checkpoint_activations={pattern}")
               for option in options]  # fmt: skip
    trainer = make(model, IMAGES, SGD, *PLAIN, "trainer.epochs=1", *written, **how)
    trainer.train()
    return trainer


def assert_as_plain(net: str, names: tuple[str, ...], tolerance: float) -> None:
    found = trained(net, *(f"memory.{name}={OPTIONS[name][0]}" for name in names))
    plain = weights(trained(net))
    for name, weight in weights(found).items():
        if tolerance == EXACT:
            assert torch.equal(weight, plain[name]), name
        else:
            torch.testing.assert_close(weight, plain[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_gives_the_weights_of_the_plain_way(name: str, net: str) -> None:
    assert_as_plain(net, (name,), OPTIONS[name][1])


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("pair", list(combinations(OPTIONS, 2)), ids="+".join)
def test_two_options_give_the_weights_of_the_plain_way(pair: tuple[str, str], net: str) -> None:
    if "optimizer_in_backward" in pair and {"micro_batch", "set_to_none"} & set(pair):
        with pytest.raises(ConfigError, match="optimizer_in_backward: does not go with"):
            assert_as_plain(net, pair, EXACT)
        return
    assert_as_plain(net, pair, max(OPTIONS[name][1] for name in pair))
