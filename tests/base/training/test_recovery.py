"""``on_nonfinite`` and ``on_oom``: what a step that cannot be made leaves behind, and what not."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import assert_resumes, assert_same, make, run, train_in, weights

from base.checkpoint.store import read
from base.config import load_config
from base.errors import ConfigError, TrainingError
from base.names.registry import MODELS
from base.training.nonfinite import first_nonfinite
from base.training.recovery import is_out_of_memory
from trainer.trainer import Trainer

NAN, INF = float("nan"), float("inf")
NORMED = "model={type: Normed}"


class Normed(nn.Module):
    """Has running statistics and random numbers, and breaks where it is told to."""

    def __init__(self, n_outputs: int = 3) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(5), nn.Dropout(0.3)
        self.head = nn.Linear(5, n_outputs)
        self.bad = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(x.flatten(1) * self.bad)))


@pytest.fixture(autouse=True)
def _models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Normed", Normed)
    monkeypatch.setitem(MODELS.registered, "Hungry", Hungry)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [NAN, INF, -INF, "largest", 0.0])
def test_the_first_number_that_is_none_is_found_and_no_large_one(value: Any, dtype: torch.dtype):
    """Against `isfinite`; the squares of the largest numbers overflow."""
    number = torch.finfo(dtype).max if value == "largest" else value
    tensors = {name: torch.ones(40, dtype=dtype) for name in ("a", "b", "c")}
    tensors["b"][7], tensors["c"][3] = number, -number
    expected = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    assert first_nonfinite({**tensors, "none": None}.items()) == next(iter(expected), None)


class BadAt(Trainer):
    """Its model is given numbers that are none at some batches."""

    at: tuple[int, ...] = (3,)

    def forward(self, batch: Any) -> Any:
        is_bad = self.model.training and self.progress.batches_total in self.at
        self.model.bad = NAN if is_bad else 1.0
        return super().forward(batch)


class Twice(BadAt):
    at = (3, 6)


class Often(BadAt):
    at = (2, 3, 4)


class LeftOut(Trainer):
    """The oracle: the step of batch 3 is left out by hand, before anything is computed."""

    at = (3,)

    def train_step(self, batch: Any) -> Any:
        if self.progress.batches_total not in self.at:
            return super().train_step(batch)
        nn.functional.dropout(batch[0].flatten(1), 0.3)  # the random numbers of that step are drawn
        self.window.drop()
        self.progress.skipped += 1
        self.progress.skipped_in_a_row += 1
        return {}


FULL = (
    NORMED,
    "metrics=[accuracy, {type: accuracy, name: whole, over: epoch}]",
    "trainer.ema={decay: 0.9}",
    "optimizer={type: Adam, args: {lr: 0.01}}",
    "lr_scheduler={type: OneCycleLR, args: {max_lr: 0.1}, every: step}",
)
SKIP = "trainer.on_nonfinite=skip"


# --- skip -----------------------------------------------------------------------------------------


def test_a_skipped_step_leaves_nothing_behind(tmp_path: Path) -> None:
    """Weights, statistics, averages, moments, meters, metrics: as if it had not been computed."""
    skipped = run(tmp_path / "skipped", *FULL, SKIP, trainer=BadAt)
    run(tmp_path / "left_out", *FULL, trainer=LeftOut)
    assert skipped.progress.skipped == 1
    ours, theirs = read(tmp_path / "skipped"), read(tmp_path / "left_out")
    assert all(v.isfinite().all() for v in ours["model"].values())
    assert_same(ours, theirs)


def test_a_skipped_step_counts_as_a_step_and_the_schedule_goes_on() -> None:
    trainer = make(*FULL, SKIP, trainer=BadAt)
    train_in(trainer)
    assert (trainer.progress.step, trainer.progress.epoch) == (10, 2)
    assert int(next(iter(trainer.optimizers["main"].state.values()))["step"]) == 9
    assert trainer.ema.n_updates == 9
    assert trainer.schedules["main"].scheduler.last_epoch == 10


@pytest.mark.parametrize("more", [[], ["memory.accumulate=2"], ["memory.micro_batch=2"]])
@pytest.mark.parametrize("stop_at", [2, 3])
def test_a_run_with_skipped_steps_resumes_exactly(
    tmp_path: Path, more: list[str], stop_at: int
) -> None:
    run_with = [*FULL, SKIP, *more, "trainer.epochs=3"]
    assert_resumes(tmp_path, *run_with, stop_at=stop_at, trainer=Twice)


@pytest.mark.parametrize("more", [[], ["memory.accumulate=2"], ["memory.micro_batch=2"]])
def test_no_weight_moves_in_a_skipped_step(more: list[str]) -> None:
    trainer = make(NORMED, SKIP, *more, trainer=BadAt)
    seen: list[dict[str, Tensor]] = [weights(trainer)]
    trainer._changing.append(SimpleNamespace(after_step=lambda _: seen.append(weights(trainer))))
    train_in(trainer)
    step = 3 // trainer.window.accumulate
    assert_same(seen[step + 1], seen[step])
    moved = [not seen[k]["head.weight"].equal(seen[k + 1]["head.weight"]) for k in range(step)]
    assert all(moved)
    assert trainer.progress.skipped == 1


@pytest.mark.fault("F16")
def test_steps_in_a_row_end_the_training() -> None:
    trainer = make(NORMED, SKIP, "trainer.max_nonfinite=2", trainer=Often)
    with pytest.raises(TrainingError, match=r"at step 5 .*after 2 skipped steps in a row"):
        train_in(trainer)
    trainer = make(NORMED, SKIP, "trainer.max_nonfinite=3", trainer=Often)
    train_in(trainer)
    assert (trainer.progress.skipped, trainer.progress.skipped_in_a_row) == (3, 0)


@pytest.mark.fault("F16")
def test_an_epoch_of_skipped_steps_is_never_the_best(tmp_path: Path) -> None:
    class Whole(BadAt):
        at = (0, 1, 2, 3, 4)

    monitor = ["data_loader.args.validation_split=0", "data_loader.args.n_samples=20"]
    trainer = run(tmp_path, NORMED, SKIP, "metrics=[accuracy]", *monitor, trainer=Whole)
    assert trainer.monitor.best_epoch == 2
    assert trainer.progress.skipped == 5


class BadGradient(Trainer):
    """Its loss is finite, the gradient of it is not."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        losses = super().compute_losses(outputs, batch)
        if self.model.training and self.progress.batches_total == 3:
            losses["cross_entropy"] = losses["cross_entropy"] + (0 * outputs).sum().sqrt()
        return losses


