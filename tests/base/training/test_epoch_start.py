"""The start of an epoch: called once, again where a run resumes, and exact all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import assert_same, make, run, train_in, weights

from base import callbacks
from base.callbacks import Callback
from base.checkpoint.store import read
from base.names.registry import CALLBACKS, LOSSES, MODELS
from base.run.checks import check
from base.run.dry_run_report import dry_run
from base.run.testing import run_test
from logger.csv_writer import read_rows
from model.model import MLP
from trainer.trainer import Trainer


class DeferredWeights(nn.Module):
    """LDAM-DRW's habit: useless before its first call; classes are weighted from epoch 1 on."""

    def before_epoch(self, epoch: int) -> None:
        self.weight = None if epoch < 1 else torch.tensor([0.2, 1.0, 1.8])

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(2 * output, target, weight=self.weight)


class Widening(MLP):
    """A curriculum: the inputs come in one by one."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.flatten(1) * (torch.arange(5) <= self.level))


class Number:
    """State that each call multiplies."""

    def __init__(self) -> None:
        self.value = torch.ones(())

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"].clone()


class Everything(Trainer):
    """A deferred loss, a curriculum, another order, and a registered number with what follows."""

    def __init__(self, experiment: Any) -> None:
        super().__init__(experiment)
        self.number, self.calls = Number(), []
        self.register("number", self.number)

    def begin_epoch(self) -> None:
        progress = self.progress
        self.calls.append((progress.epoch, progress.batch, progress.samples))
        self.losses["DeferredWeights"].function.before_epoch(progress.epoch)
        self.model.level = 1 + progress.epoch
        self.train_loader.shuffle = progress.epoch % 2 == 1
        self.number.value = 0.5 * self.number.value
        self.scale = 1 + float(self.number.value) + progress.samples / 100 + float(torch.rand(()))

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        if self.model.training:
            self.number.value = self.number.value + 0.01
        size = self.scale * outputs.square().mean()
        return {**super().compute_losses(outputs, batch), "size": size}


class Weighting(Callback):
    """The same deferred weights by a callback; it counts its calls, and that is saved."""

    def __init__(self) -> None:
        self.n_calls = 0

    def on_epoch_start(self, trainer: Any) -> None:
        self.n_calls += 1
        trainer.losses["DeferredWeights"].function.before_epoch(self.n_calls - 1)

    def state_dict(self) -> dict[str, Any]:
        return {"n_calls": self.n_calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.n_calls = state["n_calls"]


ALL = ("loss=DeferredWeights", "model.type=Widening", "trainer.epochs=3")
BY_CALLBACK = ("loss=DeferredWeights", "callbacks=[Weighting]", "trainer.epochs=3")


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES.registered, "DeferredWeights", DeferredWeights)
    monkeypatch.setitem(MODELS.registered, "Widening", Widening)
    monkeypatch.setitem(CALLBACKS.registered, "Weighting", Weighting)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_cut_resumes_to_the_same_bits(tmp_path: Path, accumulate: int) -> None:
    overrides = (*ALL, f"memory.accumulate={accumulate}")
    n_steps = run(tmp_path / "whole", *overrides, trainer=Everything).progress.step
    whole = read(tmp_path / "whole")
    assert n_steps == (15 if accumulate == 1 else 6)
    for cut in range(1, n_steps):
        folder = tmp_path / f"cut{cut}"
        run(folder, *overrides, trainer=Everything, stop_at=cut)
        run(folder, *overrides, trainer=Everything, resume=True)
        assert_same(read(folder), whole, f"cut after step {cut}")


@pytest.mark.parametrize("cut", [3, 5, 7, 12])
def test_callbacks_are_as_exact(tmp_path: Path, cut: int) -> None:
    run(tmp_path / "whole", *BY_CALLBACK)
    run(tmp_path / "cut", *BY_CALLBACK, stop_at=cut)
    resumed = run(tmp_path / "cut", *BY_CALLBACK, resume=True)
    assert resumed.callbacks["Weighting"].n_calls == 3
    assert_same(read(tmp_path / "cut"), read(tmp_path / "whole"))


def test_a_save_of_each_step_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "plain", *ALL, trainer=Everything)
    run(tmp_path / "saved", *ALL, "trainer.save_every=1 steps", trainer=Everything)
    assert_same(read(tmp_path / "saved"), read(tmp_path / "plain"))


def test_it_is_called_once_for_each_epoch(tmp_path: Path) -> None:
    trainer = run(tmp_path, *ALL, trainer=Everything)
    assert trainer.calls == [(0, 0, 0), (1, 0, 20), (2, 0, 40)]


@pytest.mark.parametrize(
    ("cut", "calls"),
    [(5, [(1, 0, 20), (2, 0, 40)]), (7, [(1, 0, 20), (2, 0, 40)]), (12, [(2, 0, 40)])],
)
def test_a_resume_calls_it_for_the_epoch_under_way(
    tmp_path: Path, cut: int, calls: list[Any]
) -> None:
    """In mid-epoch once more, as it was called then; on a boundary for the new epoch alone."""
    run(tmp_path, *ALL, trainer=Everything, stop_at=cut)
    resumed = run(tmp_path, *ALL, trainer=Everything, resume=True)
    if cut == 5:  # the stop came before the epoch was closed
        calls = [(0, 0, 0), *calls]
    assert resumed.calls == calls


def test_a_resume_on_a_boundary_calls_it_for_the_new_epoch_alone(tmp_path: Path) -> None:
    run(tmp_path, *ALL, "trainer.epochs=2", trainer=Everything)
    run(tmp_path / "whole", *ALL, trainer=Everything)
    resumed = run(tmp_path, *ALL, trainer=Everything, resume=True)
    assert resumed.calls == [(2, 0, 40)]
    assert_same(weights(resumed), weights(make_ready(read(tmp_path / "whole"))))


def make_ready(state: Any) -> Any:
    trainer = make(*ALL, trainer=Everything)
    trainer.model.load_state_dict(state["model"])
    return trainer


def test_steps_that_end_within_an_epoch_go_on_exactly(tmp_path: Path) -> None:
    steps = [*ALL[:2], "trainer.epochs=null", "trainer.validate_every=2"]
    run(tmp_path / "whole", *steps, "trainer.steps=13", trainer=Everything)
    run(tmp_path / "cut", *steps, "trainer.steps=7", trainer=Everything)
    run(tmp_path / "cut", *steps, "trainer.steps=13", trainer=Everything, resume=True)
    ours, theirs = read(tmp_path / "cut"), read(tmp_path / "whole")
    for name in ("model", "number", "optimizer.main", "random"):
        assert_same(ours[name], theirs[name], name)


def test_what_is_derived_follows_a_closed_form(tmp_path: Path) -> None:
    """w is halved at each start and grows by 0.01 in each of 5 batches, however often it is cut."""
    value = torch.ones(())
    for _ in range(3):
        value = 0.5 * value
        for _ in range(5):
            value = value + 0.01
    run(tmp_path, *ALL, trainer=Everything, stop_at=2)
    for cut in (4, 8, 13):
        trainer = run(tmp_path, *ALL, trainer=Everything, resume=True, stop_at=cut)
    trainer = run(tmp_path, *ALL, trainer=Everything, resume=True)
    assert torch.equal(trainer.number.value, value)


# --- Random streams, modes and what is tried ------------------------------------------------------


class Drawing(Trainer):
    def begin_epoch(self) -> None:
        self.drawn = (*getattr(self, "drawn", ()), float(torch.rand(())))


def test_its_random_numbers_are_its_own() -> None:
    plain, drawing = make(), make(trainer=Drawing)
    train_in(plain)
    torch.rand(7)  # what else was drawn has no part in them
    train_in(drawing)
    assert_same(weights(drawing), weights(plain))
    again = make("trainer.epochs=3", trainer=Drawing)
    train_in(again)
    assert again.drawn[:2] == drawing.drawn
    assert len(set(again.drawn)) == 3


@pytest.mark.parametrize("overrides", [(), ("data_loader.args.validation_split=0",)])
@pytest.mark.parametrize("tried", [check, dry_run])
def test_what_is_tried_before_training_needs_it_and_leaves_no_trace(
    tried: Any, overrides: tuple[str, ...]
) -> None:
    trainer = make(*ALL, *overrides, trainer=Everything)
    before = weights(trainer)
    tried(trainer)
    assert trainer.number.value == 1
    assert trainer.calls == []
    assert not hasattr(trainer, "scale")
    assert not hasattr(trainer.model, "level")
    assert not hasattr(trainer.losses["DeferredWeights"].function, "weight")
    assert_same(weights(trainer), before)
    fresh = make(*ALL, *overrides, trainer=Everything)
    train_in(fresh)
    train_in(trainer)
    assert_same(weights(trainer), weights(fresh))
    assert trainer.calls == fresh.calls


def test_the_trial_of_a_micro_batch_needs_it_too(tmp_path: Path) -> None:
    trainer = run(tmp_path, *ALL, "memory.micro_batch=auto", trainer=Everything)
    assert trainer.calls == [(0, 0, 0), (1, 0, 20), (2, 0, 40)]


def test_the_check_needs_what_a_callback_does() -> None:
    trainer = make(*BY_CALLBACK)
    check(trainer)
    assert trainer.callbacks["Weighting"].n_calls == 0


def test_a_callback_that_needs_its_start_does_not_stop_the_check() -> None:
    class Later(Callback):
        def on_start(self, trainer: Any) -> None:
            self.n_calls = 0

        def on_epoch_start(self, trainer: Any) -> None:
            self.n_calls += 1

    trainer = make()
    trainer.callbacks["later"] = later = Later()
    check(trainer)
    train_in(trainer)
    assert later.n_calls == 2


class Held(Trainer):
    """Keeps its normalisation in evaluation, as people do while they fine-tune."""

    def begin_epoch(self) -> None:
        self.model.norm.eval()


def test_modes_that_it_sets_hold_until_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(5), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x.flatten(1)))

    monkeypatch.setitem(MODELS.registered, "Normed", Normed)
    # A last batch of one sample: BatchNorm could not be trained on it.
    alone = ("model={type: Normed}", "data_loader.args.batch_size=19")
    trainer = make(*alone, trainer=Held)
    check(trainer)
    train_in(trainer)
    assert torch.equal(trainer.model.norm.running_mean, torch.zeros(5))


# --- Class weights that are exchanged -------------------------------------------------------------


class Exchanging(Trainer):
    def begin_epoch(self) -> None:
        self.losses["CrossEntropyLoss"].function.weight = torch.tensor([0.1, 1.0, 3.0])


def test_means_count_by_the_weights_that_are_there_now(tmp_path: Path) -> None:
    """Against one call of torch's loss on all validation samples."""
    trainer = make("loss=CrossEntropyLoss", "data_loader.args.batch_size=3", trainer=Exchanging)
    values = train_in(trainer)
    trainer.model.eval()
    batches = list(trainer.valid_loader.batches(0, len(trainer.valid_loader)))
    images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        expected = F.cross_entropy(
            trainer.model(images), targets, weight=torch.tensor([0.1, 1.0, 3.0])
        )
    assert values["valid/loss"] == pytest.approx(float(expected), rel=1e-5)


