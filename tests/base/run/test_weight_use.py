"""Loss weights of the config that a custom trainer leaves unused cause one warning, others none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy import NETWORKS, make, run, train_in

from base.names.registry import MODELS
from base.run.checks import check
from base.run.dry_run_report import dry_run
from base.training.results import with_total
from tests.base.run.test_networks import Pair
from trainer.trainer import Trainer

TWO = (
    "loss=[{type: cross_entropy, name: main, weight: 0.5},"
    " {type: cross_entropy, args: {label_smoothing: 0.1}, name: smooth, weight: {from: 0, to: 1}}]"
)
UNUSED = "weights of losses are not used"


def warnings_of(caplog: pytest.LogCaptureFixture, trainer: Any, wanted: str = UNUSED) -> list[str]:
    with caplog.at_level("WARNING", logger="kindling"):
        check(trainer)
        train_in(trainer)
    return [record.message for record in caplog.records if wanted in record.message]


class Sums(Trainer):
    """Adds its losses up by itself."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        losses = {name: loss(outputs, batch[1]) for name, loss in self.losses.items()}
        return {"loss": sum(losses.values()), **losses}


class Computes(Trainer):
    """Never calls the config's losses."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(outputs, batch[1])}


class Steps(Trainer):
    def train_step(self, batch: Any) -> dict[str, Any]:
        outputs = self.forward(batch)
        loss = self.losses["main"](outputs, batch[1]) + self.losses["smooth"](outputs, batch[1])
        self.backward(loss)
        self.update()
        return {"loss": loss}


class Own(Trainer):
    def train_step(self, batch: Any) -> dict[str, Any]:
        loss = F.cross_entropy(self.forward(batch), batch[1])
        self.backward(loss)
        self.update()
        return {"loss": loss}


@pytest.mark.parametrize("trainer", [Sums, Computes, Steps, Own])
@pytest.mark.parametrize("micro_batch", ["null", "2"])
def test_weights_that_are_not_used_are_named_once(
    trainer: type[Trainer], micro_batch: str, caplog: pytest.LogCaptureFixture
) -> None:
    (line,) = warnings_of(caplog, make(TWO, f"memory.micro_batch={micro_batch}", trainer=trainer))
    assert "loss.0.weight" in line
    assert "main (0.5), smooth (0 to 1)" in line
    assert f"{trainer.__name__}." in line


def test_one_of_two_is_named_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Half(Sums):
        def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
            losses = super().compute_losses(outputs, batch)
            weight = self.losses["main"].weight
            return {**losses, "loss": weight * losses["main"] + losses["smooth"]}

    (line,) = warnings_of(caplog, make(TWO, trainer=Half))
    assert "not used: smooth (0 to 1):" in line
    assert "loss.1.weight" in line


class Weighs(Sums):
    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        losses = {name: loss(outputs, batch[1]) for name, loss in self.losses.items()}
        step = self.progress.step
        return {"loss": sum(self.losses[k].weight_at(step) * v for k, v in losses.items())}


class WeighsByTotal(Sums):
    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        losses = {name: loss(outputs, batch[1]) for name, loss in self.losses.items()}
        return {"loss": with_total(losses, self.losses, self.progress.step)["loss"] * 1.0}


class ReadsTheConfig(Sums):
    def __init__(self, experiment: Any) -> None:
        super().__init__(experiment)
        self.share = self.config["loss"][0]["weight"]


class ReadsAtTheStart(Sums):
    def __init__(self, experiment: Any) -> None:
        super().__init__(experiment)
        self.shares = {name: loss.weight for name, loss in self.losses.items()}


class Adds(Trainer):
    """Three lines for a regulariser, as in docs/losses.md."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        losses = super().compute_losses(outputs, batch)
        losses["lasso"] = 1e-3 * sum(p.abs().sum() for p in self.model.parameters())
        return losses


class Super(Trainer):
    def train_step(self, batch: Any) -> dict[str, Any]:
        return super().train_step(batch)


USED = [Trainer, Weighs, WeighsByTotal, ReadsTheConfig, ReadsAtTheStart, Adds, Super]