def test_a_gradient_that_is_not_finite_is_skipped_too(caplog: pytest.LogCaptureFixture) -> None:
    trainer = make(SKIP, trainer=BadGradient)
    train_in(trainer)
    assert trainer.progress.skipped == 1
    assert all(w.isfinite().all() for w in weights(trainer).values())
    assert "the gradient of hidden.0.weight, or its square, is not finite at step 4" in caplog.text


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """Where gradients are not looked at, the last checkpoint is still a good one."""
    trainer = make("trainer.save_every=1 step", trainer=BadGradient)
    with pytest.raises(TrainingError, match=r"not finite after step 4 \(first: hidden.0.weight"):
        train_in(trainer, tmp_path)
    state = read(tmp_path)
    assert state["progress"]["step"] == 3
    assert all(value.isfinite().all() for value in state["model"].values())


@pytest.mark.fault("F17")
def test_an_overflow_of_fp16_s_scale_is_no_loss_that_is_not_finite() -> None:
    trainer = make("memory.precision=fp16", SKIP, "trainer.max_nonfinite=1")
    scaler = trainer.steppers["main"].scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**127})
    train_in(trainer)
    assert scaler.get_scale() < 2.0**126, "no step overflowed: the test shows nothing"
    assert trainer.progress.skipped == 0


# --- What is told ---------------------------------------------------------------------------------


def told(trainer: Any) -> str:
    with pytest.raises(TrainingError) as caught:
        train_in(trainer)
    return str(caught.value)