def test_accumulated_batches_are_one_large_batch_under_new_weights() -> None:
    large = [
        "loss=CrossEntropyLoss",
        "data_loader.args.batch_size=20",
        "data_loader.args.shuffle=false",
    ]
    small = [*large[::2], "data_loader.args.batch_size=5", "memory.accumulate=4"]
    one, parts = make(*large, trainer=Exchanging), make(*small, trainer=Exchanging)
    train_in(one)
    train_in(parts)
    for name, weight in weights(parts).items():
        torch.testing.assert_close(weight, weights(one)[name])


class Growing(nn.Module):
    """A loss with a buffer that is None when it is built, beside another one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", None)
        self.register_buffer("n_calls", torch.zeros(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.n_calls += torch.is_grad_enabled()
        return F.cross_entropy(output, target, self.weight)


class Late(Trainer):
    def begin_epoch(self) -> None:
        if self.progress.epoch == 1:
            self.losses["Growing"].function.weight = torch.tensor([0.2, 1.0, 1.8])


@pytest.mark.parametrize("cut", [3, 5, 7, 11])
def test_a_buffer_that_came_later_is_resumed(
    tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES.registered, "Growing", Growing)
    overrides = ("loss=Growing", "trainer.epochs=3")
    run(tmp_path / "whole", *overrides, trainer=Late)
    run(tmp_path / "cut", *overrides, trainer=Late, stop_at=cut)
    run(tmp_path / "cut", *overrides, trainer=Late, resume=True)
    assert_same(read(tmp_path / "cut"), read(tmp_path / "whole"))


# --- Rollbacks and tests --------------------------------------------------------------------------


class Exploding(Everything):
    """Its loss is no number in the third batch of the last epoch."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        losses = super().compute_losses(outputs, batch)
        is_bad = self.model.training and self.progress.batches_total == 12
        return {**losses, "size": losses["size"] / (0 if is_bad else 1)}

    def train_step(self, batch: Any) -> Any:
        self.started = getattr(self, "started", {})
        self.started.setdefault(self.progress.batches_total, (self.scale, float(self.number.value)))
        return super().train_step(batch)


