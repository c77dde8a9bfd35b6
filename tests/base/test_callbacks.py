"""Callbacks: five points, in order; state that is resumed; and the few that ship."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import assert_same, make, run, train_in, weights

from base.callbacks import Callback
from base.errors import ConfigError
from base.names.registry import CALLBACKS
from base.system.signals import InterruptedRunError


class Notes(Callback):
    """Writes down each call."""

    def __init__(self, name: str = "a", calls: list[str] | None = None) -> None:
        self.name, self.calls = name, [] if calls is None else calls

    def note(self, point: str, trainer: Any) -> None:
        progress = trainer.progress
        self.calls.append(f"{self.name} {point} {progress.epoch}:{progress.step}")

    def on_start(self, trainer: Any) -> None:
        self.note("start", trainer)

    def on_epoch_start(self, trainer: Any) -> None:
        self.note("begin", trainer)

    def on_step_end(self, trainer: Any) -> None:
        self.note("step", trainer)

    def on_epoch_end(self, trainer: Any, values: Any) -> None:
        self.note("epoch", trainer)

    def on_end(self, trainer: Any) -> None:
        self.note("end", trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.calls[:] = state_dict["calls"]


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CALLBACKS.registered, "Notes", Notes)


def test_the_five_points_come_in_order() -> None:
    trainer = make("callbacks=[Notes]", "data_loader.args.batch_size=10")
    train_in(trainer)
    assert trainer.callbacks["Notes"].calls == [
        "a start 0:0",
        "a begin 0:0",
        "a step 0:1",
        "a step 0:2",
        "a epoch 0:2",
        "a begin 1:2",
        "a step 1:3",
        "a step 1:4",
        "a epoch 1:4",
        "a end 2:4",
    ]


@pytest.mark.parametrize(("k", "steps"), [(1, 10), (2, 6), (5, 2)])
def test_a_step_is_one_of_the_optimizer(k: int, steps: int) -> None:
    trainer = make("callbacks=[Notes]", f"memory.accumulate={k}")
    train_in(trainer)
    assert sum(" step " in call for call in trainer.callbacks["Notes"].calls) == steps


def test_several_are_called_in_the_order_of_the_config() -> None:
    trainer = make("trainer.epochs=1", "data_loader.args.batch_size=20")
    calls: list[str] = []
    trainer.callbacks.update(a=Notes("a", calls), b=Notes("b", calls))
    train_in(trainer)
    assert [call[:3] for call in calls] == [
        *("a s", "b s", "a b", "b b", "a s", "b s", "a e", "b e", "b e", "a e")
    ]


def test_a_resumed_callback_goes_on_with_its_own_state(tmp_path: Path) -> None:
    run(tmp_path, "callbacks=[Notes]", stop_at=2)
    resumed = run(tmp_path, "callbacks=[Notes]", resume=True).callbacks["Notes"].calls
    before = ["a start 0:0", "a begin 0:0", "a step 0:1", "a step 0:2"]
    assert resumed[:6] == [*before, "a start 0:2", "a step 0:3"]  # what `begin` noted was saved
    assert sum(" step " in call for call in resumed) == 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_end_comes_after_an_error_too(error: type[BaseException]) -> None:
    class Failing(Notes):
        def on_step_end(self, trainer: Any) -> None:
            raise error

    trainer = make()
    calls: list[str] = []
    trainer.callbacks.update(a=Notes("a", calls), b=Failing("b", calls))
    with pytest.raises(error):
        train_in(trainer)
    assert [call[:5] for call in calls][-2:] == ["b end", "a end"]


def test_values_of_an_epoch_are_those_of_the_log() -> None:
    class Values(Callback):
        def __init__(self) -> None:
            self.seen: list[dict[str, float]] = []

        def on_epoch_end(self, trainer: Any, values: Any) -> None:
            self.seen.append(dict(values))

    trainer = make("metrics=[accuracy]")
    trainer.callbacks["values"] = values = Values()
    last = train_in(trainer)
    assert values.seen[-1] == last
    named = {"train/loss", "train/accuracy", "valid/loss", "valid/accuracy", "lr", "seconds"}
    assert named <= set(last)


def test_a_name_twice_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"callbacks.*Notes is listed twice"):
        make("callbacks=[Notes, {type: Notes, args: {name: b}}]")


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match="did you mean 'minutes'"):
        make("callbacks=[{type: StopAfter, args: {minute: 3}}]")


# --- Those that ship ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["{type: MemoryReport}", "{type: ImageSamples}"])
def test_what_ships_changes_no_number(name: str) -> None:
    plain = make()
    train_in(plain)
    watched = make(f"callbacks=[{name}]")
    train_in(watched)
    assert_same(weights(watched), weights(plain))
    assert torch.initial_seed() == 3


def test_memory_is_reported_after_the_first_epochs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="kindling"):
        train_in(make("trainer.epochs=3", "callbacks=[{type: MemoryReport, args: {epochs: 2}}]"))
    lines = [r.message for r in caplog.records if r.message.startswith("memory after")]
    assert [line.split(":")[0] for line in lines] == [
        "memory after epoch 1",
        "memory after epoch 2",
    ]


class Pictures:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def add_images(self, tag: str, images: torch.Tensor, step: int) -> None:
        self.calls.append((tag, images, step))


def test_image_samples_are_the_first_inputs_of_the_run() -> None:
    trainer = make("callbacks=[{type: ImageSamples, args: {n_images: 3}}]")
    trainer.current_run.log.writers = pictures = Pictures()
    trainer.callbacks["ImageSamples"].on_start(trainer)
    (tag, images, step) = pictures.calls[0]
    inputs = next(trainer.train_loader.batches(0, 1))[0][:3]
    assert (tag, step) == ("inputs", 0)
    torch.testing.assert_close(images, (inputs - inputs.min()) / (inputs.max() - inputs.min()))


def test_image_samples_leave_what_is_no_image() -> None:
    trainer = make("data_loader.args.shape=[2, 5, 1]", "model.args.n_inputs=10")
    trainer.current_run.log.writers = pictures = Pictures()
    from base.callbacks import ImageSamples

    ImageSamples().on_start(trainer)
    assert pictures.calls == []


def test_stop_after_asks_for_a_stop_with_a_saved_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make("callbacks=[{type: StopAfter, args: {minutes: 2}}]")
    trainer.callbacks["StopAfter"].started -= 119.9
    clock = iter([0.0] * 3 + [60.0] * 99)
    began = trainer.callbacks["StopAfter"].started + 119.9
    monkeypatch.setattr("base.callbacks.time.monotonic", lambda: began + next(clock))
    with pytest.raises(InterruptedRunError, match="after step 4") as caught:
        train_in(trainer, tmp_path)
    assert caught.value.exit_code == 128 + signal.SIGTERM
