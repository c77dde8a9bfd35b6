"""The loop: lengths, the best, what is saved when, what is yours, and what it never does."""

from __future__ import annotations

import csv
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import (
    CONFIG,
    CPU,
    assert_resumes,
    assert_same,
    batches,
    make,
    mark_the_test,
    run,
    train_in,
    weights,
)

from base.base_trainer import BaseTrainer
from base.callbacks import Callback
from base.checkpoint.store import CheckpointStore, read
from base.errors import ConfigError, DataError, TrainingError
from base.names.registry import DATA_LOADERS, LOSSES, MODELS
from base.run.checks import check
from base.run.testing import choose_checkpoint
from logger.meters import Meters
from trainer.trainer import Trainer

APART = (
    "valid_data_loader={type: SyntheticDataLoader, args: {n_samples: 8, shape: [1, 1, 5], "
    "n_classes: 3, training: false, validation_split: 0}}"
)


class Log(Callback):
    """Keeps what was logged for each epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.steps: list[int] = []

    def on_step_end(self, trainer: Any) -> None:
        self.steps.append(trainer.progress.step)

    def on_epoch_end(self, trainer: Any, values: Any) -> None:
        self.rows.append(dict(values))


def train(*overrides: str, trainer: type[BaseTrainer] = Trainer, text: str = CONFIG) -> Any:
    """Train without files; return the trainer, with its log."""
    made = make(*overrides, trainer=trainer, text=text)
    made.callbacks["log"] = made.log = Log()
    made.values = train_in(made)
    return made


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


# --- The numbers of the plain loop ----------------------------------------------------------------


def test_training_is_a_plain_loop() -> None:
    trainer = make("metrics=[accuracy]")
    twin = make().model
    twin.load_state_dict(trainer.model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    losses, right = [], 0
    for inputs, target in batches(trainer):
        outputs = twin(inputs)
        loss = F.cross_entropy(outputs, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        right += (outputs.argmax(1) == target).sum().item() if len(losses) > 5 else 0
    values = train_in(trainer)
    assert_same(trainer.model.state_dict(), twin.state_dict())
    assert values["train/loss"] == pytest.approx(sum(losses[5:]) / 5)
    assert values["train/accuracy"] == pytest.approx(right / 20)

    inputs, target = next(iter(trainer.valid_loader.batches(0, 1)))
    outputs = twin.eval()(inputs)
    assert values["valid/loss"] == pytest.approx(F.cross_entropy(outputs, target).item())
    assert values["valid/accuracy"] == (outputs.argmax(1) == target).float().mean().item()


def test_means_are_weighted_by_the_size_of_batches() -> None:
    trainer = make("data_loader.args.batch_size=7", "trainer.epochs=1", "optimizer.args.lr=1e-12")
    data = list(batches(trainer))
    assert [len(target) for _, target in data] == [7, 7, 6]
    everything = [torch.cat(part) for part in zip(*data, strict=True)]
    expected = F.cross_entropy(trainer.model(everything[0]), everything[1]).item()
    assert train_in(trainer)["train/loss"] == pytest.approx(expected)


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs() -> None:
    dropout = "model.args={n_inputs: 5, hidden: [6], n_outputs: 3, dropout: 0.5}"
    first, second, other = (train(dropout, f"seed={seed}") for seed in (3, 3, 4))
    assert_same(first.model.state_dict(), second.model.state_dict())
    assert first.values["train/loss"] == second.values["train/loss"]
    assert not torch.equal(first.model.head.weight, other.model.head.weight)


class Rolling(Trainer):
    """Draws from every stream of random numbers while it validates."""

    def valid_step(self, batch: Any) -> Any:
        torch.rand(3), np.random.rand(), random.random()
        self.model.train()(batch[0])
        self.model.eval()
        return super().valid_step(batch)


@pytest.mark.parametrize("trainer", [Trainer, Rolling])
@pytest.mark.parametrize("ema", ["null", "{decay: 0.9}"])
def test_validation_does_not_disturb_training(trainer: type[BaseTrainer], ema: str) -> None:
    options = [
        "model.args={n_inputs: 5, hidden: [6], n_outputs: 3, dropout: 0.5}",
        "data_loader.args.validation_split=0",
        f"trainer.ema={ema}",
        "metrics=[accuracy]",
    ]
    alone, checked = make(*options), make(*options, APART, trainer=trainer)
    torch.manual_seed(0)
    train_in(alone)
    check(checked)
    torch.manual_seed(0)
    train_in(checked)
    assert_same(checked.model.state_dict(), alone.model.state_dict())


# --- Length ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "steps", "epochs", "rows"),
    [
        ("{epochs: 3}", 15, 3, 3),
        ("{epochs: null, steps: 7}", 7, 1, 2),
        ("{epochs: null, steps: 10}", 10, 2, 2),
        ("{epochs: null, steps: 2}", 2, 0, 1),
        ("{epochs: 3, epoch_steps: 4}", 12, 3, 3),
        ("{epochs: 2, epoch_steps: 7}", 14, 2, 2),
        ("{epochs: null, steps: 9, epoch_steps: 4}", 9, 2, 3),
    ],
)
def test_lengths(length: str, steps: int, epochs: int, rows: int) -> None:
    trainer = train(f"trainer={length}")
    assert trainer.log.steps == list(range(1, steps + 1))
    assert (trainer.progress.step, trainer.progress.epoch) == (steps, epochs)
    assert len(trainer.log.rows) == rows


def test_epochs_of_another_length_walk_through_the_same_batches() -> None:
    plain = train("trainer={epochs: 4}")
    other = train("trainer={epochs: 5, epoch_steps: 4}")
    assert_same(other.model.state_dict(), plain.model.state_dict())


def test_a_loader_without_length_needs_a_length_of_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        batch_size = 2

        def __iter__(self) -> Any:
            generator = torch.Generator().manual_seed(0)
            while True:
                inputs = torch.randn(2, 5, generator=generator)
                yield inputs, (inputs.sum(1) > 0).long()

    monkeypatch.setitem(DATA_LOADERS.registered, "Stream", Stream)
    with pytest.raises(ConfigError, match="epoch_steps"):
        make("data_loader={type: Stream}")
    trainer = train("data_loader={type: Stream}", "trainer={epochs: 2, epoch_steps: 3}")
    assert trainer.progress.step == 6


def test_an_empty_loader_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA_LOADERS.registered, "Empty", list)
    with pytest.raises(DataError, match="no batches"):
        make("data_loader={type: Empty}")


# --- The best, early stop, validation -------------------------------------------------------------


class Scripted(Trainer):
    """Validates to a loss that is written down beforehand."""

    script = (3.0, 1.0, 2.0, 2.0, 0.5, 4.0)

    def valid_step(self, batch: Any) -> Any:
        loss = torch.tensor(self.script[self.progress.epoch])
        return {"loss": loss, "score": -loss}


@pytest.mark.parametrize(
    ("options", "epochs", "best"),
    [
        (["trainer.epochs=4"], 4, 2),
        (["trainer.epochs=6"], 6, 5),
        (["trainer.epochs=6", "trainer.early_stop=1"], 3, 2),
        (["trainer.epochs=6", "trainer.early_stop=2"], 4, 2),
        (["trainer.epochs=6", "trainer.early_stop=3"], 6, 5),
        (["trainer.epochs=6", "trainer.monitor=max valid/score", "trainer.early_stop=2"], 4, 2),
        (["trainer.epochs=6", "trainer.monitor=max valid/loss", "trainer.early_stop=1"], 2, 1),
        (["trainer.epochs=6", "trainer.monitor=off", "trainer.early_stop=1"], 6, 0),
        (["trainer.epochs=6", "trainer.validate_every=2"], 6, 2),
        (["trainer.epochs=6", "trainer.validate_every=2", "trainer.early_stop=2"], 4, 2),
    ],
)
def test_best_epoch_and_early_stop(options: list[str], epochs: int, best: int) -> None:
    trainer = train(*options, trainer=Scripted)
    assert trainer.progress.epoch == epochs
    assert trainer.monitor.best_epoch == best


class ScriptedNan(Scripted):
    script = (float("nan"), 2.0, float("nan"), 1.0)


@pytest.mark.parametrize(("mode", "best"), [("min valid/loss", 4), ("max valid/loss", 2)])
def test_nan_is_never_the_best_epoch(mode: str, best: int) -> None:
    trainer = train("trainer.epochs=4", f"trainer.monitor={mode}", trainer=ScriptedNan)
    assert trainer.monitor.best_epoch == best


def test_without_validation_the_training_loss_is_watched() -> None:
    trainer = train("data_loader.args.validation_split=0")
    assert trainer.monitor.rule == "min train/loss"
    losses = [row["train/loss"] for row in trainer.log.rows]
    assert trainer.monitor.best == min(losses)
    assert not any(key.startswith("valid/") for key in trainer.values)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_validation_comes_every_n_epochs(n: int) -> None:
    rows = train(f"trainer.validate_every={n}", "trainer.epochs=6").log.rows
    validated = [epoch for epoch, row in enumerate(rows, start=1) if "valid/loss" in row]
    assert validated == list(range(n, 7, n))


@pytest.mark.parametrize(
    "monitor",
    ["max valid/acuracy", "min valid/los", "max val/accuracy", "min loss", "max accuracy"],
)
def test_a_misspelt_monitor_is_an_error_before_training(monitor: str) -> None:
    trainer = make("metrics=[accuracy]", f"trainer.monitor={monitor}")
    with pytest.raises(ConfigError, match=r"trainer\.monitor: no value") as caught:
        check(trainer)
    assert "valid/loss, valid/accuracy" in str(caught.value)
    assert trainer.progress.step == 0


@pytest.mark.parametrize(
    "options",
    [
        ["trainer.monitor=min train/los"],
        ["trainer.monitor=max train/accuracy", "metrics=[accuracy]", "trainer.train_metrics=false"],
        ["trainer.monitor=min valid/loss", "data_loader.args.validation_split=0"],
        ["trainer.monitor=min los", "data_loader.args.validation_split=0"],
    ],
)
@pytest.mark.parametrize("steps", [0, 1])
def test_a_monitor_of_training_is_checked_before_training_and_after_one_step(
    options: list[str], steps: int
) -> None:
    trainer = make(*options)
    if steps == 0:
        with pytest.raises(ConfigError, match=r"trainer\.monitor: no value"):
            check(trainer)
        return
    with pytest.raises(ConfigError, match=r"trainer\.monitor: no value"):
        train_in(trainer)
    assert trainer.progress.step == 1


def test_a_misspelt_value_for_plateau_is_an_error_before_training() -> None:
    plateau = "lr_scheduler={type: ReduceLROnPlateau, monitor: valid/los}"
    with pytest.raises(ConfigError, match=r"lr_scheduler\.monitor.*did you mean 'valid/loss'"):
        check(make(plateau))


def test_a_plateau_with_nothing_to_follow_is_an_error_before_training() -> None:
    """It would take the value of `trainer.monitor`, which is off: the rate would never fall."""
    plateau = "lr_scheduler={type: ReduceLROnPlateau}"
    with pytest.raises(ConfigError, match=r"lr_scheduler\.monitor: .*as in `monitor: valid/loss`"):
        check(make(plateau, "trainer.monitor=off"))
    check(make(plateau))


def test_metrics_of_training_can_be_left_out() -> None:
    with_metrics = train("metrics=[accuracy]")
    without = train("metrics=[accuracy]", "trainer.train_metrics=false")
    assert set(with_metrics.values) - set(without.values) == {"train/accuracy"}
    assert without.values["valid/accuracy"] == with_metrics.values["valid/accuracy"]
    assert_same(without.model.state_dict(), with_metrics.model.state_dict())


# --- What is saved when ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("save_every", "expected"),
    [
        ("1 epoch", [5, 10, 15, 20]),
        ("2 epochs", [10, 20]),
        ("3 epochs", [15, 20]),
        ("4 steps", [4, 8, 12, 16, 20]),
        ("7 steps", [7, 14, 20]),
        ("25%", [5, 10, 15, 20]),
        ("100%", [20]),
        ("1000 steps", [20]),
        ("0.6 epochs", [3, 6, 9, 12, 15, 18, 20]),
    ],
)
def test_save_every(save_every: str, expected: list[int], tmp_path: Path) -> None:
    every = f"trainer.save_every={save_every}"
    run(tmp_path, "trainer.epochs=4", "trainer.monitor=off", "trainer.keep=99", every)
    assert saved_steps(tmp_path) == expected


@pytest.mark.parametrize("keep", [2, 3])
def test_the_last_few_and_the_best_are_kept(keep: int, tmp_path: Path) -> None:
    options = ["trainer.epochs=6", f"trainer.keep={keep}"]
    run(tmp_path, *options, "trainer.monitor=max valid/loss", trainer=ScriptedRise)
    assert saved_steps(tmp_path) == sorted({10, *range(30, 30 - 5 * keep, -5)})
    best = CheckpointStore(tmp_path / "checkpoints").best()
    assert best is not None
    assert best.name == "step-00000010"


class ScriptedRise(Scripted):
    script = (1.0, 9.0, 2.0, 2.0, 2.0, 2.0)


def test_the_best_is_kept_though_it_is_not_due(tmp_path: Path) -> None:
    options = ["trainer.epochs=6", "trainer.save_every=100 steps", "trainer.keep=2"]
    run(tmp_path, *options, trainer=Scripted)
    best = CheckpointStore(tmp_path / "checkpoints").best()
    assert best is not None
    assert read(best)["progress"]["epoch"] == 5
    assert 30 in saved_steps(tmp_path)


def test_the_best_holds_the_weights_of_its_epoch(tmp_path: Path) -> None:
    trainer = run(tmp_path, "trainer.epochs=6", trainer=Scripted)
    best = read(CheckpointStore(tmp_path / "checkpoints").best() or Path())
    until_best = train("trainer.epochs=5", trainer=Scripted)
    assert_same(dict(best["model"]), dict(until_best.model.state_dict()))
    assert best["monitor"]["best"] == trainer.monitor.best == 0.5


def test_a_best_at_the_very_end_in_mid_epoch_is_marked(tmp_path: Path) -> None:
    """The last step was saved already when the epoch's part is found to be the best."""
    options = ["trainer={epochs: null, steps: 7, save_every: 1 steps}"]
    trainer = run(tmp_path, *options, trainer=ScriptedFall)
    best = CheckpointStore(tmp_path / "checkpoints").best()
    assert best is not None
    assert best.name == "step-00000007"
    assert read(best)["monitor"]["best"] == trainer.monitor.best == 1.0