@pytest.mark.parametrize("save_every", ["1 epoch", "2 epochs", "2 steps"])
def test_after_a_rollback_each_start_counts_once(tmp_path: Path, save_every: str) -> None:
    overrides = ("trainer.on_nonfinite=rollback", f"trainer.save_every={save_every}")
    trainer = run(tmp_path, *ALL, *overrides, "trainer.monitor=off", trainer=Exploding)
    # The kept state is of step 12, or of the end of epoch 1 and then the start of epoch 2.
    good = 12 if save_every == "2 steps" else 10
    assert trainer.progress.rollbacks == 1
    assert trainer.started[13][1] == trainer.started[good][1]
    assert trainer.model.level == 3


def test_a_rollback_over_several_epochs_repeats_their_starts(tmp_path: Path) -> None:
    """w = 1 at the begin; halved three times on the way back: what the batches added is undone."""
    overrides = ("trainer.on_nonfinite=rollback", "trainer.save_every=9 epochs")
    trainer = run(tmp_path, *ALL, *overrides, "trainer.monitor=off", trainer=Exploding)
    assert trainer.progress.rollbacks == 1
    assert trainer.started[13][1] == 0.125


def test_rates_that_it_lowers_are_not_lowered_again_by_a_rollback() -> None:
    class Lowering(Exploding):
        def begin_epoch(self) -> None:
            super().begin_epoch()
            for group in self.optimizers["main"].param_groups:
                group["lr"] *= 0.5

    trainer = make(*ALL, "trainer.on_nonfinite=rollback", trainer=Lowering)
    train_in(trainer)
    assert trainer.progress.rollbacks == 1
    assert trainer.optimizers["main"].param_groups[0]["lr"] == 0.1 * 0.5**3


