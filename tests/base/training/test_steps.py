"""The tools of a step: several backward passes, `every:`, `only`, and what no loss reaches."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import NETWORKS, assert_resumes, assert_same, batches, make, run, train_in, weights

from base.errors import ConfigError, TrainingError
from base.names.registry import MODELS
from base.run.checks import check
from tests.base.run.test_networks import Pair, WganTrainer
from trainer.trainer import Trainer

EVERY = "optimizers.generator.every=3 steps"


@pytest.fixture(autouse=True)
def _pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Pair", Pair)


def networks(*overrides: str, trainer: Any = WganTrainer) -> Any:
    return make(*overrides, trainer=trainer, text=NETWORKS)


class Traced(WganTrainer):
    """Notes at which steps each network moved."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        before = weights(self)
        values = super().train_step(batch)
        moved = {n.partition(".")[0] for n, w in weights(self).items() if not w.equal(before[n])}
        self.moved = [*getattr(self, "moved", []), moved]
        return values


def test_an_optimizer_steps_at_each_nth_step_of_the_run(tmp_path: Path) -> None:
    trainer = run(tmp_path, EVERY, trainer=Traced, text=NETWORKS)
    both, one = {"critic", "generator"}, {"critic"}
    assert trainer.moved == [one, one, both, one, one, both, one, one, both, one]


def test_is_due_tells_the_step_that_is_being_made() -> None:
    trainer = networks(EVERY)
    for step, expected in enumerate([False, False, True, False, False, True]):
        trainer.progress.step = step
        assert trainer.is_due("generator") is expected
        assert trainer.is_due("critic")


