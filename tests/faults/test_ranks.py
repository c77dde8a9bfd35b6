"""A fault of one process among several: all of them end, or go on, in the same way."""

from __future__ import annotations

import csv
import errno
import os
import random
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_images import CONFIG as IMAGES
from bad_images import DAMAGES, make_images
from digest import digest
from faults.injections import (
    Both,
    HeldUp,
    LossTimes,
    NoteSteps,
    OtherCalls,
    Pace,
    Raise,
    SignalIn,
)
from faults.ranks import Ends, Fault, Launched, Ranks, run_ranks
from faults.runs import AUTO, SAVING, last_run, newest_step, processes_in
from faults.table import Trials
from processes import ROOT
from workplace import N_STEPS, Workplace

from base.checkpoint.store import read

pytestmark = pytest.mark.end_to_end
TRAINER = "base.base_trainer.BaseTrainer"
PHASES = {
    "a step": f"{TRAINER}.train_step",
    "the end of a step": f"{TRAINER}.end_step",
    "validation": f"{TRAINER}.valid_step",
    "the gradients": "base.distributed.reduction.GradientSums.finish",
    "a save": "base.base_trainer.gather_state",
    "building": "base.run.build.build_model",
}
TINY = ("-c", "tiny.yaml", "--set", SAVING)
NAN, OWN = float("nan"), RuntimeError("a fault of the test's own")
NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory (of the test)")
FULL = OSError(errno.ENOSPC, "No space left on device")
LOST = r"rank {} \(.*\) (is gone|has not answered for \d+ s) at step \d+, while the others waited"
ONE = "trainer.epochs=1"
HALVE = "trainer.on_oom=halve"
OTHER_PLACES = r"the ranks are at different points .* \(rank 0 .*; rank 1 .*\)"
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of an unbroken run of two ranks."""
    place = Workplace(tmp_path_factory.mktemp("whole"))
    code, text = run_ranks(place, *TINY)
    assert code == 0, text
    return digest(last_run(place))


def check_time(trials: Trials, what: str, took: float, most: float) -> None:
    """It took no longer, on a machine with nothing else to do."""
    print(f"{what}: {took:.1f} s")  # `pytest -s` shows the times that docs/reliability.md has
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert took < most * (busy if trials.makes_many else 5 * busy), f"{took:.1f} s"


def check_goes_on(place: Workplace, whole: str) -> None:
    """Two ranks end the run with the bits of an unbroken one."""
    code, text = run_ranks(place, *AUTO, SAVING)
    assert code == 0, text
    assert digest(last_run(place)) == whole


def check_ended(place: Workplace, ends: Ends, code: int, told: Sequence[str]) -> None:
    """All have ended, and each pattern was printed once. The last checkpoint is good."""
    assert ends.code == code, ends
    for pattern in told:
        assert len(re.findall(pattern, ends.text)) == 1, (pattern, ends.text)
    assert ends.text.count("Traceback") <= 1, ends.text
    assert processes_in(place) == []
    if newest_step(place):
        for name, tensor in read(last_run(place))["model"].items():
            assert torch.isfinite(tensor.float()).all(), name


# --- One rank fails ------------------------------------------------------------------------------


@dataclass
class Case:
    """A fault of one rank, and what all of them do.

    Args:
        told: what is printed, once.
        step: the step of the newest checkpoint.
    """

    name: str
    fault: Fault
    told: tuple[str, ...]
    words: tuple[str, ...] = ()
    rank: int = 1
    code: int = 1
    step: int = N_STEPS

    def __str__(self) -> str:
        return f"{self.name} on rank {self.rank}".replace(" ", "-")


def own(name: str, function: str, at: int, step: int, rank: int = 1, *words: str) -> Case:
    """Return a case of an error in user code."""
    told = (r"RuntimeError: a fault of the test's own", "the last checkpoint is valid; resume by")
    return Case(name, Raise(OWN, function, at), told, words, rank, step=step)


NONFINITE = "the loss is not finite on rank {} at step 7"
MEMORY = ("callbacks=[MemoryReport]",)
WRITES = "base.checkpoint.store.write_state"
QUICK = [
    Case("nan, stop", LossTimes(NAN, (7,)), (NONFINITE.format(1),), step=6),
    Case(
        "nan, skip",
        LossTimes(NAN, (7, 9)),
        (NONFINITE.format(1), "2 of 15 steps were skipped"),
        ("trainer.on_nonfinite=skip",),
        code=0,
    ),
    Case(
        "nan, rollback",
        LossTimes(NAN, (7,)),
        (NONFINITE.format(0), "restored the weights of step 6"),
        ("trainer.on_nonfinite=rollback",),
        rank=0,
        code=0,
    ),
    Case(
        "out of memory, stop",
        Raise(NO_MEMORY, f"{TRAINER}.train_step", 9),
        ("out of memory at step 9 with 48 samples",),
        code=3,
        step=8,
    ),
    Case(
        "out of memory within a window, halve",
        Raise(NO_MEMORY, f"{TRAINER}.train_step", 5),
        ("micro_batch 2[34] from now on",),
        (HALVE, "memory.accumulate=3"),
        code=0,
        step=6,
    ),
    own("an error in forward", f"{TRAINER}.forward", 9, step=4),
    own("an error in a callback", "base.callbacks.MemoryReport.on_epoch_end", 2, 10, 0, *MEMORY),
    Case(
        "a full disk",
        Raise(FULL, WRITES, 4),
        ("checkpoint not written: No space left",),
        rank=0,
        code=3,
        step=5,
    ),
    Case(
        "an interrupt",
        Raise(KeyboardInterrupt(), f"{TRAINER}.train_step", 9),
        ("stopped by SIGINT, nothing more was saved",),
        code=130,
        step=8,
    ),
    Case(
        "no update",
        OtherCalls("no update"),
        (OTHER_PLACES, "rank 1 at step 7, no update"),
        step=6,
    ),
]
OTHERS = [
    Case("nan, stop", LossTimes(NAN, (7,)), (NONFINITE.format(0),), rank=0, step=6),
    Case(
        "out of memory, halve",
        Raise(NO_MEMORY, f"{TRAINER}.train_step", 9),
        ("micro_batch 24 from now on",),
        (HALVE,),
        code=0,
    ),
    Case(
        "out of memory, halve",
        Raise(NO_MEMORY, f"{TRAINER}.train_step", 9),
        ("micro_batch 24 from now on",),
        (HALVE,),
        rank=0,
        code=0,
    ),
    Case(
        "out of memory in validation",
        Raise(NO_MEMORY, f"{TRAINER}.valid_step", 16),
        ("out of memory in the evaluation of 4[68] samples",),
        (HALVE,),
        code=3,
        step=10,
    ),
    own("an error in train_step", f"{TRAINER}.train_step", 9, step=8),
    own("an error in forward", f"{TRAINER}.forward", 9, step=4, rank=0),
    own("an error in backward", f"{TRAINER}.backward", 9, step=8),
    own("an error in valid_step", f"{TRAINER}.valid_step", 16, step=10),
    own("an error at a step's end", "base.callbacks.Callback.on_step_end", 5, 4, 1, *MEMORY),
    own("an error in a callback", "base.callbacks.MemoryReport.on_epoch_end", 2, 10, 1, *MEMORY),
    own("an error in compute", "base.training.metrics.Metric.compute", 3, step=4, rank=0),
    own("an error in begin_epoch", "trainer.trainer.Trainer.begin_epoch", 3, step=5),
    own("an error in begin_epoch", "trainer.trainer.Trainer.begin_epoch", 3, step=5, rank=0),
    Case(
        "an error in a metric",
        Raise(OWN, "base.training.metrics.SampleMean._update", 6),
        ("metric 'accuracy' fails .* a fault of the test's own",),
        step=4,
    ),
    Case(
        "an error in the data",
        Raise(OWN, "base.datasets.pipeline.Pipeline.with_targets", 12),
        ("cannot read samples .* a fault of the test's own",),
        ("data_loader.args.workers=threads", "data_loader.args.num_workers=1"),  # one by one
        step=4,
    ),
    Case(
        "a full disk in the background",
        Raise(FULL, WRITES, 4),
        ("checkpoint not written: No space left",),
        ("trainer.async_save=true",),
        rank=0,
        code=3,
        step=5,
    ),
    Case(
        "an error at building",
        Raise(ValueError("a fault of the test's own"), PHASES["building"]),
        ("ValueError: a fault of the test's own",),
        step=0,
    ),
    Case(
        "an error at building",
        Raise(ValueError("a fault of the test's own"), PHASES["building"]),
        ("ValueError: a fault of the test's own",),
        rank=0,
        step=0,
    ),
    Case(
        "an interrupt",
        Raise(KeyboardInterrupt(), f"{TRAINER}.train_step", 9),
        ("stopped by SIGINT, nothing more was saved",),
        rank=0,
        code=130,
        step=8,
    ),
    Case("no update", OtherCalls("no update"), (OTHER_PLACES,), rank=0, step=6),
    Case("a gather", OtherCalls("a gather"), (OTHER_PLACES,), step=6),
    Case("a gather", OtherCalls("a gather"), (OTHER_PLACES,), rank=0, step=6),
    Case("fewer batches", OtherCalls("fewer batches"), (OTHER_PLACES,), step=4),
    Case("fewer batches", OtherCalls("fewer batches"), (OTHER_PLACES,), rank=0, step=4),
    Case(
        "a slow disk",
        HeldUp(4, WRITES, 3),
        (),
        ("distributed.timeout=2",),
        rank=0,
        code=0,
    ),
    Case(
        "a slow callback",
        HeldUp(4, "base.callbacks.MemoryReport.on_epoch_end", 2),
        (),
        ("distributed.timeout=2", *MEMORY),
        rank=0,
        code=0,
    ),
]


@pytest.mark.fault("F27")
@pytest.mark.parametrize(
    "case", [*QUICK, *(pytest.param(case, marks=slow) for case in OTHERS)], ids=str
)
def test_a_fault_of_one_rank_has_one_verdict(case: Case, place: Workplace) -> None:
    ends = run_ranks(place, *TINY, *case.words, faults={case.rank: case.fault})
    check_ended(place, ends, case.code, case.told)
    assert newest_step(place) == case.step, ends.text


@pytest.mark.fault("F27")
@pytest.mark.parametrize("case", [QUICK[0], QUICK[5], QUICK[7]], ids=str)
@slow
def test_without_the_fault_the_run_goes_on_to_the_same_bits(
    case: Case, place: Workplace, whole: str
) -> None:
    assert run_ranks(place, *TINY, faults={case.rank: case.fault}).code == case.code
    check_goes_on(place, whole)


@pytest.mark.fault("F27")
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=slow)])
def test_out_of_memory_after_an_optimizer_has_stepped_ends_all_ranks(
    place: Workplace, rank: int
) -> None:
    small = [f"model.args.{name}.args.width=4" for name in ("generator", "discriminator")]
    words = ("trainer.steps=8", "trainer.epoch_steps=4", "trainer.save_every=1 steps", *small)
    data = ("callbacks=[]", f"data_loader.args.data_dir={ROOT / 'data'}", HALVE)
    fault = Raise(NO_MEMORY, f"{TRAINER}.update", 8)  # two in each step
    gan = ("-c", ROOT / "config" / "digits_dcgan.yaml", "--set", *words, *data)
    ends = run_ranks(place, *gan, faults={rank: fault})
    check_ended(place, ends, 3, ("an optimizer has stepped already", "micro_batch 16 from now on"))
    assert "resume by" in ends.text or "a resume uses it" in ends.text


@pytest.mark.fault("F27")
@pytest.mark.parametrize("allowed", [50, 5])
def test_bad_samples_of_all_ranks_are_counted_and_listed(place: Workplace, allowed: int) -> None:
    paths = make_images(place.folder / "images", seed=1)
    damaged = random.Random(1).sample(paths, 8)
    for path in damaged:
        DAMAGES["truncated"](path)
    (place.folder / "images.yaml").write_text(IMAGES.format(root=place.folder / "images"))
    words = ("-c", "images.yaml", "--set", f"trainer.max_bad_samples={allowed}", ONE)
    ends = run_ranks(place, *words)
    if allowed == 5:  # neither rank has so many
        told = r"7 of 48 training samples cannot be read, and trainer.max_bad_samples=5 allows 5"
        check_ended(place, ends, 1, (told,))
        return
    check_ended(place, ends, 0, ())
    with (last_run(place) / "bad_samples.csv").open(newline="") as file:
        rows = [row["path"] for row in csv.DictReader(file)]
    assert sorted(rows) == sorted(str(path) for path in damaged)


# --- Signals that ask to stop or to save ---------------------------------------------------------


@pytest.mark.fault("F10")
def test_one_rank_is_asked_to_stop_and_all_stop_at_one_step(whole: str, trials: Trials) -> None:
    draw, names = random.Random(10), [*PHASES]
    for number in range(trials.count(2, 40)):
        name, rank = names[number % len(names)], draw.randint(0, 1)
        at = 1 if name == "building" else draw.randint(1, 5 if name == "a save" else 14)
        if number == 0:
            at = 3  # within an epoch, where the resume must find the buffers of a step before
        with trials.trial_in_folder(f"{name}, entry {at}, rank {rank}") as place:
            fault = SignalIn(signal.SIGTERM, PHASES[name], at)
            ends = run_ranks(place, *TINY, faults={rank: fault})
            took = time.time() - fault.sent(place.folder)
            check_time(trials, f"SIGTERM to one rank in {name}, end", took, 10)
            check_ended(place, ends, 143, ("stopped by SIGTERM",))
            if name != "building":
                (step,) = re.findall(r"stopped by SIGTERM after step (\d+), and saved", ends.text)
                assert newest_step(place) == int(step)
            check_goes_on(place, whole)


@pytest.mark.fault("F10")
@pytest.mark.parametrize("times", [pytest.param(1, marks=slow), 2])
def test_ctrl_c_stops_all_ranks_and_a_second_one_ends_them(
    place: Workplace, whole: str, times: int
) -> None:
    """A terminal sends it to all; the second one comes while they are within a step."""
    note = place.folder / ".steps"
    held = HeldUp(1.5 if times == 1 else 5, f"{TRAINER}.train_step", 9)
    ranks = Ranks(place, *TINY, faults={0: Both(NoteSteps(note), held), 1: held})
    ranks.scripts[0].wait_until(lambda: note.exists() and note.read_text().count("\n") >= 8)
    for number in range(times):
        time.sleep(0.7)
        ranks.signal(signal.SIGINT)
        sent = time.monotonic() if number + 1 == times else None
    ends = ranks.wait()
    assert sent is not None
    assert time.monotonic() - sent < 10
    told = "after step (9|10), and saved" if times == 1 else "nothing more was saved"
    check_ended(place, ends, 130, (f"stopped by SIGINT,? {told}",))
    assert newest_step(place) in ((9, 10) if times == 1 else (8,))
    check_goes_on(place, whole)


@pytest.mark.fault("F10")
def test_sigusr1_to_one_rank_saves_once_and_changes_nothing(whole: str, trials: Trials) -> None:
    draw = random.Random(9)
    for number in range(trials.count(1, 20)):
        name, rank = [*PHASES][number % 3], draw.randint(0, 1)
        with trials.trial_in_folder(f"{name}, rank {rank}") as place:
            fault = SignalIn(signal.SIGUSR1, PHASES[name], draw.randint(3, 14))
            words = ("-c", "tiny.yaml", "--set", "trainer.save_every=9 epochs")
            ends = run_ranks(place, *words, faults={rank: fault})
            check_ended(place, ends, 0, ())
            (folder,) = place.runs()
            steps = {int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")}
            assert steps - {5, 10, 15} or name == "validation", steps  # beside the best ones
            assert digest(folder) == whole


@pytest.mark.fault("F10")
@pytest.mark.parametrize("restarts", [0, pytest.param(None, marks=slow)])
def test_the_launcher_is_asked_to_stop_and_all_save_and_stop(
    whole: str, trials: Trials, restarts: int | None
) -> None:
    """Of torchrun (whose exit code is 1 whatever happened), and of `-d cpu:2`."""
    draw = random.Random(restarts)
    moments = ("a step", "the start", "validation", "a save")
    for number in range(trials.count(1, 20)):
        moment = moments[number % len(moments)]
        with trials.trial_in_folder(moment) as place:
            held: Fault = Pace(0.1, place.folder / ".paced")
            if moment == "validation":
                held = Both(held, HeldUp(2, PHASES["validation"], 14))
            if moment == "a save":
                held = Both(held, HeldUp(2, WRITES, 2))
            faults = {(rank, 0): held for rank in (0, 1)}
            run = Launched(place, *TINY, faults=faults, restarts=restarts)
            if moment == "the start":
                time.sleep(draw.uniform(0, 6))
            else:
                at = {"a step": draw.randint(1, 12), "validation": 5, "a save": 4}[moment]
                run.launcher.wait_until(lambda run=run, at=at: len(run.steps()) >= at)
                time.sleep(0.3)
            run.launcher.signal(signal.SIGTERM)
            sent = time.monotonic()
            done = run.wait()
            took = time.monotonic() - sent
            check_time(trials, f"SIGTERM to the launcher in {moment}, end", took, 10)
            assert processes_in(place) == []
            if moment != "the start":
                assert done.returncode == (143 if restarts is None else 1), done.stderr
                (step,) = re.findall(r"stopped by SIGTERM after step (\d+), and sav", done.stderr)
                assert newest_step(place) == int(step)
            check_goes_on(place, whole)


# --- A rank is killed or stopped -----------------------------------------------------------------


def entry(draw: random.Random, name: str) -> int:
    """Return the entry into a phase at which a rank is lost.

    The first step is waited for ten times as long, as the checks before training are.
    """
    entries = {"building": (1, 1), "a save": (2, 5), "validation": (4, 9)}
    first, last = entries.get(name, (4, 14))
    return draw.randint(first, last)


LOSSES = [
    (number, name)
    for name in ("a step", "validation", "the gradients", "a save")
    for number in (signal.SIGKILL, signal.SIGSTOP)
]


@pytest.mark.fault("F27")
def test_a_lost_rank_ends_the_others_which_name_it(whole: str, trials: Trials) -> None:
    """A stopped one is waited for: for the timeout in a step, ten times as long in a save."""
    draw = random.Random(27)
    for trial in range(trials.count(2, 24)):
        number, name = LOSSES[trial % len(LOSSES)]
        rank, at = draw.randint(0, 1), entry(draw, name)
        timeout = 1 if name == "a save" else 3
        with trials.trial_in_folder(f"{number.name} in {name}, entry {at}, rank {rank}") as place:
            fault = SignalIn(number, PHASES[name], at)
            words = (*TINY, f"distributed.timeout={timeout}")
            code, text = run_ranks(place, *words, faults={rank: fault})
            took = time.time() - fault.sent(place.folder)
            wait = timeout * (10 if name == "a save" else 1) if number == signal.SIGSTOP else 0
            check_time(trials, f"{number.name} in {name}, end after the wait", took - wait, 5)
            assert code != 0
            check_ended(place, Ends(code, text), code, (LOST.format(rank),))
            assert "the last checkpoint is valid; resume by" in text or rank == 0, text
            assert processes_in(place) == []
            check_goes_on(place, whole)


@pytest.mark.fault("F27")
def test_torchrun_restarts_the_ranks_once_and_the_end_is_the_same(
    whole: str, trials: Trials
) -> None:
    draw = random.Random(72)
    numbers = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
    names = ("a step", "building", "validation", "a save")
    for trial in range(trials.count(1, 20)):
        number, name = numbers[trial % 3], names[trial % 4]
        rank, at = draw.randint(0, 1), entry(draw, name)
        with trials.trial_in_folder(f"{number.name} in {name}, entry {at}, rank {rank}") as place:
            is_long = name in ("building", "a save")
            timeout = 1 if is_long else 5
            fault = SignalIn(number, PHASES[name], at)
            words = (*TINY, f"distributed.timeout={timeout}")
            run = Launched(place, *words, faults={(rank, 0): fault}, restarts=3)
            done = run.wait()
            assert done.returncode == 0, done.stderr
            assert run.attempts() == 2, done.stderr
            assert digest(last_run(place)) == whole
            assert processes_in(place) == []
            wait = timeout * (10 if is_long else 1) if number == signal.SIGSTOP else 0
            lost = fault.sent(place.folder) + wait
            again = (place.folder / ".pid-0-1").stat().st_mtime
            print(f"{number.name} in {name}, new processes after the wait: {again - lost:.1f} s")
            took = run.steps(0, 1)[0][1] - lost
            check_time(trials, f"{number.name} in {name}, next step after the wait", took, 15)


@pytest.mark.fault("F27")
@slow
def test_torchrun_without_restarts_ends_soon(whole: str, trials: Trials) -> None:
    draw = random.Random(4)
    for trial in range(trials.count(1, 8)):
        number, name = LOSSES[trial % 8]
        rank, at = draw.randint(0, 1), entry(draw, name)
        with trials.trial_in_folder(f"{number.name} in {name}, entry {at}, rank {rank}") as place:
            fault = SignalIn(number, PHASES[name], at)
            timeout = 1 if name == "a save" else 5
            words = (*TINY, f"distributed.timeout={timeout}")
            run = Launched(place, *words, faults={(rank, 0): fault})
            done = run.wait()
            wait = timeout * (10 if name == "a save" else 1) if number == signal.SIGSTOP else 0
            took = time.time() - fault.sent(place.folder)
            check_time(
                trials, f"torchrun, {number.name} in {name}, end after the wait", took - wait, 5
            )
            assert done.returncode == 1
            assert re.search(LOST.format(rank), done.stderr), done.stderr
            check_goes_on(place, whole)


# --- Another number of ranks ---------------------------------------------------------------------


@pytest.mark.fault("F28")
@pytest.mark.parametrize("size", [1, pytest.param(4, marks=slow)])
def test_another_number_of_ranks_has_the_losses_of_one_process(place: Workplace, size: int) -> None:
    """Without dropout, random transforms and statistics of a batch."""
    words = ("model={type: MLP, args: {n_inputs: 64, hidden: [16], n_outputs: 10}}",
             "data_loader.args.augment=false", "trainer.monitor=off", SAVING)  # fmt: skip
    config = ("-c", "tiny.yaml", "--set", *words)
    expected = losses(place.train("--set", *words))
    (alone,) = place.runs()
    fault = SignalIn(signal.SIGTERM, PHASES["a step"], 7)
    code, text = run_ranks(place, *config, faults={1: fault})
    assert code == 143, text
    (broken,) = set(place.runs()) - {alone}
    code, text = run_ranks(place, "-r", str(broken), size=size)
    assert code == 0, text
    assert f"is of 2 processes, and the run continues with {size} process" in text
    for ours, theirs in zip(losses(broken), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def losses(folder: Path) -> list[list[float]]:
    """Return the losses of each epoch."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows: list[dict[str, Any]] = [*csv.DictReader(file)]
    return [[float(row[name]) for name in ("train/loss", "valid/loss")] for row in rows]
