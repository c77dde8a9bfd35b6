"""Stochastic weight averaging: against torch's AveragedModel, update_bn and SWALR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from toy import assert_resumes, assert_same, make, run, train_in, weights

from base.callbacks import Callback
from base.checkpoint.store import read
from base.checkpoint.weights import read_weights
from base.errors import CheckpointError, ConfigError
from base.names.registry import MODELS
from base.training.swa import SwaSchedule
from trainer.trainer import Trainer

SWA = "trainer.swa={start: 1 epoch, every: 2 steps}"
NORM = "model={type: Sequential, args: {layers: [Flatten, {type: Linear, args: {in_features: 5, "
NORM += "out_features: 6}}, {type: BatchNorm1d, args: {num_features: 6}}, ReLU, {type: Dropout, "
NORM += "args: {p: 0.2}}, {type: Linear, args: {in_features: 6, out_features: 3}}]}}"


class Averaging(Callback):
    """Averages by torch's class after the steps of ``SWA``: 5, 7, 9, ..."""

    def on_start(self, trainer: Any) -> None:
        self.model: AveragedModel | None = None

    def on_step_end(self, trainer: Any) -> None:
        step = trainer.progress.step
        if step >= 5 and (step - 5) % 2 == 0:
            self.model = self.model or AveragedModel(trainer.model)
            self.model.update_parameters(trainer.model)


def test_the_average_is_that_of_torch() -> None:
    trainer = make(SWA, "trainer.epochs=3")
    trainer.callbacks["averaging"] = averaging = Averaging()
    train_in(trainer)
    assert averaging.model is not None
    assert trainer.ema.n_averaged == averaging.model.n_averaged == 6
    for name, value in averaging.model.module.named_parameters():
        torch.testing.assert_close(trainer.ema.averages[name], value, rtol=1e-6, atol=1e-7)


def test_training_itself_does_not_change() -> None:
    plain = make(NORM)
    train_in(plain)
    averaged = make(NORM, SWA)
    train_in(averaged)
    assert_same(averaged.model.state_dict(), plain.model.state_dict())


def test_the_statistics_are_those_of_update_bn() -> None:
    trainer = make(NORM.replace("p: 0.2", "p: 0.0"), SWA)
    values = train_in(trainer)
    twin = make(NORM).model
    state = dict(trainer.model.state_dict())
    twin.load_state_dict({**state, **trainer.ema.averages})
    epoch = [batch for batch, _ in trainer.train_loader.batches(5, 5)]  # of the second epoch
    update_bn(epoch, twin)
    measured = {name: value for name, value in twin.state_dict().items() if "running" in name}
    assert len(measured) == 2
    for name, value in measured.items():
        assert torch.equal(trainer.ema.statistics[name], value), name

    inputs, target = next(iter(trainer.valid_loader.batches(0, 1)))
    by_hand = nn.functional.cross_entropy(twin.eval()(inputs), target)
    assert values["valid/loss"] == pytest.approx(by_hand.item(), rel=1e-6)


def test_before_the_start_the_trained_weights_are_validated() -> None:
    late, plain = make(NORM, "trainer.swa={start: 100%}", "trainer.epochs=1"), make(NORM)
    assert late.ema.n_averaged == 0
    first = late.evaluate(late.valid_loader, "valid")
    assert first == plain.evaluate(plain.valid_loader, "valid")


def test_layers_whose_parameters_are_frozen_keep_their_statistics() -> None:
    trainer = make(NORM, SWA, "freeze=2.*")
    train_in(trainer)
    assert trainer.ema.statistics == {}
    assert not trainer.model[2].training or trainer.model[2].num_batches_tracked == 0


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize(("anneal", "over"), [("", 0), (", anneal: 4 steps", 4)])
def test_the_rate_is_that_of_swalr(shape: str, anneal: str, over: int) -> None:
    schedule = "lr_scheduler={type: StepLR, every: step, args: {step_size: 1, gamma: 0.9}}"
    swa = f"trainer.swa={{start: 1 epoch, lr: 0.02, shape: {shape}{anneal}}}"
    groups = "optimizer.param_groups=[{match: '*.bias', lr: 0.2}]"
    seen: list[list[float]] = []

    class Rates(Callback):
        def on_step_end(self, trainer: Any) -> None:
            seen.append([group["lr"] for group in trainer.optimizers["main"].param_groups])

    trainer = make(schedule, swa, groups)
    trainer.callbacks["rates"] = Rates()
    train_in(trainer)

    first = [group["lr"] for group in make(groups).optimizers["main"].param_groups]
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in first], lr=0.1)
    constants = [0.2 * lr for lr in first]  # 0.02 for the rate of 0.1
    expected = [[lr * 0.9**step for lr in first] for step in range(1, 5)]
    for group, lr in zip(optimizer.param_groups, expected[-1], strict=True):
        group["lr"] = lr
    by_torch = SWALR(optimizer, constants, over, "cos" if shape == "cosine" else "linear")
    for _ in range(5, 11):
        optimizer.step()
        by_torch.step()
        expected.append([group["lr"] for group in optimizer.param_groups])
    assert seen == [pytest.approx(each, rel=1e-9) for each in expected]


