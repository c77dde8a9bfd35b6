"""Two single variables and a net, each trained at its own rate, as the shipped config says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from base.config import load_config
from base.run.build import build_experiment
from model.single_variables import SingleVariables
from tests.base.toy import train_in
from trainer.trainer import Trainer

CONFIG = Path(__file__).resolve().parent.parent.parent / "config" / "single_variables.yaml"
QUIET = ["trainer.tensorboard=false", "trainer.progress=false", "trainer.verbosity=0"]
RATES = {"theta": 0.05, "kernel": 0.01}  # of the config; all else has 3e-3


def make(*overrides: str) -> Trainer:
    config = load_config(CONFIG, [*QUIET, "trainer.epochs=1", *overrides])
    torch.manual_seed(config["seed"])
    return Trainer(build_experiment(config, torch.device("cpu")))


def scores(images: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Write the model's formula out."""
    theta, kernel, *layers = values
    around = F.pad(images, (1, 1, 1, 1))  # (batch, 1, 10, 10)
    moved = [around[:, 0, i : i + 8, j : j + 8] * kernel[i, j] for i in range(3) for j in range(3)]
    ink = 1 / (1 + torch.exp(-8.0 * (sum(moved) - theta)))
    hidden = (ink.flatten(1) @ layers[0].T + layers[1]).clamp(min=0)
    return hidden @ layers[2].T + layers[3]


def test_the_model_computes_its_formula() -> None:
    model = SingleVariables(theta=0.4)
    torch.nn.init.normal_(model.kernel)
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(model(images), scores(images, list(model.parameters())))


def test_three_rates_train_as_a_loop_by_hand() -> None:
    trainer = make()
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    values = {name: value.clone().requires_grad_() for name, value in start.items()}
    groups = [
        {"params": [values["theta"]], "lr": 0.05, "weight_decay": 0},
        {"params": [values["kernel"]], "lr": 0.01, "weight_decay": 0},
        {"params": [values["net.hidden.weight"], values["net.head.weight"]]},
        {"params": [values["net.hidden.bias"], values["net.head.bias"]], "weight_decay": 0},
    ]
    by_hand = torch.optim.AdamW(groups, lr=3e-3, weight_decay=0.05)
    for images, target in trainer.train_loader.batches(0, trainer.experiment.batches_per_epoch):
        by_hand.zero_grad()
        F.cross_entropy(scores(images, list(values.values())), target).backward()
        by_hand.step()
    train_in(trainer)
    for name, parameter in trainer.model.named_parameters():
        assert not parameter.equal(start[name]), name
        torch.testing.assert_close(parameter, values[name], rtol=1e-3, atol=1e-5)


def test_each_parameter_moves_by_its_own_rate() -> None:
    """The first step of Adam is the rate itself, whatever the gradient's size."""
    trainer = make("trainer.epochs=null", "trainer.steps=1", "optimizer.args.weight_decay=0")
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    train_in(trainer)
    for name, parameter in trainer.model.named_parameters():
        way = (parameter - start[name]).abs().max().item()
        assert way == pytest.approx(RATES.get(name, 3e-3), rel=1e-2), name


def test_theta_arrives_at_its_own_rate_and_not_at_the_nets() -> None:
    own, shared = make("trainer.epochs=8"), make("trainer.epochs=8", "optimizer.param_groups=[]")
    train_in(own)
    train_in(shared)
    assert own.model.theta < 1 < 1.5 < shared.model.theta
