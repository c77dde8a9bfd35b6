"""Signals set flags; the loop acts on them where its state is whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT
from toy import assert_same, make, mark_the_test, run, train_in

from base.callbacks import Callback
from base.checkpoint.store import read
from base.system.signals import InterruptedRunError, SignalFlags, resume_command
from trainer.trainer import Trainer

THREE = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_flags_are_set_and_handlers_restored() -> None:
    before = [signal.getsignal(number) for number in THREE]
    with SignalFlags() as flags:
        assert (flags.stop, flags.save) == (None, False)
        send(signal.SIGUSR1)
        assert (flags.stop, flags.save) == (None, True)
        send(signal.SIGTERM)
        assert flags.stop == signal.SIGTERM
        send(signal.SIGINT)
        assert flags.stop == signal.SIGINT
    assert [signal.getsignal(number) for number in THREE] == before


@pytest.mark.parametrize(
    ("argv", "local_size", "command"),
    [
        (["train.py", "-c", "x.yaml", "-d", "cpu:2"], 2, "python train.py -r 'a b' -d cpu:2"),
        (["train.py", "-c", "x.yaml"], 2, "torchrun --standalone --nproc-per-node 2 train.py -r"),
        (["train.py", "-d", "cpu", "-d", "cpu:2"], 2, "python train.py -r 'a b' -d cpu:2"),
        (["train.py", "--device=all", "-c", "x.yaml"], 2, "python train.py -r 'a b' -d all"),
        (
            ["train.py", "-c", "x.yaml", "-d", "cpu"],
            2,
            "torchrun --standalone --nproc-per-node 2 train.py -r 'a b' -d cpu",
        ),
        (["train.py", "-c", "x.yaml"], 1, "torchrun ... train.py -r 'a b'"),  # two machines
        (["train.py", "-d", "0,1"], 2, "python train.py -r 'a b' -d 0,1"),
        # The device alone would be that of one process.
        (["train.py", "-d", "cpu"], 2, "torchrun --standalone --nproc-per-node 2 train.py -r"),
        (["train.py", "-d", "cpu:1"], 2, "torchrun --standalone --nproc-per-node 2 train.py -r"),
        (["train.py", "-d", "all"], 1, "torchrun ... train.py -r 'a b' -d all"),
    ],
)
def test_a_run_is_resumed_in_as_many_processes(
    argv: list[str], local_size: int, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resume_command(Path("a b")) == "python train.py -r 'a b'"
    names = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": local_size}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("sys.argv", argv)
    assert resume_command(Path("a b")).startswith(command)


def interrupt_twice(flags: SignalFlags) -> None:
    with flags:
        send(signal.SIGINT)
        send(signal.SIGINT)


def fail(flags: SignalFlags) -> None:
    with flags:
        _ = 1 / 0


@pytest.mark.parametrize(
    ("act", "error"), [(fail, ZeroDivisionError), (interrupt_twice, KeyboardInterrupt)]
)
def test_a_second_interrupt_at_once_raises_and_handlers_are_restored_after_an_error(
    act: Any, error: type[BaseException]
) -> None:
    before = [signal.getsignal(number) for number in THREE]
    with pytest.raises(error):
        act(SignalFlags())
    assert [signal.getsignal(number) for number in THREE] == before


@pytest.mark.parametrize(("seconds", "raises"), [(0.2, False), (1.0, True), (2.5, False)])
def test_torchrun_may_repeat_an_interrupt_at_once(
    monkeypatch: pytest.MonkeyPatch, seconds: float, raises: bool
) -> None:
    """The terminal sends it to all processes, and torchrun passes its own one on."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    clock = iter([100.0, 100.0 + seconds])
    monkeypatch.setattr("base.system.signals.time.monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt) if raises else nullcontext():
        interrupt_twice(SignalFlags())


def test_a_second_interrupt_later_only_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.5])
    monkeypatch.setattr("base.system.signals.time.monotonic", lambda: next(clock))
    flags = SignalFlags()
    interrupt_twice(flags)
    assert flags.stop == signal.SIGINT


