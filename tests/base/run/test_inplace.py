"""``memory.inplace`` keeps those activations alone that change nothing but the memory needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import assert_same, make, train_in

from base.names.registry import MODELS
from base.run.header import memory_facts

DATA = (
    "data_loader={type: SyntheticDataLoader, args: {n_samples: 24, shape: [1, 4, 4], "
    "n_classes: 3, batch_size: 4, validation_split: 4}}"
)


class Net(nn.Module):
    """Convolutions, statistics and random numbers around one way of using activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.relu, self.dropout = nn.ReLU(), nn.Dropout(0.3)
        self.head = nn.Linear(4, 3)
        self.build()

    def build(self) -> None: ...

    def body(self, x: Tensor) -> Tensor:
        return self.relu(x)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.dropout(self.body(self.stem(images)).mean(dim=(2, 3))))


class SumWithInput(Net):
    """x + relu(x): in place it would be relu(x) + relu(x), and no error says so."""

    def body(self, x: Tensor) -> Tensor:
        return x + self.relu(x)


class HiddenByZeros(SumWithInput):
    """The same behind a layer that begins as zeros, where x is 0 and nothing can be seen."""

    def build(self) -> None:
        nn.init.zeros_(self.stem[1].weight)
        nn.init.zeros_(self.head.weight)


class AfterSigmoid(Net):
    """The sigmoid needs its output for the backward pass: autograd refuses to lose it."""

    def body(self, x: Tensor) -> Tensor:
        return self.relu(torch.sigmoid(x))


class OnInputs(Net):
    """The first thing done is done to the batch itself, which metrics see afterwards."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.relu(images))


class InEvaluation(Net):
    """Only in evaluation is the input used once more."""

    def body(self, x: Tensor) -> Tensor:
        return self.relu(x) if self.training else x + self.relu(x)


class BeforeDropout(Net):
    """ReLU needs its output, which a dropout in place would take from it."""

    def body(self, x: Tensor) -> Tensor:
        return self.dropout(self.relu(x))


class Residual(Net):
    """A safe one, an unsafe one and a safe one in a row, and one that is never called."""

    def build(self) -> None:
        self.inner, self.outer, self.unused = nn.LeakyReLU(), nn.SiLU(), nn.ELU()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def body(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        x = x * torch.exp(self.outer(x))  # SiLU needs its input again
        return x + self.inner(self.conv(x))


CASES = {
    Net: {"relu", "dropout"},
    SumWithInput: {"dropout"},
    HiddenByZeros: {"dropout"},
    AfterSigmoid: {"dropout"},
    OnInputs: {"dropout"},
    InEvaluation: {"dropout"},
    BeforeDropout: {"relu"},
    Residual: {"relu", "dropout", "inner", "unused"},
}


def trained(monkeypatch: pytest.MonkeyPatch, net: type[nn.Module], *options: str) -> Any:
    monkeypatch.setitem(MODELS.registered, "Net", net)
    trainer = make("model={type: Net}", DATA, "metrics=[accuracy]", *options)
    trainer.values = train_in(trainer)
    return trainer


@pytest.mark.parametrize("more", ["seed=3", "memory.precision=bf16", "memory.micro_batch=3"])
@pytest.mark.parametrize("net", CASES)
def test_only_what_is_safe_is_in_place(
    net: type[nn.Module], more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(monkeypatch, net, more)
    found = trained(monkeypatch, net, more, "memory.inplace=true")
    named = found.model.named_modules()
    assert {name for name, one in named if getattr(one, "inplace", False)} == CASES[net]
    assert_same(found.model.state_dict(), plain.model.state_dict())
    assert found.values["valid/loss"] == plain.values["valid/loss"]
    assert found.values["train/accuracy"] == plain.values["train/accuracy"]


def test_the_choice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained(monkeypatch, Residual, "memory.inplace=true")
    assert "inplace: 4 of 5 activations" in memory_facts(trainer)


def test_what_the_model_has_in_place_itself_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Net):
        def build(self) -> None:
            self.relu = nn.ReLU(inplace=True)

    trainer = trained(monkeypatch, Own, "memory.inplace=true")
    assert trainer.model.relu.inplace
    assert "inplace: 2 of 2 activations" in memory_facts(trainer)


def test_a_module_in_a_checkpoint_is_tried_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(Net):
        """Its first step overwrites what a checkpoint keeps to compute all of it again."""

        def build(self) -> None:
            self.part = nn.Sequential(nn.LeakyReLU(-1.0), nn.Conv2d(4, 4, 1))

        def body(self, x: Tensor) -> Tensor:
            return self.part(x)

    options = ["memory.checkpoint_activations=['part']"]
    plain = trained(monkeypatch, Twice, *options)
    found = trained(monkeypatch, Twice, *options, "memory.inplace=true")
    assert_same(found.model.state_dict(), plain.model.state_dict())
    assert not found.model.part[0].inplace