@pytest.mark.parametrize("stop_at", [3, 5, 6, 8, 9])
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["trainer.swa.lr=0.02", "trainer.swa.anneal=3 steps"],
        [
            "lr_scheduler={type: OneCycleLR, args: {max_lr: 0.1}, every: step}",
            "trainer.swa.lr=0.05",
        ],
        ["memory.accumulate=2", "trainer.swa.every=1 step"],
        ["trainer.on_nonfinite=rollback"],
    ],
    ids=["plain", "rate", "one cycle", "accumulate", "rollback"],
)
def test_a_run_resumes_to_the_same_bits(stop_at: int, more: list[str], tmp_path: Path) -> None:
    stop_at = min(stop_at, 4) if "memory.accumulate=2" in more else stop_at
    assert_resumes(tmp_path, NORM, SWA, *more, stop_at=stop_at)


def test_a_checkpoint_gives_the_averages_and_their_statistics(tmp_path: Path) -> None:
    trainer = run(tmp_path, NORM, SWA, "trainer.monitor=off")
    found = read_weights(tmp_path)
    with trainer.ema.swapped_in():
        assert_same(found, dict(trainer.model.state_dict()))
    trained = read_weights(tmp_path, ema=False)
    assert_same(trained, dict(trainer.model.state_dict()))


def test_a_longer_run_keeps_an_average_that_has_begun(tmp_path: Path) -> None:
    swa = "trainer.swa={start: 50%, every: 1 step, lr: 0.02}"
    run(tmp_path, NORM, swa)
    kept = read(tmp_path)["ema"]["n_averaged"]
    trainer = run(tmp_path, NORM, swa, "trainer.epochs=4", resume=True)
    assert (kept, trainer.ema.n_averaged) == (6, 16)
    assert trainer.optimizers["main"].param_groups[0]["lr"] == 0.02


class OwnStep(Trainer):
    def train_step(self, batch: Any) -> dict[str, Any]:
        return super().train_step(batch)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return self.linear(x.flatten(1))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["trainer.ema={}"], "'ema' at .* and 'swa' at .* are mutually exclusive"),
        (["trainer.swa.start=9 epochs"], "begins after step 45, and training ends after step 10"),
        (["trainer.swa.anneal=1 epoch"], "the way to the rate `lr`, which is not given"),
        (["trainer.swa.lr=0"], "trainer.swa.lr"),
    ],
)
def test_a_mistake_is_one_clear_line(more: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make(NORM, SWA, *more)


def test_a_trainer_whose_networks_cannot_be_measured_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from base.run.checks import check_settings

    with pytest.raises(ConfigError, match="OwnStep does not define"):
        check_settings(make(NORM, SWA, trainer=OwnStep))
    monkeypatch.setitem(MODELS.registered, "Plain", Plain)
    check_settings(make("model=Plain", SWA, trainer=OwnStep))  # without BatchNorm


@pytest.mark.parametrize(("first", "then"), [("trainer.ema={}", SWA), (SWA, "trainer.ema={}")])
def test_the_other_average_is_not_resumed(first: str, then: str, tmp_path: Path) -> None:
    run(tmp_path, first, stop_at=7)
    with pytest.raises(CheckpointError, match=r"ema: .*these are the averages of trainer\."):
        run(tmp_path, then, resume=True)


def test_several_processes_are_refused() -> None:
    from base.config import load_config
    from base.names.exclusions import check_combinations
    from tests.base.toy import CONFIG

    with pytest.raises(ConfigError, match="swa: cannot be used with 2 processes"):
        check_combinations(load_config(None, [SWA], text=CONFIG), 2)


def test_the_optimizers_own_rate_of_0_takes_the_highest_group() -> None:
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, (0.1, 0.4), strict=True)]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    assert SwaSchedule(optimizer, None, 1, 0, 0.2, "linear").rates == [0.05, 0.2]


def test_weights_of_the_model_are_back_after_an_epoch() -> None:
    trainer = make(NORM, SWA)
    train_in(trainer)
    before = weights(trainer)
    with pytest.raises(ValueError, match="stopped"), trainer.ema.recomputed():
        raise ValueError("stopped")
    assert_same(weights(trainer), before)
    assert trainer.ema.statistics