def test_a_test_is_made_as_the_epoch_of_its_checkpoint_was_validated(tmp_path: Path) -> None:
    """On the same data, so that the test's loss is that epoch's validation loss."""
    trainer = run(tmp_path, *ALL, trainer=Everything)
    trainer.experiment.test_loader = trainer.valid_loader
    rows = {
        int(row["epoch"]): float(row["valid/loss"]) for row in read_rows(tmp_path / "metrics.csv")
    }
    for path in sorted((tmp_path / "checkpoints").glob("step-*")):
        fresh = make(*ALL, trainer=Everything, weights=False)
        fresh.experiment.test_loader = fresh.valid_loader
        values = run_test(fresh, path, tmp_path)
        assert values["loss"] == pytest.approx(rows[int(path.name[5:]) // 5], rel=1e-6)
        level = trainer.model.level
        trainer.calls.clear()
        run_test(trainer, path, tmp_path)
        assert (trainer.model.level, trainer.calls) == (level, [])


def test_a_run_from_before_there_was_a_start_goes_on(tmp_path: Path) -> None:
    class Plain(Trainer):
        def __init__(self, experiment: Any) -> None:
            super().__init__(experiment)
            self.register("number", Number())

    run(tmp_path, "trainer.epochs=3", trainer=Plain, stop_at=7)

    class Since(Plain):
        def begin_epoch(self) -> None:
            self.calls = (*getattr(self, "calls", ()), self.progress.epoch)

    assert run(tmp_path, "trainer.epochs=3", trainer=Since, resume=True).calls == (1, 2)


def test_an_error_in_it_is_shown_as_it_is() -> None:
    class Failing(Trainer):
        def begin_epoch(self) -> None:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        check(make(trainer=Failing))


def test_a_callback_of_any_name_is_called_at_the_start_of_an_epoch() -> None:
    seen: list[int] = []

    class Callback(callbacks.Callback):
        def on_epoch_start(self, trainer: Any) -> None:
            seen.append(trainer.progress.epoch)

    trainer = make()
    trainer.callbacks["mine"] = Callback()
    train_in(trainer)
    assert seen == [0, 1]


def test_what_an_epoch_sets_on_a_shipped_transform_counts_once() -> None:
    """The checks before training begin the epoch too; what they set is restored."""
    seen: list[int] = []

    class Shifting(Trainer):
        def __init__(self, experiment: Any) -> None:
            super().__init__(experiment)
            self.shift = self.build("transform", {"type": "RandomShift", "args": {"pixels": 1}})

        def begin_epoch(self) -> None:
            self.shift.pixels += 1
            seen.append(self.shift.pixels)

    trainer = make(trainer=Shifting)
    check(trainer)
    train_in(trainer)
    assert seen[-2:] == [2, 3]


def test_the_metrics_of_validation_can_be_replaced() -> None:
    class Unmeasured(Trainer):
        def __init__(self, experiment: Any) -> None:
            super().__init__(experiment)
            self.valid_metrics = {}

    values = train_in(make("metrics=[accuracy]", trainer=Unmeasured))
    assert "train/accuracy" in values
    assert "valid/accuracy" not in values
