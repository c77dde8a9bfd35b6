"""`--check lr`: a range test whose divergence and suggestion have a closed form."""

from __future__ import annotations

import math
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_networks import Pair, WganTrainer
from torch import Tensor
from toy import NETWORKS, assert_same, make

from base.errors import ConfigError, KindlingError, UsageError
from base.names.registry import MODELS
from base.run.check_kinds import run_check
from base.run.check_steps import Steps, copied, peak_rates
from base.run.rate_check import HIGHEST, LOWEST, N_STEPS, RangeTest, check_rates
from base.run.rate_plot import text_plot

LINEAR = """
name: linear
seed: 1
model: {{type: MLP, args: {{n_inputs: 3, hidden: [], n_outputs: 1}}}}
data_loader:
  type: DatasetLoader
  args:
    dataset: {{type: CsvDataset, args: {{file: {file}, target: y, task: regression}}}}
    batch_size: 64
    split: 0
    shuffle: false
optimizer: {{type: SGD, args: {{lr: 0.01}}}}
loss: mse_loss
trainer: {{epochs: 2, tensorboard: false, progress: false, verbosity: 0}}
"""


def linear(folder: Path, scale: float, *overrides: str) -> tuple[Any, Tensor, Tensor]:
    """Return a trainer of a linear regression on 64 samples in one batch, and the data."""
    random = np.random.default_rng(0)
    inputs = scale * random.normal(size=(64, 3))
    targets = inputs @ [1.0, -2.0, 0.5] + 3.0
    rows = [*np.column_stack([inputs, targets])]
    text = "\n".join(["a,b,c,y", *(",".join(map(repr, map(float, row))) for row in rows)])
    (folder / "line.csv").write_text(text)
    trainer = make(*overrides, text=LINEAR.format(file=folder / "line.csv"))
    return trainer, torch.tensor(inputs), torch.tensor(targets)


def highest_stable_rate(inputs: Tensor) -> float:
    """Return 2 over the largest eigenvalue of the Hessian of the mean squared error."""
    ones = torch.ones(len(inputs), 1, dtype=inputs.dtype)
    design = torch.cat([inputs, ones], dim=1)
    hessian = 2 * design.T @ design / len(design)
    return 2 / float(torch.linalg.eigvalsh(hessian).max())


def losses_of_descent(inputs: Tensor, targets: Tensor, rate: float, n_steps: int) -> list[float]:
    """Return the losses of gradient descent at one rate, without this engine."""
    weight, bias = torch.zeros(3, dtype=torch.double), torch.zeros((), dtype=torch.double)
    losses = []
    for _ in range(n_steps):
        error = inputs @ weight + bias - targets
        losses.append(float(error.square().mean()))
        weight = weight - rate * 2 * inputs.T @ error / len(inputs)
        bias = bias - rate * 2 * error.mean()
    return losses


def numbers_in(text: str, word: str) -> float:
    return float(text.split(word, 1)[1].split()[0].rstrip(",)"))


@pytest.mark.parametrize("scale", [0.5, 3.0, 20.0])
def test_the_suggestion_is_below_the_largest_stable_rate_of_a_quadratic(
    tmp_path: Path, scale: float
) -> None:
    trainer, inputs, targets = linear(tmp_path, scale)
    limit = highest_stable_rate(inputs)
    text, code = check_rates(trainer, picture=tmp_path / "lr.png")
    assert code == 0
    # Beyond the limit a loss that is near 0 needs some steps to grow.
    assert limit < numbers_in(text, "diverged at ") < 10 * limit
    suggested = numbers_in(text, "suggested ")
    assert limit / 40 < suggested < limit
    assert suggested == numbers_in(text, "use it by --lr ")
    falling = losses_of_descent(inputs, targets, suggested, 200)
    assert falling == sorted(falling, reverse=True)
    assert losses_of_descent(inputs, targets, 1.1 * limit, 200)[-1] > falling[0]
    assert (tmp_path / "lr.png").read_bytes()[:4] == b"\x89PNG"


