"""Checkpoints written beside the training: the same bytes, one at a time, no fault kept quiet."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy import NETWORKS, make, run, train_in

from base.checkpoint import store as checkpoint
from base.checkpoint.background import BackgroundWriter, Snapshot, saves_in_background
from base.checkpoint.store import CheckpointStore, read
from base.errors import CheckpointError
from base.names.registry import MODELS
from tests.base.run.test_networks import Pair, WganTrainer
from tests.base.training.test_recovery import NORMED, Normed, Twice

ON = "trainer.async_save=true"
EACH_STEP = "trainer.save_every=1 steps"


class Disk:
    """Stands in for `write_state`: writes when it is let, or fails as often as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write, self.may_write = checkpoint.write_state, threading.Event()
        self.n_at_once = self.most_at_once = self.n_begun = 0
        self.fails_from = 1 << 30
        monkeypatch.setattr(checkpoint, "write_state", self)

    def __call__(self, path: Path, state: dict[str, Any]) -> dict[str, Any]:
        self.n_begun += 1
        self.n_at_once += 1
        self.most_at_once = max(self.most_at_once, self.n_at_once)
        try:
            assert self.may_write.wait(30)
            if self.n_begun >= self.fails_from:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.write(path, state)
        finally:
            self.n_at_once -= 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def save(store: CheckpointStore, step: int, state: dict[str, Any]) -> Path:
    return store.save(state, step=step, epoch=0, metrics={}, is_best=False, facts={})


@pytest.mark.fault("F31")
def test_what_training_changes_meanwhile_does_not_reach_the_file(tmp_path: Path, disk: Disk):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "tuple": (1, "a")}

    def step() -> None:
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()

    step()
    disk.may_write.set()
    plain = save(CheckpointStore(tmp_path / "plain"), 1, state())
    disk.may_write.clear()
    store = CheckpointStore(tmp_path / "beside", in_background=True)
    beside = save(store, 1, state())
    step()
    assert not beside.exists()
    disk.may_write.set()
    store.wait()
    assert (beside / "state.pt").read_bytes() == (plain / "state.pt").read_bytes()
    assert read(beside)["model"]._metadata == model.state_dict()._metadata


@pytest.mark.fault("F31")
def test_a_second_save_waits_for_the_first(tmp_path: Path, disk: Disk):
    store = CheckpointStore(tmp_path / "checkpoints", in_background=True)
    save(store, 1, {"t": torch.zeros(3)})
    second = threading.Thread(target=save, args=(store, 2, {"t": torch.ones(3)}))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert disk.n_begun == 1
    disk.may_write.set()
    second.join(30)
    store.wait()
    assert disk.most_at_once == 1
    assert [float(read(store.folder / f"step-0000000{n}")["t"][0]) for n in (1, 2)] == [0, 1]


def test_a_snapshot_keeps_what_is_shared_and_every_shape_and_type():
    base = torch.arange(12.0)
    state = {
        "one": base.view(3, 4), "other": base.view(4, 3).t(), "empty": torch.zeros(0, 2),
        "half": torch.ones(5, dtype=torch.bfloat16), "number": torch.tensor(3),
        "nested": OrderedDict(list=[torch.ones(2)], tuple=(None, 1.5, "a")),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "sparse": torch.eye(3).to_sparse(),
    }  # fmt: skip
    snapshot = Snapshot()
    copied = snapshot.take(state)
    assert list(copied) == list(state)
    assert type(copied["nested"]) is OrderedDict
    assert copied["nested"]["tuple"] == (None, 1.5, "a")
    for name in ("one", "other", "empty", "half", "number", "last"):
        assert torch.equal(copied[name], state[name])
        assert copied[name].dtype == state[name].dtype
        assert copied[name].stride() == state[name].stride()
    assert torch.equal(copied["sparse"].to_dense(), torch.eye(3))
    base.zero_()
    state["sparse"]._values().zero_()
    assert float(copied["one"][2, 3]) == float(copied["other"][2, 3]) == 11.0
    assert float(copied["sparse"].to_dense().sum()) == 3.0
    copied["one"].fill_(5.0)
    assert bool((copied["other"] == 5.0).all())