@pytest.mark.parametrize("trainer", USED)
def test_there_is_no_false_alarm(trainer: type[Trainer], caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(caplog, make(TWO, trainer=trainer)) == []


@pytest.mark.parametrize("trainer", [Sums, Computes, Own])
@pytest.mark.parametrize("loss", ["loss=cross_entropy", "loss=[{type: cross_entropy, weight: 1}]"])
def test_without_weights_there_is_nothing_to_tell(
    trainer: type[Trainer], loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings_of(caplog, make(loss, trainer=trainer)) == []


def test_a_loss_that_comes_later_in_the_run_is_no_false_alarm(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seldom(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            critic = self.model.critic(batch[0].flatten(1)).mean()
            self.backward(critic, only="critic")
            self.update("critic")
            if self.is_due("generator"):
                fake = self.model.generator(torch.ones(len(batch[0]), 3))
                loss = self.losses["mse_loss"](fake, torch.zeros_like(fake))
                self.backward(self.losses["mse_loss"].weight * loss, only="generator")
                self.update("generator")
            return {"loss": critic}

    monkeypatch.setitem(MODELS.registered, "Pair", Pair)
    options = ("optimizers.generator.every=2 steps", "loss=[{type: mse_loss, weight: 3}]")
    assert warnings_of(caplog, make(*options, trainer=Seldom, text=NETWORKS)) == []


def test_a_resumed_run_does_not_warn_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, TWO, trainer=Sums, stop_at=2)
    caplog.clear()
    run(tmp_path, TWO, trainer=Sums, resume=True)
    assert UNUSED not in caplog.text


def test_a_dry_run_warns_too(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="kindling"):
        dry_run(make(TWO, trainer=Sums))
        dry_run(make(TWO, trainer=Adds))
    assert caplog.text.count(UNUSED) == 1


def test_the_memory_trials_do_not_use_the_weights(caplog: pytest.LogCaptureFixture) -> None:
    assert len(warnings_of(caplog, make(TWO, "memory.micro_batch=auto", trainer=Sums))) == 1


# --- A term beside a loss that is called "loss" ---------------------------------------------------

LOST = "logged but not minimised"


def test_a_term_beside_a_loss_called_loss_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = warnings_of(
        caplog, make("loss={type: cross_entropy, name: loss}", trainer=Adds), LOST
    )
    assert "lasso" in line


@pytest.mark.parametrize(
    ("trainer", "loss"),
    [(Trainer, "loss={type: cross_entropy, name: loss}"), (Adds, "loss=cross_entropy")],
)
def test_else_it_is_not(trainer: Any, loss: str, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(caplog, make(loss, trainer=trainer), LOST) == []


def test_a_sum_of_ones_own_is_no_lost_term(caplog: pytest.LogCaptureFixture) -> None:
    class Total(Adds):
        def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
            losses = super().compute_losses(outputs, batch)
            return {**losses, "loss": losses["loss"] + losses["lasso"]}

    loss = "loss={type: cross_entropy, name: loss}"
    assert warnings_of(caplog, make(loss, trainer=Total), LOST) == []


def test_a_regulariser_is_minimised_with_the_weighted_losses() -> None:
    """Against the gradient of the sum, written out."""
    trainer, plain = make(TWO, trainer=Adds), make(TWO)
    batch = next(trainer.train_loader.batches(0, 1))
    trainer.backward(trainer.compute_losses(trainer.forward(batch), batch)["lasso"])
    lasso = [p.grad.clone() for p in trainer.model.parameters()]
    for parameter, gradient in zip(trainer.model.parameters(), lasso, strict=True):
        torch.testing.assert_close(gradient, 1e-3 * parameter.detach().sign())
    trainer = make(TWO, trainer=Adds)
    for each in (trainer, plain):
        each.train_step(batch)
    ours, theirs = (list(each.model.parameters()) for each in (trainer, plain))
    for mine, other, gradient in zip(ours, theirs, lasso, strict=True):
        torch.testing.assert_close(mine, other - 0.1 * gradient)
