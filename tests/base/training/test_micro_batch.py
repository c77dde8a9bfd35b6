"""``memory.micro_batch``: parts of a batch whose gradients, metrics and means are the batch's."""

from __future__ import annotations

import csv
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from toy import NETWORKS, assert_resumes, assert_same, batches, make, run, train_in, weights

from base.callbacks import Callback
from base.checkpoint.store import read
from base.config import load_config
from base.data.batch import DEFAULT_RULES, SampleCount, count_samples, cut
from base.errors import OutOfMemoryError, TrainingError
from base.names.registry import MODELS
from base.run import micro_batch
from base.run.dry_run_report import dry_run
from base.system.resources import ignored_out_of_memory
from base.training.accumulation import Window
from trainer.trainer import Trainer

Pair = namedtuple("Pair", "left right")


# --- Cutting --------------------------------------------------------------------------------------

X, Y = torch.arange(12).reshape(4, 3), torch.arange(4)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (X, X[1:3]),
        ([X, Y], [X[1:3], Y[1:3]]),
        ((X, X, Y), (X[1:3], X[1:3], Y[1:3])),
        ({"x": X, "id": list("abcd")}, {"x": X[1:3], "id": ["b", "c"]}),
        ([X, {"boxes": [Y, Y[:2], Y[:0], Y[:3]]}], [X[1:3], {"boxes": [Y[:2], Y[:0]]}]),
        ([X, Pair(Y, [X, Y])], [X[1:3], Pair(Y[1:3], [X[1:3], Y[1:3]])]),
        ([X, Y[0], None, "name", Y], [X[1:3], Y[0], None, "name", Y[1:3]]),
        ([X, [X, Y, Y, Y]], [X[1:3], [X[1:3], Y[1:3], Y[1:3], Y[1:3]]]),
        ([X[:2], Y[:2]], [X[1:2], Y[1:2]]),
    ],
)  # fmt: skip
def test_a_batch_is_cut_in_the_form_that_it_has(batch: Any, expected: Any) -> None:
    assert_same(cut(batch, 1, 3, count_samples(batch)), expected)


def test_arrays_are_cut_too() -> None:
    assert cut([X, np.arange(4)], 1, 3, 4)[1].tolist() == [1, 2]


def test_what_cannot_be_cut_is_told() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)])

    class Graph:
        def to(self, device: Any) -> Graph:
            return self

    with pytest.raises(TrainingError, match="a Graph cannot be cut: leave"):
        cut([X, Graph()], 0, 2, 4)
    with pytest.raises(TrainingError, match="a PackedSequence cannot be cut"):
        cut([packed, Y[:2]], 0, 1, 2)


def test_parts_that_disagree_are_not_cut() -> None:
    time_first = torch.zeros(7, 4, 2)
    with pytest.raises(TrainingError, match=r"holds \(7, 4, 2\).*not that of its 4 samples"):
        cut([time_first, Y], 0, 2, 4)
    with pytest.raises(TrainingError, match=r"holds \(2, 9\) cannot be cut"):
        cut({"x": X, "edge_index": torch.zeros(2, 9), "y": Y}, 0, 2, 4)


@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 4), st.integers(1, 9))
def test_the_parts_of_a_window_weigh_one_together(
    n_samples: int, micro_batch: int, accumulate: int, count: int
) -> None:
    window, share, seen = Window(accumulate, micro_batch, {}, SampleCount(DEFAULT_RULES)), 0.0, 0
    batch = [torch.arange(n_samples), torch.zeros(n_samples)]
    batches = window.read_ahead(iter([batch] * count), 0)
    for number in range(count):
        next(batches)
        window.place(number, count)
        for part, size in window.parts(batch, number):
            assert size == len(part[0]) <= micro_batch
            assert part[0].tolist() == list(range(seen, seen + size))
            seen += size
            share += float(window.share(torch.ones(())))
            is_last = (number + 1) % accumulate == 0 or number + 1 == count
            assert window.is_full == (is_last and seen == n_samples)
        assert seen == n_samples
        seen = 0
        if window.is_full:
            assert share == pytest.approx(1)
            share = 0.0