def test_the_memory_of_a_copy_is_used_again_and_follows_the_state():
    snapshot = Snapshot()
    first = snapshot.take({"a": torch.ones(4), "b": torch.ones(8)})
    places = [first[name].data_ptr() for name in "ab"]
    second = snapshot.take({"a": torch.full((4,), 2.0), "b": torch.full((8,), 3.0)})
    assert [second[name].data_ptr() for name in "ab"] == places
    third = snapshot.take({"a": torch.full((6,), 4.0)})
    assert torch.equal(third["a"], torch.full((6,), 4.0))
    assert len(snapshot._buffers) == 1


def test_a_copy_of_parameters_is_outside_their_graph():
    weight = nn.Parameter(torch.ones(3))
    snapshot = Snapshot()
    for value in (1.0, 2.0):  # the second copy goes into the memory of the first
        weight.data.fill_(value)
        copied = snapshot.take({"weight": weight})["weight"]
        assert copied.tolist() == [value] * 3
        assert not copied.requires_grad


ADAM = "optimizer={type: Adam, args: {lr: 0.01}}"


@pytest.mark.parametrize(
    ("words", "how"),
    [
        ([ADAM, "trainer.ema={decay: 0.9}"], {}),
        ([ADAM, "lr_scheduler={type: OneCycleLR, args: {max_lr: 0.1}, every: step}"], {}),
        (["optimizer={type: SGD, args: {lr: 0.1, momentum: 0.9}}"], {}),
        ([ADAM, "memory.optimizer_in_backward=true"], {}),
        ([ADAM, "memory.fused=true", "memory.accumulate=2"], {}),
        ([ADAM, NORMED, "trainer.on_nonfinite=rollback"], {"trainer": Twice}),
        (["optimizer={type: LBFGS, args: {lr: 0.1, max_iter: 3}}"], {}),
        ([], {"text": NETWORKS, "trainer": WganTrainer}),
    ],
    ids=["ema", "schedule", "momentum", "in_backward", "accumulate", "rollback", "lbfgs", "two"],
)
def test_each_checkpoint_of_a_run_is_what_it_is_without_a_thread(
    words: list[str], how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for model in (Normed, Pair):
        monkeypatch.setitem(MODELS.registered, model.__name__, model)
    write = checkpoint.write_state

    def write_late(path: Path, state: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.02)  # longer than a step
        return write(path, state)

    monkeypatch.setattr(checkpoint, "write_state", write_late)
    for name, is_on in (("beside", "true"), ("plain", "false")):
        run(tmp_path / name, f"trainer.async_save={is_on}", EACH_STEP, "trainer.keep=100",
            *words, **how)  # fmt: skip
    files = [
        {
            path.parent.name: path.read_bytes()
            for path in (tmp_path / name / "checkpoints").glob("*/state.pt")
        }
        for name in ("beside", "plain")
    ]
    assert files[0] == files[1]
    assert len(files[0]) >= 5


def test_a_failure_of_the_copy_is_raised_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: Snapshot, state: dict[str, Any]) -> None:
        raise MemoryError("no room for the copy")

    monkeypatch.setattr(Snapshot, "take", fail)
    store = CheckpointStore(tmp_path / "checkpoints", in_background=True)
    with pytest.raises(MemoryError, match="no room"):
        save(store, 1, {"t": torch.ones(3)})
    store.wait()
    assert store.newest() is None


def test_weights_are_looked_at_once_where_a_state_is_saved_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = make("trainer.epochs=1")
    seen: list[int] = []
    monkeypatch.setattr(
        "base.training.recovery.refuse_bad_weights", lambda _, step: seen.append(step)
    )
    train_in(trainer, tmp_path)
    assert seen == [0, 5]  # at the begin, and not again at the end