def test_the_losses_are_those_of_a_plain_loop_with_the_same_rates(tmp_path: Path) -> None:
    trainer, inputs, targets = linear(tmp_path, 1.0)
    start = {name: p.detach().double() for name, p in trainer.model.named_parameters()}
    weight, bias = (next(p for n, p in start.items() if n.endswith(k)) for k in ("weight", "bias"))
    seen: list[float] = []
    rates: list[float] = []
    add = RangeTest.add

    def noted(self: RangeTest, rate: float, loss: float) -> bool:
        rates.append(rate)
        seen.append(loss)
        return add(self, rate, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RangeTest, "add", noted)
        check_rates(trainer, picture=tmp_path / "lr.png")
    expected = []
    weight, bias = weight[0], bias[0]
    for rate in rates:
        error = inputs @ weight + bias - targets
        expected.append(float(error.square().mean()))
        weight = weight - rate * 2 * inputs.T @ error / len(inputs)
        bias = bias - rate * 2 * error.mean()
    assert rates[0] == LOWEST
    assert np.allclose(rates[1] / rates[0], (HIGHEST / LOWEST) ** (1 / (N_STEPS - 1)))
    n = next(k for k, loss in enumerate(expected) if loss < 1e-2)  # then float32 rounds
    assert n > 100
    assert np.allclose(seen[:n], expected[:n], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ([], "use it by --lr "),
        (
            ["lr_scheduler={type: OneCycleLR, args: {max_lr: 0.2}, every: step}"],
            "use it by --set lr_scheduler.args.max_lr=",
        ),
    ],
)
def test_the_command_sets_the_rate_that_the_schedule_reaches(
    tmp_path: Path, overrides: list[str], text: str
) -> None:
    trainer, *_ = linear(tmp_path, 1.0, *overrides)
    report, _ = check_rates(trainer, picture=tmp_path / "lr.png")
    assert text in report
    assert f"config    {2e-1 if overrides else 1e-2:.1e}" in report


def test_a_rate_of_0_is_compared_too(tmp_path: Path) -> None:
    trainer, *_ = linear(tmp_path, 1.0, "optimizer.args.lr=0")
    report, code = check_rates(trainer, picture=tmp_path / "lr.png")
    assert code == 0
    assert "config    0.0e+00  trains nothing" in report


def test_groups_keep_their_ratio(tmp_path: Path) -> None:
    rates: list[list[float]] = []
    trainer, *_ = linear(tmp_path, 1.0, "optimizer.param_groups=[{match: '*.bias', lr: 0.001}]")
    add = RangeTest.add

    def noted(self: RangeTest, rate: float, loss: float) -> bool:
        (optimizer,) = trainer.optimizers.values()
        rates.append([rate, *(group["lr"] for group in optimizer.param_groups)])
        return add(self, rate, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RangeTest, "add", noted)
        report, _ = check_rates(trainer, picture=tmp_path / "lr.png")
    for rate, high, low in rates:
        assert math.isclose(max(high, low), rate, rel_tol=1e-9)
        assert math.isclose(max(high, low) / min(high, low), 10, rel_tol=1e-6)
    assert "groups kept their ratios: 1, 0.1" in report


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.param_groups=[{match: '*.bias', lr: 0.1}]"],
        ["optimizer.param_groups=[{match: '*.bias', lr: 0.001}, {match: '*.weight', lr: 0.02}]"],
        [
            "optimizer.param_groups=[{match: '*.bias', lr: 0.1}]",
            "lr_scheduler={type: OneCycleLR, args: {max_lr: 0.2}, every: step}",
        ],
        ["optimizer.layer_decay=0.5"],
        ["optimizer={type: SGD, args: {lr: 0}, param_groups: [{match: '*.bias', lr: 0.01}]}"],
    ],
)
def test_the_options_make_the_suggestion_the_highest_rate(
    tmp_path: Path, overrides: list[str]
) -> None:
    before, *_ = linear(tmp_path, 1.0, *overrides)
    (old,) = peak_rates(before).values()
    report, _ = check_rates(before, picture=tmp_path / "lr.png")
    used = report.partition("use it by ")[2].partition("these multiply")[0].partition("the rates")
    options = re.findall(r"--(?:set |)(\S+?)[= ]([\d.e+-]+)", used[0])
    assert options
    changes = [f"{'optimizer.args.lr' if key == 'lr' else key}={value}" for key, value in options]
    after, *_ = linear(tmp_path, 1.0, *overrides, *changes)
    (new,) = peak_rates(after).values()
    assert max(new) == pytest.approx(numbers_in(report, "suggested "), rel=0.05)
    assert [rate / max(new) for rate in new] == pytest.approx(
        [rate / max(old) for rate in old], rel=0.1
    )


def test_the_rate_is_that_of_the_groups_that_are_trained(tmp_path: Path) -> None:
    rules = ["optimizer.param_groups=[{match: '*.bias', lr: 0.1}]"]
    frozen = "freeze={match: '*.bias', until: 1000 steps}"
    long = "trainer.epochs=2000"
    report, _ = check_rates(linear(tmp_path, 1.0, *rules, frozen, long)[0])
    assert "config    1.0e-02" in report
    report, _ = check_rates(linear(tmp_path, 1.0, *rules, long)[0])
    assert "config    1.0e-01" in report