class ScriptedFall(Scripted):
    script = (2.0, 1.0, 0.5, 0.25)


def test_resuming_what_is_finished_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path, trainer=ScriptedFall)
    manifest = tmp_path / "checkpoints" / "step-00000010" / "manifest.json"
    before = (manifest.read_bytes(), read(tmp_path))
    assert json.loads(manifest.read_text())["metrics"]
    run(tmp_path, resume=True, trainer=ScriptedFall)
    assert manifest.read_bytes() == before[0]
    assert_same(read(tmp_path), before[1])
    best = CheckpointStore(tmp_path / "checkpoints").best()
    assert best is not None
    assert best.name == "step-00000010"


def test_the_final_state_is_saved_with_its_values(tmp_path: Path) -> None:
    options = ["trainer.save_every=1000 steps", "trainer.epochs=3"]
    run(tmp_path, *options, trainer=ScriptedRise)
    manifest = tmp_path / "checkpoints" / "step-00000015" / "manifest.json"
    assert json.loads(manifest.read_text())["metrics"]["valid/loss"] == 2.0


def test_metrics_csv_has_a_row_for_each_epoch(tmp_path: Path) -> None:
    trainer = run(tmp_path, "metrics=[accuracy]", "trainer.epochs=3")
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "5"), ("2", "10"), ("3", "15")]
    assert float(rows[-1]["valid/loss"]) == pytest.approx(trainer.monitor.best)