@pytest.mark.parametrize("stop_at", [2, 3, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_is_resumed_exactly(tmp_path: Path, stop_at: int, accumulate: int) -> None:
    overrides = [EVERY, f"memory.accumulate={accumulate}", "trainer.epochs=3"]
    assert_resumes(tmp_path, *overrides, stop_at=stop_at, trainer=WganTrainer, text=NETWORKS)


def test_a_schedule_counts_the_steps_of_the_run(tmp_path: Path) -> None:
    schedule = "optimizers.generator.lr_scheduler={type: LinearLR, every: step, args: "
    schedule += "{start_factor: 1.0, end_factor: 0.5, total_iters: 100%}}"
    trainer = run(tmp_path, EVERY, schedule, trainer=WganTrainer, text=NETWORKS)
    assert trainer.optimizers["generator"].param_groups[0]["lr"] == pytest.approx(0.005)


def test_in_only_the_others_collect_no_gradients_and_are_trained_again_after() -> None:
    trainer = networks()
    real = next(batches(trainer))[0].flatten(1)
    frozen = trainer.model.generator[0].bias.requires_grad_(False)
    with trainer.only("critic"):
        assert not any(p.requires_grad for p in trainer.model.generator.parameters())
        fake = trainer.model.generator(torch.ones(4, 3))
        assert not fake.requires_grad
        loss = trainer.model.critic(fake).mean() + trainer.model.critic(real).mean()
        trainer.backward(loss, only="critic")
    assert all(p.grad is not None for p in trainer.model.critic.parameters())
    assert all(p.grad is None for p in trainer.model.generator.parameters())
    on = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert on == {n for n, p in trainer.model.named_parameters() if p is not frozen}


def test_an_exception_leaves_only_with_everything_restored() -> None:
    trainer = networks()
    with pytest.raises(RuntimeError, match="does not require grad"), trainer.only("generator"):
        next(trainer.model.critic.parameters()).sum().backward()
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_a_name_that_no_optimizer_has_is_told() -> None:
    trainer = networks()
    with pytest.raises(TrainingError, match="no optimizer 'critc'; did you mean 'critic'"):
        trainer.only("critc").__enter__()


def shared_losses(trainer: Any) -> list[torch.Tensor]:
    batch = next(batches(trainer))
    outputs = trainer.forward(batch)
    return [
        outputs.square().mean(),
        outputs.sum().mul(0.1),
        trainer.losses["cross_entropy"](outputs, batch[1]),
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_separate_backward_passes_give_the_gradients_of_the_sum(precision: str) -> None:
    one, other = make(f"memory.precision={precision}"), make(f"memory.precision={precision}")
    one.backward(sum(shared_losses(one)))
    other.backward(shared_losses(other))
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(other.model.get_parameter(name).grad, parameter.grad)


def test_the_graph_is_free_after_the_last_backward_pass() -> None:
    trainer = make()
    losses = shared_losses(trainer)
    trainer.backward(losses)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        losses[0].backward()


def test_parameters_that_no_loss_reaches_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Partly(Trainer):
        def forward(self, batch: Any) -> Any:
            return self.model.hidden(batch[0].flatten(1))[:, :3]

    with caplog.at_level(logging.WARNING, logger="kindling"):
        logging.getLogger("kindling").propagate = True
        run(tmp_path, trainer=Partly)
    found = [record.getMessage() for record in caplog.records]
    assert [text for text in found if "no loss reaches head.weight, head.bias" in text] == found


def test_a_duration_that_is_none_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"optimizers\.critic\.every: expected a duration"):
        networks("optimizers.critic.every=often")


def test_a_replaced_zero_grad_is_called() -> None:
    """As a library does that wraps an optimizer, before or after the trainer is built."""
    trainer = make()
    optimizer, calls = trainer.optimizers["main"], []

    def noted(set_to_none: bool = True) -> None:
        calls.append(set_to_none)
        type(optimizer).zero_grad(optimizer, set_to_none)

    optimizer.zero_grad = noted
    trainer.model.train()
    trainer.train_step(next(batches(trainer)))
    assert calls == [True]
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_steppers_that_a_trainer_adds_or_replaces_are_those_that_step() -> None:
    """Replaced, the new one trains; with a second one, a call without a name is ambiguous."""
    trainer = make()
    trainer.model.train()
    (stepper,) = trainer.steppers.values()
    slower = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
    trainer.steppers["main"] = dataclasses.replace(stepper, optimizer=slower)
    before = weights(trainer)
    trainer.train_step(next(batches(trainer)))
    assert_same(weights(trainer), before)

    trainer.steppers["second"] = stepper
    for call in (trainer.is_due, trainer.update, lambda: trainer.backward(torch.ones(()))):
        with pytest.raises(TrainingError, match="there are several optimizers"):
            call()


RETURNED = {
    "train_step": (None, "must be a dict of values by name, not None"),
    "valid_step": (torch.ones(()), "must be a dict of values by name, not a Tensor"),
    "compute_losses": ([torch.ones(())], "`compute_losses` returns must be .*, not a list"),
}


@pytest.mark.parametrize("method", RETURNED)
def test_a_method_that_returns_no_names_is_reported_before_training(
    tmp_path: Path, method: str
) -> None:
    result, message = RETURNED[method]
    own = type("Own", (Trainer,), {method: lambda self, *_: result})
    trainer = make(trainer=own)
    with pytest.raises(TrainingError, match=message):
        check(trainer)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(torch.ones(3), r"of shape \(3,\)"), ("cat", "'cat'"), (None, "None")],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_value_that_is_not_a_number_is_named(value: Any, shown: str, accumulate: int) -> None:
    class Logs(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            return {**super().train_step(batch), "extra": value}

    trainer = make(f"memory.accumulate={accumulate}", trainer=Logs)
    with pytest.raises(TrainingError, match=f"the value 'extra' of a step is {shown}, not one"):
        train_in(trainer)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (lambda losses: losses, r"shape \(4,\)"),
        (lambda losses: losses.mean().item(), r"\d\.\d+"),
        (lambda losses: None, "None"),
        (lambda losses: [losses.mean(), losses], r"shape \(4,\)"),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_no_loss_is_refused_by_backward(given: Any, shown: str, accumulate: int) -> None:
    class Own(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            losses = self.forward(batch).square().mean(dim=1)
            self.backward(given(losses))
            self.update()
            return {"loss": losses.mean()}

    trainer = make(f"memory.accumulate={accumulate}", trainer=Own)
    with pytest.raises(TrainingError, match=f"takes a loss, a tensor of one number, not {shown}:"):
        train_in(trainer)


@pytest.mark.parametrize(
    "kind", [list, tuple, iter, lambda losses: dict(enumerate(losses)).values()]
)
def test_any_iterable_of_losses_is_passed_backward(kind: Any) -> None:
    trainer = make()
    trainer.model.zero_grad()
    total = trainer.model(torch.ones(1, 1, 1, 5)).sum()
    trainer.backward(kind([total, 2 * total]))
    found = [p.grad.clone() for p in trainer.model.parameters()]
    expected = torch.autograd.grad(
        3 * trainer.model(torch.ones(1, 1, 1, 5)).sum(), list(trainer.model.parameters())
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_values_may_be_named_by_numbers() -> None:
    class Stages(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            values = super().train_step(batch)
            return {**values, 1: values["loss"].detach() * 2}

    values = train_in(make(trainer=Stages))
    assert values["train/1"] == pytest.approx(2 * values["train/loss"])