@pytest.mark.parametrize("kind", ["lr", "overfit"])
def test_freezing_until_counts_the_steps_of_a_check(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = "freeze={match: '*.bias', until: 30 steps}"
    trainer, *_ = linear(tmp_path, 1.0, rule, "trainer.epochs=99")
    (bias,) = (p for name, p in trainer.model.named_parameters() if name.endswith("bias"))
    values: list[float] = []
    on_step_end = Steps.on_step_end

    def noted(steps: Steps, trainer: Any) -> None:
        values.append(bias.item())
        on_step_end(steps, trainer)

    monkeypatch.setattr(Steps, "on_step_end", noted)
    run_check(trainer, kind, tmp_path / "lr.png")
    assert len({*values[:30]}) == 1
    assert len({*values[29:40]}) == 11


@pytest.mark.parametrize(("n_steps", "is_reported"), [(30, False), (120, True)])
def test_a_signal_reports_the_steps_so_far(
    tmp_path: Path,
    n_steps: int,
    is_reported: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add = RangeTest.add

    def interrupted(self: RangeTest, rate: float, loss: float) -> bool:
        if len(self.rates) + 1 == n_steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return add(self, rate, loss)

    monkeypatch.setattr(RangeTest, "add", interrupted)
    trainer, *_ = linear(tmp_path, 1.0, "optimizer.args.lr=2")
    picture = tmp_path / "lr.png"
    if is_reported:
        report, code = check_rates(trainer, picture=picture)
        assert code == 128 + signal.SIGTERM
        assert f"learning rate: {n_steps} steps from 1.0e-07" in report
        assert "stopped by SIGTERM: rates above" in report
        assert "config    2.0e+00  was not reached" in report
    else:
        with pytest.raises(KindlingError, match="stopped by SIGTERM; nothing was written"):
            check_rates(trainer, picture=picture)
    assert picture.exists() == is_reported
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("learning rate: up to 160 steps, from 1.0e-07 to 1.0e+01")


def test_nothing_is_suggested_where_nothing_can_be_learned(tmp_path: Path) -> None:
    trainer, *_ = linear(tmp_path, 1.0)
    for parameter in trainer.model.parameters():
        parameter.register_hook(torch.zeros_like)
    report, code = check_rates(trainer, picture=tmp_path / "lr.png")
    assert code == 1
    assert "the loss fell at no rate" in report
    assert "use it by" not in report


@pytest.mark.parametrize(
    "overrides",
    [
        ["memory.accumulate=2"],
        ["memory.micro_batch=2"],
        ["optimizer={type: LBFGS, args: {lr: 0.1}}"],
        ["optimizer.clip_norm=0.1"],
        ["trainer.ema={decay: 0.9}"],
        ["memory.optimizer_in_backward=true"],
        ["trainer.epochs=1"],
        ["trainer.on_nonfinite=skip", "optimizer.args.lr=10"],
    ],
)
def test_the_step_is_the_configs_and_no_state_changes(tmp_path: Path, overrides: list[str]) -> None:
    trainer = make(*overrides)
    before = {name: copied(one.state_dict()) for name, one in trainer.stateful.items()}
    report, code = run_check(trainer, "lr", tmp_path / "lr.png")
    assert code in (0, 1)
    assert "steps from 1.0e-07" in report
    for name in ("model", "ema"):
        if name in before:
            assert_same(dict(trainer.stateful[name].state_dict()), dict(before[name]), name)


def test_each_of_several_optimizers_is_tried_or_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS.registered, "Pair", Pair)
    both, _ = run_check(make(trainer=WganTrainer, text=NETWORKS), "lr", tmp_path / "lr.png")
    assert "learning rate of generator" in both
    assert "learning rate of critic" in both
    one, _ = run_check(make(trainer=WganTrainer, text=NETWORKS), "lr:critic", tmp_path / "lr.png")
    assert "generator" not in one
    with pytest.raises(UsageError, match=r"no such optimizer; did you mean 'critic'\?"):
        run_check(make(trainer=WganTrainer, text=NETWORKS), "lr:critik", tmp_path / "lr.png")


def test_the_curve_in_text_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [10 ** (k / 10 - 6) for k in range(60)]
    losses = [2.0 - k / 60 for k in range(50)] + [5.0] * 9 + [math.inf]
    for width in (40, 80, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = text_plot(rates, losses).splitlines()
        assert len(lines) == 10
        assert max(map(len, lines)) <= width
        assert sum(line.count("*") for line in lines) > 20


def test_a_config_that_cannot_train_is_refused_as_for_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no value 'valid/los' is logged"):
        run_check(make("trainer.monitor=min valid/los"), "lr", tmp_path / "lr.png")
    assert not (tmp_path / "lr.png").exists()