def test_step_rate_values_and_layer_are_named() -> None:
    class Broken(Trainer):
        def forward(self, batch: Any) -> Any:
            layer, factor = self.model.hidden[0], INF if self.progress.batches_total == 3 else 1.0
            layer.forward = lambda x: nn.Linear.forward(layer, x) * factor
            return super().forward(batch)

    losses = "loss=[cross_entropy, {type: multi_margin_loss, name: margin, weight: 0.5}]"
    message = told(make(losses, trainer=Broken))
    assert "the loss is not finite at step 4 (lr 0.1; the step before it: loss " in message
    assert "running the step again gives loss nan, cross_entropy nan, margin " in message
    assert "first non-finite value: the output of hidden.0 (Linear)" in message


def test_a_batch_that_is_not_finite_is_told() -> None:
    class Data(Trainer):
        def train_step(self, batch: Any) -> Any:
            if self.progress.batches_total == 3:
                batch[0][1] = NAN
            return super().train_step(batch)

    assert "the batch itself holds NaN or infinite values" in told(make(trainer=Data))


def test_a_loss_of_finite_outputs_is_told() -> None:
    class Loss(Trainer):
        def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
            loss = super().compute_losses(outputs, batch)["cross_entropy"]
            return {"loss": loss * (NAN if self.progress.step == 3 else 1)}

    assert "a value computed from the outputs of layers" in told(make(trainer=Loss))


def test_a_second_look_changes_nothing() -> None:
    trainer, twin = (make(*FULL, SKIP, trainer=Trainer) for _ in range(2))
    for one in (trainer, twin):
        torch.manual_seed(1)
        end_step = one.end_step
        one.end_step = lambda values, one=one, end_step=end_step: (
            one.recovery._locate_nonfinite(next(one.train_loader.batches(0, 1)))
            if one is trainer
            else None,
            end_step(values),
        )
        train_in(one)
    for name, part in trainer.stateful.items():
        assert_same(part.state_dict(), twin.stateful[name].state_dict(), name)


# --- rollback -------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_folder", [True, False])
def test_a_rollback_goes_back_to_the_last_save_and_on_past_the_batch(
    tmp_path: Path, with_folder: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Saved after step 2; batch 3 is bad: step 3's work is lost, weights are those of step 2."""
    seen: list[dict[str, Any]] = []

    class Noting(BadAt):
        def train_step(self, batch: Any) -> Any:
            moments = {k: v.clone() for s in self.optimizers["main"].state.values()
                       for k, v in s.items()}  # fmt: skip
            seen.append({**self.model.state_dict(), **moments, **self.ema.averages})
            seen[-1] = {k: v.clone() for k, v in seen[-1].items()}
            return super().train_step(batch)

    schedule = "lr_scheduler={type: ExponentialLR, args: {gamma: 0.8}, every: step}"
    options = [*FULL[:-1], schedule, "trainer.on_nonfinite=rollback", "trainer.save_every=2 steps"]
    trainer = make(*options, trainer=Noting)
    train_in(trainer, tmp_path if with_folder else None)
    del seen[4]  # the second look at the bad step
    assert_same(seen[4], seen[2])
    assert not seen[3]["head.weight"].equal(seen[2]["head.weight"])
    assert (trainer.progress.step, trainer.progress.rollbacks) == (10, 1)
    assert "restored the weights of step 2; training continues with the next batch" in caplog.text
    undisturbed = make(*options)
    train_in(undisturbed)
    assert trainer.progress.rates == undisturbed.progress.rates, "schedules are not set back"


def test_before_the_first_save_a_rollback_goes_back_to_the_start() -> None:
    class First(BadAt):
        at = (1,)

    trainer = make(NORMED, "trainer.on_nonfinite=rollback", trainer=First)
    start, seen = weights(trainer), []
    trainer._changing.append(SimpleNamespace(after_step=lambda _: seen.append(weights(trainer))))
    train_in(trainer)
    assert_same(seen[1], start)


def test_rollbacks_are_limited_in_all() -> None:
    class Apart(BadAt):
        at = (1, 4, 7)

    options = [NORMED, "trainer.on_nonfinite=rollback"]
    trainer = make(*options, "trainer.max_nonfinite=2", trainer=Apart)
    assert "comes after 2 rollbacks" in told(trainer)
    trainer = make(*options, "trainer.max_nonfinite=3", trainer=Apart)
    train_in(trainer)
    assert trainer.progress.rollbacks == 3


def test_a_run_that_was_rolled_back_resumes_exactly(tmp_path: Path) -> None:
    options = [*FULL, "trainer.on_nonfinite=rollback", "trainer.save_every=2 steps"]
    assert_resumes(tmp_path, *options, "trainer.epochs=3", stop_at=6, trainer=Twice)


# --- Saving by the clock --------------------------------------------------------------------------


def test_when_a_run_is_saved_changes_no_bit_of_it(tmp_path: Path) -> None:
    """Saved at each step by the clock, and never: both end alike, and both resume alike."""
    often, never = "trainer.save_every=0.00000001 minutes", "trainer.save_every=1000 minutes"
    run(tmp_path / "often", *FULL, often, "trainer.keep=99")
    run(tmp_path / "never", *FULL, never, "trainer.monitor=off", "trainer.keep=99")
    assert len(list((tmp_path / "often" / "checkpoints").glob("step-*"))) == 10
    assert len(list((tmp_path / "never" / "checkpoints").glob("step-*"))) == 1
    ours, theirs = read(tmp_path / "often"), read(tmp_path / "never")
    del ours["monitor"], theirs["monitor"]
    assert_same(ours, theirs)
    assert_resumes(tmp_path, *FULL, often, stop_at=4)


@pytest.mark.parametrize("key", ["trainer.log_every", "lr_scheduler.warmup", "memory.empty_cache"])
def test_what_changes_results_takes_no_minutes(key: str) -> None:
    schedule = "lr_scheduler={type: StepLR, args: {step_size: 1}}"
    with pytest.raises(ConfigError, match=f"{key}: '10 minutes' would make results depend on time"):
        make(schedule, f"{key}=10 minutes")


# --- Out of memory --------------------------------------------------------------------------------


class Hungry(nn.Module):
    """Has memory for so many samples at once, from one call on."""

    most, from_call = 3, 0

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(5), nn.Dropout(0.5))
        self.head = nn.Linear(5, 3)
        self.n_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += self.training
        if self.training and self.n_calls > self.from_call and len(x) > self.most:
            if self.most:
                self.body(x)  # moves a buffer and the random stream first
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")
        return self.head(self.body(x))