# --- The end of a run -----------------------------------------------------------------------------


def test_a_run_waits_for_its_last_checkpoint(tmp_path: Path, disk: Disk):
    threading.Timer(0.3, disk.may_write.set).start()
    trainer = run(tmp_path, ON)
    newest = CheckpointStore(tmp_path / "checkpoints").newest()
    assert newest is not None
    assert read(newest)["progress"]["step"] == trainer.progress.step
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


def test_a_stopped_run_waits_too_and_goes_on_exactly(tmp_path: Path):
    run(tmp_path / "whole", ON)
    run(tmp_path / "cut", ON, EACH_STEP, stop_at=7)
    run(tmp_path / "cut", ON, EACH_STEP, resume=True)
    states = [(tmp_path / name / "checkpoints").glob("step-*") for name in ("whole", "cut")]
    last = [max(paths) for paths in states]
    assert (last[0] / "state.pt").read_bytes() == (last[1] / "state.pt").read_bytes()


@pytest.mark.fault("F31")
def test_a_failure_stops_the_run_at_the_next_step(tmp_path: Path, disk: Disk):
    disk.may_write.set()
    disk.fails_from = 3
    trainer = make(ON, EACH_STEP)

    def wait_for_the_thread(trainer: Any) -> None:
        thread = trainer.store.background._thread
        if thread is not None:
            thread.join()

    trainer.callbacks["Wait"] = type(
        "Wait", (), {"on_step_end": staticmethod(wait_for_the_thread)}
        | dict.fromkeys(("on_start", "on_epoch_end", "on_end"), lambda *_: None)
    )()  # fmt: skip
    with pytest.raises(CheckpointError, match=r"step-00000003: checkpoint not written: No space"):
        train_in(trainer, tmp_path)
    assert trainer.progress.step == 4
    assert read(tmp_path)["progress"]["step"] == 2
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


@pytest.mark.fault("F31")
def test_a_failure_of_the_last_save_is_an_error_of_the_run(tmp_path: Path, disk: Disk):
    disk.may_write.set()
    disk.fails_from = 1
    with pytest.raises(CheckpointError, match="No space"):
        run(tmp_path, ON, "trainer.epochs=1")


def test_an_error_is_raised_once():
    background = BackgroundWriter()
    background.start(lambda: 1 / 0)
    while background._thread is not None and background._thread.is_alive():
        time.sleep(0.01)
    with pytest.raises(ZeroDivisionError):
        background.check()
    background.check()
    background.wait()


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [("auto", "cpu", False), ("auto", "cuda", True), (True, "cpu", True), (False, "cuda", False)],
)
def test_auto_is_for_devices_that_compute_by_themselves(asked: Any, device: str, expected: bool):
    assert saves_in_background(asked, torch.device(device)) is expected


def test_the_copies_of_each_gpu_are_waited_for(monkeypatch: Any) -> None:
    """A model may be spread over several GPUs, each with a stream of its own."""
    waited: list[str] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def synchronize(self) -> None:
            waited.append(str(self.device))

    class Spread(Snapshot):
        def _copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
            self._devices |= {torch.device("cuda", int(tensor))}
            return super()._copy_tensor(tensor)

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    snapshot = Spread()
    snapshot.take([torch.tensor(0), torch.tensor(1), torch.tensor(1)])
    assert sorted(waited) == ["cuda:0", "cuda:1"]
    Snapshot().take([torch.tensor(0)])
    assert len(waited) == 2, "nothing is to be waited for"


@pytest.mark.gpu
def test_a_snapshot_of_a_gpu_is_pinned_and_whole():
    state = {"weights": torch.randn(1000, 1000, device="cuda")}
    expected = state["weights"].cpu()
    copied = Snapshot().take(state)
    state["weights"].zero_()
    assert copied["weights"].is_pinned()
    assert torch.equal(copied["weights"], expected)