# --- Training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 4, 9])
def test_parts_give_the_step_of_the_batch(size: int, accumulate: int, tmp_path: Path) -> None:
    more = (
        f"memory.accumulate={accumulate}",
        "metrics=[accuracy]",
        "data_loader.args.batch_size=8",
        "trainer.log_every=1 step",
        "optimizer.clip_norm=0.3",
    )
    plain = run(tmp_path / "plain", *more)
    found = run(tmp_path / "found", *more, f"memory.micro_batch={size}")
    assert found.progress.state_dict() == plain.progress.state_dict()
    for name, weight in weights(found).items():
        torch.testing.assert_close(weight, weights(plain)[name], rtol=1e-4, atol=1e-6)
    rows = []
    for folder in ("plain", "found"):
        with (tmp_path / folder / "metrics.csv").open(newline="") as file:
            rows.append(list(csv.DictReader(file)))
    for ours, theirs in zip(rows[1], rows[0], strict=True):
        assert set(ours) == set(theirs)
        for column in (name for name in ours if name.startswith(("train/", "valid/"))):
            assert float(ours[column]) == pytest.approx(float(theirs[column]), rel=1e-4), column


class Losses(Callback):
    """Keeps the loss that each step logs."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_step_end(self, trainer: Any) -> None:
        self.values.append(float(trainer.training_state.last_values["loss"]))


def test_what_a_step_logs_is_the_mean_of_its_batch() -> None:
    logged: list[list[float]] = [[], []]
    for number, size in enumerate(("null", "3")):
        trainer = make(f"memory.micro_batch={size}", "optimizer.args.lr=0.000001")
        trainer.callbacks["Losses"] = losses = Losses()
        logged[number] = losses.values
        train_in(trainer)
    assert logged[1] == pytest.approx(logged[0], rel=1e-4)
    assert len(logged[0]) == 10


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = nn.Linear(2, 2), nn.Linear(2, 1)


class Alternating(Trainer):
    """Two networks, each with an optimizer of its own, in a step of its own."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        points = batch[0].flatten(1)
        with self.only("critic"):
            critic_loss = self.model.critic(self.model.generator(points)).square().mean()
            self.backward(critic_loss, only="critic")
            self.update("critic")
        with self.only("generator"):
            loss = (self.model.critic(self.model.generator(points)) - 1).square().mean()
            self.backward(loss, only="generator")
            self.update("generator")
        return {"loss": loss, "critic": critic_loss}

    valid_step = train_step