HUNGRY = ("model={type: Hungry}", "data_loader.args.batch_size=8", "trainer.on_oom=halve")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_halving_ends_as_a_run_with_that_micro_batch(tmp_path: Path, accumulate: int) -> None:
    more = [f"memory.accumulate={accumulate}", "metrics=[accuracy]", "trainer.ema={decay: 0.9}"]
    found = run(tmp_path / "found", *HUNGRY, *more)
    run(tmp_path / "fixed", *HUNGRY, *more, "memory.micro_batch=2")
    assert_same(read(tmp_path / "found"), read(tmp_path / "fixed"))
    kept = load_config(tmp_path / "found" / "config.yaml")
    assert kept["memory"]["micro_batch"] == found.window.micro_batch == 2


def test_in_the_middle_of_a_window_all_of_it_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Hungry, "from_call", 1)
    more = ("memory.accumulate=2", "optimizer.args.lr=0.1")
    found, fixed = make(*HUNGRY, *more), make(*HUNGRY, *more, "memory.micro_batch=2")
    for one in (found, fixed):
        torch.manual_seed(1)
        train_in(one)
    assert_same(weights(found), weights(fixed))
    assert found.progress.state_dict() == fixed.progress.state_dict()


def test_what_was_found_is_told_with_what_it_means_for_batch_norm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    train_in(make(*HUNGRY))
    first = "out of memory at step 1 with 8 samples at a time: micro_batch 4 from now on; to keep"
    assert first in caplog.text
    assert "to keep it, set memory.micro_batch=2" in caplog.text
    assert "the 1 BatchNorm layers see 2 samples at a time" in caplog.text