# --- The test phase -------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", ["null", "{decay: 0.9}"])
def test_the_test_phase_takes_the_best_model(
    ema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark_the_test(monkeypatch)
    options = ["trainer.test=true", "trainer.epochs=6", f"trainer.ema={ema}", "metrics=[accuracy]"]
    trainer = run(tmp_path, *options, trainer=ScriptedUntilTest)
    report = json.loads((tmp_path / "report" / "test.json").read_text())

    state = read(choose_checkpoint(tmp_path))
    assert state["progress"]["epoch"] == 2
    model = make().model.eval()
    model.load_state_dict(state["model"])
    if ema != "null":
        for name, average in state["ema"]["averages"].items():
            model.get_parameter(name).data.copy_(average)
    args = {**trainer.config["data_loader"]["args"], "training": False, "validation_split": 0}
    data = type(trainer.train_loader)(**args)
    parts = [torch.cat(part) for part in zip(*data.batches(0, len(data)), strict=True)]
    outputs = model(parts[0])
    assert report["loss"] == pytest.approx(F.cross_entropy(outputs, parts[1]).item(), rel=1e-5)
    right = (outputs.argmax(1) == parts[1]).float().mean().item()
    assert report["accuracy"] == pytest.approx(right)


class ScriptedUntilTest(Trainer):
    """Its second epoch is the best; the test is a real one."""

    is_testing = False

    def valid_step(self, batch: Any) -> Any:
        if self.is_testing:
            return super().valid_step(batch)
        values = super().valid_step(batch)
        return {**values, "loss": torch.tensor(float(abs(self.progress.epoch - 1)))}


def test_no_test_without_being_asked(tmp_path: Path) -> None:
    run(tmp_path)
    assert not (tmp_path / "report" / "test.json").exists()


# --- Losses that are not finite -------------------------------------------------------------------


class Exploding(Trainer):
    """Its loss at one step is no number, while its gradients would be."""

    at_batch = 6
    bad = float("nan")

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        loss = super().compute_losses(outputs, batch)["cross_entropy"]
        is_bad = self.model.training and self.progress.batches_total == self.at_batch
        return {"loss": loss * self.bad if is_bad else loss}


class ExplodingInf(Exploding):
    bad = float("inf")


@pytest.mark.parametrize("trainer", [Exploding, ExplodingInf])
@pytest.mark.parametrize(("accumulate", "step"), [("1", 7), ("2", 4), ("4", 3)])
def test_a_loss_that_is_not_finite_stops_before_the_step(
    trainer: type[Exploding], accumulate: str, step: int, tmp_path: Path
) -> None:
    made = make(f"memory.accumulate={accumulate}", "trainer.save_every=1 steps", trainer=trainer)
    seen: list[dict[str, Tensor]] = []
    made.optimizers["main"].register_step_post_hook(lambda *_: seen.append(weights(made)))
    with pytest.raises(TrainingError) as caught:
        train_in(made, tmp_path)
    message = str(caught.value)
    assert f"not finite at step {step} (lr 0.1" in message
    assert caught.value.exit_code == 1
    assert made.progress.step == step - 1 == len(seen)
    assert_same(weights(made), seen[-1])
    assert all(weight.isfinite().all() for weight in made.model.parameters())

    state = read(tmp_path)
    assert state["progress"]["step"] == step - 1
    assert_same({name: state["model"][name] for name in seen[-1]}, seen[-1])


def test_it_stops_at_the_first_step_too() -> None:
    class AtOnce(Exploding):
        at_batch = 0

    with pytest.raises(TrainingError, match=r"step 1 \(lr 0.1; the step before it: none\)"):
        train_in(make(trainer=AtOnce))


# --- Yours to override ----------------------------------------------------------------------------


def test_forward_may_be_overridden() -> None:
    class Shifted(Trainer):
        def forward(self, batch: Any) -> Any:
            return self.model(2 * batch[0])

    shifted, twin = make("optimizer.args.lr=0.2", trainer=Shifted), make().model
    batch = next(batches(shifted))
    F.cross_entropy(twin(2 * batch[0]), batch[1]).backward()
    start = weights(shifted)
    shifted.model.train()
    shifted.train_step(batch)
    for name, weight in weights(shifted).items():
        torch.testing.assert_close(weight, start[name] - 0.2 * twin.get_parameter(name).grad)


class TwoTerms(Trainer):
    """Names its losses itself."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        return {"fit": F.cross_entropy(outputs, batch[1]), "size": outputs.square().mean()}


def test_losses_of_ones_own_are_summed_and_each_logged() -> None:
    trainer = make(trainer=TwoTerms)
    batch = next(batches(trainer))
    outputs = trainer.model(batch[0])
    expected = F.cross_entropy(outputs, batch[1]) + outputs.square().mean()
    gradients = torch.autograd.grad(expected, list(trainer.model.parameters()))
    noted: list[Any] = []
    trainer.optimizers["main"].register_step_pre_hook(
        lambda *_: noted.append([p.grad.clone() for p in trainer.model.parameters()])
    )
    trainer.model.train()
    values = trainer.train_step(batch)
    for ours, theirs in zip(noted[0], gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert set(values) == {"loss", "fit", "size"}
    assert values["loss"].item() == pytest.approx(expected.item())
    logged = train_in(trainer)
    assert {"train/fit", "train/size", "valid/fit", "valid/size"} <= set(logged)


@pytest.mark.parametrize("weight", [0.0, 0.5, -2.0])
def test_losses_of_the_config_are_weighted(weight: float) -> None:
    losses = f"loss=[cross_entropy, {{type: multi_margin_loss, weight: {weight}, name: margin}}]"
    trainer = train(losses, "trainer.epochs=1", "optimizer.args.lr=1e-12")
    data = [torch.cat(part) for part in zip(*batches(trainer), strict=True)]
    outputs = trainer.model(data[0])
    fit, margin = F.cross_entropy(outputs, data[1]), F.multi_margin_loss(outputs, data[1])
    assert trainer.values["train/cross_entropy"] == pytest.approx(fit.item(), rel=1e-5)
    assert trainer.values["train/margin"] == pytest.approx(margin.item(), rel=1e-5)
    total = (fit + weight * margin).item()
    assert trainer.values["train/loss"] == pytest.approx(total, rel=1e-5)


def test_no_loss_at_all_is_reported() -> None:
    with pytest.raises(TrainingError, match="no loss to minimise"):
        train_in(make("loss=[]"))


def test_predictions_go_to_the_metrics_only() -> None:
    class Reversed(Trainer):
        def predict(self, outputs: Any) -> Any:
            assert not torch.is_grad_enabled()
            return -outputs

    plain, reverse = (train("metrics=[accuracy]", trainer=t) for t in (Trainer, Reversed))
    assert_same(reverse.model.state_dict(), plain.model.state_dict())
    data = next(iter(plain.valid_loader.batches(0, 1)))
    expected = (plain.model(data[0]).argmin(1) == data[1]).float().mean().item()
    assert reverse.values["valid/accuracy"] == expected


def test_measuring_within_predict_leaves_gradients_as_they_were() -> None:
    """As a trainer does that measures a second head while it predicts with the first."""

    class Nested(Trainer):
        depth = 0

        def predict(self, outputs: Any, batch: Any) -> Any:
            self.depth += 1
            if self.depth == 1:
                self.measure(outputs, batch)
            self.depth -= 1
            assert not torch.is_grad_enabled()
            return outputs

        def train_step(self, batch: Any) -> dict[str, Any]:
            values = super().train_step(batch)
            assert torch.is_grad_enabled()
            return values

    try:
        train("metrics=[accuracy]", trainer=Nested)
    finally:
        torch.set_grad_enabled(True)


def test_a_whole_step_may_be_written() -> None:
    class Whole(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            outputs = self.model(batch[0])
            loss = F.cross_entropy(outputs, batch[1])
            self.backward(loss)
            self.update()
            self.measure(outputs, batch)
            return {"loss": loss, "twice": 2 * loss.detach(), "constant": 3}

        def valid_step(self, batch: Any) -> dict[str, Any]:
            assert not torch.is_grad_enabled()
            return {"mine": torch.tensor(7.0)}

    plain, whole = train("metrics=[accuracy]"), train("metrics=[accuracy]", trainer=Whole, text=OFF)
    assert_same(whole.model.state_dict(), plain.model.state_dict())
    values = whole.values
    assert values["train/loss"] == plain.values["train/loss"]
    assert values["train/twice"] == pytest.approx(2 * values["train/loss"])
    assert values["train/constant"] == 3
    assert values["valid/mine"] == 7


OFF = CONFIG.replace("epochs: 2", "epochs: 2, monitor: 'off'")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.final leaves no mark before 3.11")
@pytest.mark.parametrize(
    "name",
    ["train", "train_epoch", "validate", "evaluate", "end_epoch", "save", "backward", "update"],
)
def test_what_changes_numbers_is_final(name: str) -> None:
    assert getattr(BaseTrainer, name).__final__  # set by typing.final


@pytest.mark.parametrize(
    "name", ["forward", "compute_losses", "predict", "train_step", "valid_step"]
)
def test_what_is_yours_is_not_final(name: str) -> None:
    assert not hasattr(getattr(BaseTrainer, name), "__final__")


class Centered(nn.Module):
    """A loss that remembers: it follows the mean of the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(3))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.center.lerp_(output.detach().mean(0), 0.5)
        return F.cross_entropy(output - self.center, target)