def test_parts_of_a_step_of_one_s_own_give_the_gradients_of_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last part alone steps: what the second network sees of the first is a part late there."""
    monkeypatch.setitem(MODELS.registered, "Pair", Pairs)
    gradients: list[list[Tensor]] = []
    for size in ("null", "3"):
        trainer = make(f"memory.micro_batch={size}", trainer=Alternating, text=NETWORKS)
        found: list[Tensor] = []
        trainer.optimizers["critic"].register_step_pre_hook(
            lambda o, *_, found=found: found.extend(
                p.grad.clone() for p in o.param_groups[0]["params"]
            )
        )
        batch = next(batches(trainer))
        trainer.window.place(0, 1)
        for part, _ in trainer.window.parts(batch, 0):
            trainer.train_step(part)
        gradients.append(found)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_stop_and_a_resume_change_no_bit(tmp_path: Path) -> None:
    assert_resumes(tmp_path, "memory={micro_batch: 3, accumulate: 2}", "metrics=[accuracy]")


def test_batch_norm_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    images = "data_loader.args.shape=[1, 8, 8]"
    net = "model={type: DigitsNet, args: {width: 2, n_classes: 3}}"
    train_in(make(net, images, "memory.micro_batch=2"))
    assert caplog.text.count("3 BatchNorm layers see 2 samples at a time") == 1
    caplog.clear()
    train_in(make(net, images, "memory.micro_batch=4"))
    assert "BatchNorm" not in caplog.text, "a batch has 4"


# --- auto -----------------------------------------------------------------------------------------


class Hungry(nn.Module):
    """Has memory for so many samples at once; moves a buffer and the random stream."""

    most = 3
    error: Exception = torch.OutOfMemoryError("out of memory")

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(5), nn.Dropout(0.5))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > self.most:
            raise self.error
        return self.head(self.body(x))


@pytest.fixture
def _device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Hungry", Hungry)
    monkeypatch.setattr(micro_batch, "fits_on_cpu", micro_batch.fits_on_device)


AUTO = ("model={type: Hungry}", "memory.micro_batch=auto", "data_loader.args.batch_size=8")


@pytest.mark.usefixtures("_device")
def test_auto_halves_until_a_part_fits_and_leaves_no_trace(tmp_path: Path) -> None:
    found = run(tmp_path / "auto", *AUTO)
    assert found.config["memory"]["micro_batch"] == 2  # 8, 4, 2
    assert "micro_batch 2 (auto; to keep it, memory.micro_batch=2)" in found.experiment.memory_notes
    run(tmp_path / "fixed", AUTO[0], "memory.micro_batch=2", AUTO[2])
    assert_same(read(tmp_path / "auto"), read(tmp_path / "fixed"))


@pytest.mark.usefixtures("_device")
@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB)",
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried",
    ],
)
def test_auto_knows_a_lack_of_memory_by_its_text(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hungry, "error", RuntimeError(text))
    assert run(tmp_path, *AUTO).config["memory"]["micro_batch"] == 2


@pytest.mark.usefixtures("_device")
def test_auto_passes_on_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")
    monkeypatch.setattr(Hungry, "error", error)
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):
        train_in(make(*AUTO))


@pytest.mark.usefixtures("_device")
def test_a_dry_run_without_enough_memory_says_what_to_do() -> None:
    trainer = make(AUTO[0], AUTO[2])
    with pytest.raises(OutOfMemoryError, match=r"the dry run .*memory\.micro_batch=auto"):
        dry_run(trainer)


def test_checks_leave_a_lack_of_memory_to_the_training() -> None:
    with ignored_out_of_memory():
        raise TrainingError("loss 'x' fails") from RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")
    with pytest.raises(TrainingError), ignored_out_of_memory():
        raise TrainingError("loss 'x' fails") from RuntimeError("shapes")


@pytest.mark.usefixtures("_device")
def test_the_number_found_is_kept_for_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", *AUTO)
    from base.training.run_log import write_config

    trainer = run(tmp_path / "cut", *AUTO, stop_at=2)
    write_config(trainer.config, tmp_path / "cut")
    kept = load_config(tmp_path / "cut" / "config.yaml")
    assert kept["memory"]["micro_batch"] == 2
    monkeypatch.setattr(Hungry, "most", 100)  # more would fit now, and give other numbers
    run(tmp_path / "cut", AUTO[0], "memory.micro_batch=2", AUTO[2], resume=True)
    assert_same(read(tmp_path / "cut"), read(tmp_path / "whole"))


@pytest.mark.usefixtures("_device")
def test_where_not_one_sample_fits_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hungry, "most", 0)
    with pytest.raises(TrainingError, match="not even one sample fits"):
        train_in(make(*AUTO))


@pytest.mark.parametrize(
    ("found", "size"),
    [
        ([(51, 51), (50, 50)], 51),  # all that each rank has
        ([(51, 51), (25, 50)], 24),  # 25 would leave one sample of 51
        ([(26, 51), (25, 50)], 24),
        ([(4, 8), (8, 8)], 4),
        ([(4, 9)], 3),
        ([(1, 3), (2, 3)], 1),
    ],
)
def test_auto_finds_one_size_for_all_ranks(found: list[tuple[int, int]], size: int) -> None:
    assert micro_batch.size_for_all(found) == size


def test_on_the_cpu_auto_goes_by_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make("data_loader.args.batch_size=16", "memory.micro_batch=auto")
    batch = next(batches(trainer))
    trainer.model.train()
    true = micro_batch.saved_bytes(trainer, batch)
    n_bytes = 3 * sum(p.nbytes for p in trainer.model.parameters())
    estimate = micro_batch.estimated_bytes(trainer, batch, 16, 16)
    assert estimate == pytest.approx(true + n_bytes, rel=0.02)
    monkeypatch.setattr(micro_batch, "free_memory", lambda: n_bytes + 0.3 * true)
    train_in(trainer)
    assert trainer.config["memory"]["micro_batch"] == 4