def test_a_stop_and_a_resume_after_halving_change_no_bit(tmp_path: Path) -> None:
    run(tmp_path / "whole", *HUNGRY)
    run(tmp_path / "cut", *HUNGRY, stop_at=2)
    kept = load_config(tmp_path / "cut" / "config.yaml")["memory"]["micro_batch"]
    run(tmp_path / "cut", *HUNGRY, f"memory.micro_batch={kept}", resume=True)
    assert_same(read(tmp_path / "cut"), read(tmp_path / "whole"))


@pytest.mark.fault("F18")
def test_stop_advises_and_the_last_checkpoint_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hungry, "from_call", 1)
    trainer = make(*HUNGRY[:2], "trainer.save_every=1 step")
    with pytest.raises(TrainingError) as caught:
        train_in(trainer, tmp_path)
    assert caught.value.exit_code == 3
    assert "out of memory at step 2 with 8 samples at a time" in str(caught.value)
    for advice in ("memory.micro_batch=4", "trainer.on_oom=halve", "batch_size"):
        assert advice in str(caught.value)
    assert read(tmp_path)["progress"]["step"] == 1


def test_where_one_sample_is_too_much_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hungry, "most", 0)
    with pytest.raises(TrainingError, match="one sample does not fit"):
        train_in(make(*HUNGRY))


def test_what_an_optimizer_has_begun_is_not_made_again(tmp_path: Path) -> None:
    trainer = make(*HUNGRY, "memory.micro_batch=2")

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room for moments")

    trainer.optimizers["main"].register_step_pre_hook(refuse)
    with pytest.raises(TrainingError, match=r"micro_batch 1 from now on.*a resume uses it: pyth"):
        train_in(trainer, tmp_path)
    assert load_config(tmp_path / "config.yaml")["memory"]["micro_batch"] == 1


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("optimizer={type: LBFGS}", "trainer.on_oom: cannot be combined with"),
        ("memory.optimizer_in_backward=true", "cannot be combined with trainer.on_oom"),
    ],
)
def test_what_cannot_be_cut_cannot_be_halved(option: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make(option, "trainer.on_oom=halve")


@contextmanager
def room(n_bytes: int) -> Iterator[None]:
    """Let this process take so many bytes of addresses more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


WIDE = (
    "model.args={n_inputs: 5, hidden: [100000], n_outputs: 3}",
    "data_loader.args={n_samples: 1040, shape: [1, 1, 5], n_classes: 3, batch_size: 1024, "
    "validation_split: 16}",
    "trainer.epochs=1",
)


@pytest.mark.fault("F18")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_that_a_cpu_refuses_is_halved_away() -> None:
    """1024 x 100000 float32 are 410 MB, several times over; there is room for 600 MB."""
    trainer = make(*WIDE, "trainer.on_oom=halve")
    with room(600 << 20):
        train_in(trainer)
    assert 1 <= trainer.config["memory"]["micro_batch"] <= 512
    assert trainer.progress.step == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError("std::bad_alloc"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB"), True),
        (RuntimeError("XPU out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("level_zero backend failed: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"), True),
        (RuntimeError("HIP out of memory. Tried to allocate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear"), False),
        (RuntimeError("out of resource: shared memory, Required: 114688"), False),  # of Triton
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (None, False),
    ],
)
def test_what_is_out_of_memory(error: Any, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize(("free", "expected"), [(9, True), (11, False)])
@pytest.mark.parametrize(
    "text",
    [
        "FIND was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR",
        "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
    ],
)
def test_what_a_library_says_on_a_full_gpu_is_out_of_memory_there_alone(
    text: str, free: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say the same of types and layouts that no algorithm takes, and of broken drivers."""
    error = RuntimeError(text)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not is_out_of_memory(error)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 100))
    assert is_out_of_memory(error) is expected


@pytest.mark.fault("F18")
@pytest.mark.gpu
def test_memory_that_a_gpu_refuses_is_halved_away() -> None:
    from toy import CONFIG

    from base.run.build import build_experiment

    config = load_config(None, [*WIDE, "trainer.on_oom=halve"], text=CONFIG)
    device = torch.device("cuda")
    trainer = Trainer(build_experiment(config, device))
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(700e6 / total)
    try:
        train_in(trainer)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1 <= trainer.config["memory"]["micro_batch"] <= 512
    assert trainer.progress.step == 1