def test_a_loss_with_state_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES.registered, "Centered", Centered)
    assert_resumes(tmp_path, "loss=Centered")
    run(tmp_path / "plain")
    plain = read(tmp_path / "plain")
    assert not any(name.startswith("loss.") for name in plain)
    assert plain["loss_attributes"] == {}


def test_more_state_is_one_line(tmp_path: Path) -> None:
    class Counting(Trainer):
        def __init__(self, experiment: Any) -> None:
            super().__init__(experiment)
            self.center = nn.Linear(1, 1, bias=False)
            self.center.weight.data.zero_()
            self.register("center", self.center)

        def train_step(self, batch: Any) -> Any:
            self.center.weight.data += 1
            return super().train_step(batch)

    run(tmp_path, trainer=Counting, stop_at=3)
    assert run(tmp_path, trainer=Counting, resume=True).center.weight.item() == 10


# --- What it never does ---------------------------------------------------------------------------


class LateLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "head"):
            self.head = nn.Linear(4, 3)
        return self.head(self.body(x.flatten(1)))


def test_a_layer_made_in_forward_is_caught_at_the_first_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MODELS.registered, "LateLayer", LateLayer)
    trainer = make("model={type: LateLayer}")
    with pytest.raises(TrainingError, match=r"head: Linear.*created in LateLayer\.forward"):
        train_in(trainer)
    assert trainer.progress.batches_total == 0