def test_terminate_and_interrupt_do_not_add_up() -> None:
    with SignalFlags() as flags:
        send(signal.SIGTERM)
        send(signal.SIGINT)
        send(signal.SIGTERM)
    assert flags.stop == signal.SIGTERM


def test_a_handler_that_is_not_pythons_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """`signal.signal` tells None for those, and does not take it back."""
    given: list[Any] = []

    def foreign(number: int, handler: Any) -> None:
        assert handler is not None
        given.append(handler)

    monkeypatch.setattr("base.system.signals.signal.signal", foreign)
    with SignalFlags():
        assert len(given) == 3
    assert len(given) == 3


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    before = [signal.getsignal(number) for number in THREE]
    seen: list[Any] = []

    def work() -> None:
        with SignalFlags():
            seen.extend(signal.getsignal(number) for number in THREE)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_that_of_a_shell(number: int, code: int) -> None:
    error = InterruptedRunError(number, Path("saved/x/1"), 7)
    assert error.exit_code == code
    assert str(error) == (
        f"stopped by {signal.Signals(number).name} after step 7, and saved; "
        "resume by: python train.py -r saved/x/1"
    )


# --- In the loop ----------------------------------------------------------------------------------


class Signal(Callback):
    """Sends a real signal at one step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_step_end(self, trainer: Any) -> None:
        if trainer.progress.step == self.step:
            send(self.number)


def train(folder: Path, trainer: Any, resume: bool = False) -> Any:
    folder.mkdir(exist_ok=True)
    train_in(trainer, folder, folder if resume else None)
    return trainer


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [3, 5, 7])
def test_a_stop_is_acted_on_at_that_step_and_resumes(
    number: int, step: int, tmp_path: Path
) -> None:
    train(tmp_path / "whole", make())
    trainer = make()
    trainer.callbacks["signal"] = Signal(number, step)
    with pytest.raises(InterruptedRunError, match=f"after step {step}, and saved") as caught:
        train(tmp_path / "cut", trainer)
    assert caught.value.exit_code == 128 + number
    assert read(tmp_path / "cut")["progress"]["step"] == step
    train(tmp_path / "cut", make(), resume=True)
    assert_same(read(tmp_path / "cut"), read(tmp_path / "whole"))


def test_a_stop_is_left_for_the_end_of_a_window(tmp_path: Path) -> None:
    class InMidWindow(Trainer):
        def train_step(self, batch: Any) -> Any:
            values = super().train_step(batch)
            if self.progress.batches_total == 3 and not self.window.is_full:
                send(signal.SIGTERM)
            return values

    options = ["memory.accumulate=5"]
    with pytest.raises(InterruptedRunError, match="after step 1"):
        train(tmp_path / "cut", make(*options, trainer=InMidWindow))
    assert read(tmp_path / "cut")["progress"]["batch"] == 5


class StopsInValidation(Trainer):
    """Gets SIGTERM while it validates the second epoch."""

    def valid_step(self, batch: Any) -> Any:
        if self.progress.epoch == 1:
            send(signal.SIGTERM)
        return super().valid_step(batch)


VALIDATED = [
    "trainer.epochs=3",
    "trainer.ema={decay: 0.9}",
    "metrics=[accuracy]",
    "data_loader.args.batch_size=2",
]


def test_a_stop_in_validation_saves_the_state_before_it_and_resumes(tmp_path: Path) -> None:
    train(tmp_path / "whole", make(*VALIDATED))
    trainer = make(*VALIDATED, trainer=StopsInValidation)
    with pytest.raises(InterruptedRunError):
        train(tmp_path / "cut", trainer)
    saved = read(tmp_path / "cut")
    assert (saved["progress"]["epoch"], saved["progress"]["batch"]) == (1, 10)
    assert saved["monitor"]["best_epoch"] <= 1
    train(tmp_path / "cut", make(*VALIDATED), resume=True)
    assert_same(read(tmp_path / "cut"), read(tmp_path / "whole"))


def test_a_stop_at_the_end_of_an_epoch_counts_it(tmp_path: Path) -> None:
    class AtTheEnd(Callback):
        def on_epoch_end(self, trainer: Any, values: Any) -> None:
            send(signal.SIGTERM)

    trainer = make("trainer.epochs=3")
    trainer.callbacks["end"] = AtTheEnd()
    with pytest.raises(InterruptedRunError, match="after step 5"):
        train(tmp_path / "cut", trainer)
    progress = read(tmp_path / "cut")["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 0)
    train(tmp_path / "whole", make("trainer.epochs=3"))
    train(tmp_path / "cut", make("trainer.epochs=3"), resume=True)
    assert_same(read(tmp_path / "cut"), read(tmp_path / "whole"))


def test_a_stop_at_the_end_of_training_is_no_stop(tmp_path: Path) -> None:
    class AtTheEnd(Callback):
        def on_epoch_end(self, trainer: Any, values: Any) -> None:
            if trainer.progress.step == 10:
                send(signal.SIGTERM)

    trainer = make()
    trainer.callbacks["end"] = AtTheEnd()
    train(tmp_path / "run", trainer)
    assert trainer.is_finished()


def test_sigusr1_saves_and_goes_on_to_the_same_end(tmp_path: Path) -> None:
    options = ["trainer.keep=9"]
    train(tmp_path / "plain", make(*options))
    trainer = make(*options)
    trainer.callbacks["signal"] = Signal(signal.SIGUSR1, 3)
    train(tmp_path / "saved", trainer)
    folders = {path.name for path in (tmp_path / "saved" / "checkpoints").glob("step-*")}
    others = {path.name for path in (tmp_path / "plain" / "checkpoints").glob("step-*")}
    assert folders == others | {"step-00000003"}
    assert_same(read(tmp_path / "saved"), read(tmp_path / "plain"))


def test_a_double_interrupt_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    class Twice(Callback):
        def on_step_end(self, trainer: Any) -> None:
            if trainer.progress.step == 7:
                send(signal.SIGINT)
                send(signal.SIGINT)

    trainer = make()
    trainer.callbacks["twice"] = Twice()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", trainer)
    assert signal.getsignal(signal.SIGINT) is before
    assert read(tmp_path / "cut")["progress"]["step"] == 5
    run(tmp_path / "cut", resume=True)
    run(tmp_path / "whole")
    assert_same(read(tmp_path / "cut"), read(tmp_path / "whole"))


def test_a_stop_in_the_test_phase_keeps_the_final_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best weights are in the model then: they must not be saved as the last state."""
    mark_the_test(monkeypatch)

    class InTheTest(Trainer):
        is_testing = False

        def valid_step(self, batch: Any) -> Any:
            if self.is_testing:
                send(signal.SIGTERM)
            return super().valid_step(batch)

    options = ["trainer.test=true", "optimizer.args.lr=3", "trainer.monitor=min valid/loss"]
    train(tmp_path / "whole", make("optimizer.args.lr=3"))
    with pytest.raises(InterruptedRunError):
        train(tmp_path / "cut", make(*options, "data_loader.args.batch_size=4", trainer=InTheTest))
    assert_same(read(tmp_path / "cut"), read(tmp_path / "whole"))


@pytest.mark.parametrize("is_reporting", [True, False])
def test_the_launchers_sigterm_does_not_replace_the_error_of_a_lost_rank(
    is_reporting: bool,
) -> None:
    """The launcher sends it as soon as it sees that a stopped rank was killed."""
    program = f"""
import os, signal
from base.config.command_line import end_by_signals
from base.system.signals import ENDS_WITH_ERROR
end_by_signals()
if {is_reporting}:
    ENDS_WITH_ERROR.set()
os.kill(os.getpid(), signal.SIGTERM)
raise SystemExit("rank 1 is gone")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ("rank 1 is gone" in done.stderr) == is_reporting