class Waits(TorchDispatchMode):
    """Counts where a number is taken out of a tensor: what makes a GPU wait."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("k", [1, 2])
def test_nothing_waits_for_the_device_in_a_step(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(
        f"memory.accumulate={k}",
        "optimizer={type: SGD, args: {lr: 0.1, momentum: 0.9}, clip_norm: 1.0, clip_value: 1.0}",
        "lr_scheduler={type: OneCycleLR, args: {max_lr: 0.1}, every: step}",
        "loss=[cross_entropy, {type: cross_entropy, name: other, weight: 0.5}]",
        "metrics=[accuracy, {type: top_k_accuracy, args: {k: 2}}]",
        "trainer={ema: {decay: 0.9}, log_every: 1000 steps, epochs: 4}",
    )
    trainer.train_epoch()  # after the first step of all, names are checked
    trainer.progress.start_next_epoch()
    watched: list[Tensor] = []
    # On the CPU it looks at once.
    monkeypatch.setattr(trainer.finite, "watch", lambda loss, _: watched.append(loss))
    monkeypatch.setattr(trainer, "meters", Meters("meta"))  # on the CPU they look at once as well
    monkeypatch.setattr("base.training.accumulation._scale", lambda term, share: term * share)
    monkeypatch.setattr("base.base_trainer.summarise", lambda *_: {})
    with Waits() as waits:
        float(torch.ones(()))
        assert waits.n == 1
        trainer.train_epoch()
        assert waits.n == 1
    assert len(watched) == 5
    assert trainer.progress.batches_total == 10


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_waits_for_the_gpu_in_a_step(precision: str) -> None:
    from base.config import load_config
    from base.run.build import build_experiment

    overrides = [f"memory.precision={precision}", "optimizer.clip_norm=1.0", "metrics=[accuracy]"]
    config = load_config(None, [*overrides, "trainer.log_every=1000 steps"], text=CONFIG)
    trainer = Trainer(build_experiment(config, torch.device("cuda")))
    data = [[part.cuda() for part in batch] for batch in batches(trainer)]
    trainer.model.train()
    for number, batch in enumerate(data):
        torch.cuda.set_sync_debug_mode("error" if number > 1 else "default")
        with trainer.precision.autocast():
            values = trainer.train_step(batch)
        torch.cuda.set_sync_debug_mode("default")
    assert values["loss"].isfinite().item()


def test_the_graph_of_a_step_is_let_go() -> None:
    trainer = make()
    train_in(trainer)
    assert all(not value.requires_grad for value in trainer.training_state.last_values.values())
    assert all(p.grad is None for p in trainer.model.parameters())


def test_batches_go_to_the_device() -> None:
    trainer = make()
    assert trainer.device == CPU
    assert {p.device for p in trainer.model.parameters()} == {CPU}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["capture=hidden", "trainer.tensorboard=false"],
            "capture: captured values are written to",
        ),
        (
            ["trainer.monitor=off", "trainer.early_stop=3"],
            "trainer.early_stop: early stopping needs",
        ),
    ],
)
def test_keys_that_contradict_are_reported_before_training(
    overrides: list[str], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        check(make(*overrides))


def test_the_rate_in_the_log_is_the_one_that_the_step_used(tmp_path: Path) -> None:
    schedule = "lr_scheduler={type: LinearLR, every: step, args: {start_factor: 1.0, end_factor: "
    schedule += "0.0, total_iters: 10}}"
    seen: list[float] = []

    class Noting(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            seen.append(self.optimizers["main"].param_groups[0]["lr"])
            return super().train_step(batch)

    run(tmp_path, schedule, "trainer.log_every=1 steps", trainer=Noting)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["lr"]) for row in rows] == [seen[4], seen[9]] == pytest.approx([0.06, 0.01])


def test_a_step_reads_the_rates_of_the_step_before_it_though_nothing_is_logged() -> None:
    seen: list[dict[str, float]] = []

    class OwnRates(Trainer):
        """Sets its rates by hand, without a schedule of the config."""

        def train_step(self, batch: Any) -> dict[str, Any]:
            seen.append(self.progress.rates)
            self.optimizers["main"].param_groups[0]["lr"] = 0.1 / len(seen)
            return super().train_step(batch)

    trainer = make("trainer.log_every=99 steps", trainer=OwnRates)
    train_in(trainer)
    assert seen == [{}, *({"lr": 0.1 / n} for n in range(1, 10))]
    assert trainer.progress.rates == {"lr": 0.1 / 10}


class AlwaysNan(Scripted):
    script = (float("nan"),) * 9


def test_a_monitor_of_nan_alone_does_not_end_as_a_normal_early_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", "kindling"):
        trainer = train("trainer.epochs=9", "trainer.early_stop=3", trainer=AlwaysNan)
    assert trainer.progress.epoch == 3
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [
        "valid/loss is nan in epoch 1, not a finite number: such an epoch is not the best",
        "valid/loss was not finite in any of 3 epochs, so no epoch is the best, and "
        "training stopped early for this reason",
    ]
    assert "early stop: 3 epochs without a better valid/loss" in caplog.text
