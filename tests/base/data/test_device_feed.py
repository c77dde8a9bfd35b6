"""Batches on their way to the step: what outlives a step, what is copied ahead, where time goes."""

import csv
import time
import weakref
from collections import deque
from contextlib import closing, nullcontext
from typing import ClassVar

import pytest
import torch
from simulated_gpu import simulated_gpu
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from base.base_data_loader import BaseDataLoader
from base.base_trainer import BaseTrainer
from base.checkpoint.background import Snapshot
from base.data import device_feed as feeding
from base.data import threads
from base.data.device_feed import Copies, feed
from base.data.reading import BatchReader
from base.errors import OutOfMemoryError
from base.training.epoch_time import PARTS, Clock, advice, write_times
from tests.base.toy import CPU, make, run, train_in
from trainer.trainer import Trainer

FACTS = {
    "readers": "processes",
    "num_workers": 0,
    "cores": 4,
    "cache": "none",
    "pin_memory": True,
    "prefetch": 2,
    "batch_size": 32,
    "idle": 0.1,
    "device": "cuda",
}


class Watched(Dataset):
    """Notes, whenever a batch is asked for, what of the steps before is still alive."""

    def __init__(self, in_memory, as_dict):
        self.alive, self.born = [], []
        if in_memory:
            self.get_batch = self._get_batch
        self.as_dict = as_dict

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index % 2 == 0:
            self._look()
        return self._keep(torch.ones(5), torch.tensor(1))

    def _get_batch(self, indices):
        self._look()
        return self._keep(torch.ones(len(indices), 5), torch.ones(len(indices), dtype=torch.int64))

    def _look(self):
        self.alive.append([kind for kind, born in self.born if born() is not None])

    def _keep(self, inputs, target):
        if hasattr(self, "get_batch"):
            self.born += [("batch", weakref.ref(inputs)), ("batch", weakref.ref(target))]
        return {"x": inputs, "target": target} if self.as_dict else [inputs, target]


class Mark:
    pass


class Noting(Trainer):
    """Notes the birth of all that a step makes."""

    def note(self, kind, tensor):
        self.watched.born.append((kind, weakref.ref(tensor)))
        if tensor.requires_grad:  # the graph keeps its hooks, and these what they know
            mark = Mark()
            tensor.register_hook(lambda gradient, mark=mark: gradient)
            self.watched.born.append(("graph", weakref.ref(mark)))

    def forward(self, batch):
        self.note("batch", batch["x"] if isinstance(batch, dict) else batch[0])
        outputs = super().forward({"inputs": batch["x"], "target": batch["target"]}
                                  if isinstance(batch, dict) else batch)  # fmt: skip
        self.note("outputs", outputs)
        return outputs

    def compute_losses(self, outputs, batch):
        losses = super().compute_losses(outputs, batch)
        for loss in losses.values():
            self.note("loss", loss)
        return losses


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_nothing_of_a_step_is_alive_when_the_next_batch_is_made(in_memory, as_dict, accumulate):
    trainer = make(f"memory.accumulate={accumulate}", "metrics=[accuracy]", trainer=Noting)
    if as_dict:
        trainer.config["batch"]["inputs"] = ["inputs"]
    trainer.watched = Watched(in_memory, as_dict)
    trainer.train_loader = BaseDataLoader(trainer.watched, 2, False, 0, 0)
    trainer.valid_loader = BaseDataLoader(trainer.watched, 2, False, 0, 0)
    trainer.experiment.batches_per_epoch = 6
    trainer.train_epoch()
    trainer.evaluate(trainer.valid_loader, "valid")
    assert {"batch", "outputs", "loss", "graph"} <= {kind for kind, _ in trainer.watched.born}
    assert len(trainer.watched.alive) >= 12
    # The batches of a window, and nothing else, are read before its first one is computed.
    n_in_window = 6 if accumulate == 2 else 0
    assert trainer.watched.alive[:n_in_window:2] == [[]] * (n_in_window // 2)
    assert all(set(alive) <= {"batch"} for alive in trainer.watched.alive[1:n_in_window:2])
    assert all(alive == [] for alive in trainer.watched.alive[n_in_window:])


class Plain(Dataset):
    """Samples for workers to read; by threads where it says so."""

    uses_streams = False

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return [torch.ones(5), torch.tensor(1)]


class Keyed(Plain):
    readers = "threads"

    def get_random_batch(self, indices, seed, epoch):
        return [torch.ones(len(indices), 5), torch.ones(len(indices), dtype=torch.int64)]


@pytest.mark.parametrize("dataset", [Keyed(), Plain()])
def test_nothing_of_a_step_is_alive_when_a_worker_is_asked_for_the_next(dataset, monkeypatch):
    trainer = make("metrics=[accuracy]", trainer=Noting)
    trainer.watched = Watched(in_memory=False, as_dict=False)

    def next_of_workers(iterator, inner=_MultiProcessingDataLoaderIter.__next__):
        trainer.watched._look()
        return inner(iterator)

    def result(*args, wait=threads._result):
        trainer.watched._look()
        return wait(*args)

    monkeypatch.setattr(threads, "_result", result)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "__next__", next_of_workers)
    with closing(BaseDataLoader(dataset, 2, False, 0, 1)) as loader:
        trainer.train_loader = loader
        trainer.experiment.batches_per_epoch = 6
        trainer.train_epoch()
        trainer.evaluate(loader, "valid")
    assert {"batch", "outputs", "loss", "graph"} == {kind for kind, _ in trainer.watched.born}
    assert len(trainer.watched.alive) >= 12
    assert trainer.watched.alive == [[] for _ in trainer.watched.alive]


def fed(batches, first, count, device="cpu", prefetch=2):
    """Feed batches; return them with the clock that counts."""
    clock = Clock()
    return feed(batches(first, count), torch.device(device), prefetch, clock), clock


class Noted(Copies):
    """Copies to a device that only notes what lies there."""

    there: ClassVar[deque] = deque()
    most = 0

    def begin(self, batch):
        Noted.there.append(batch)
        Noted.most = max(Noted.most, len(Noted.there))
        return batch

    def finish(self, copied):
        assert copied is Noted.there[0]
        return copied

    def is_out_of_work(self):
        Noted.there.popleft()  # its step is over
        return not Noted.there


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_no_more_batches_are_copied_ahead_than_the_config_says(monkeypatch, prefetch):
    monkeypatch.setattr(feeding, "CopiesAhead", Noted)
    Noted.there, Noted.most, drawn = deque(), 0, []

    def batches(first, count):
        for number in range(first, first + count):
            drawn.append(number)
            yield torch.full((2,), number)

    copies, clock = fed(batches, 3, 10, "cuda", prefetch)
    given = []
    for batch in copies:
        given.append(int(batch[0]))
        assert len(drawn) <= len(given) + prefetch
    assert given == list(range(3, 13))
    assert Noted.most == prefetch + 1
    assert clock.idle_share() == 1 / 10, "asked after each step"


class Full:
    """A batch that a full GPU refuses a number of times."""

    def __init__(self, number, n_refused):
        self.number, self.n_left = number, n_refused

    def to(self, device):
        self.n_left -= 1
        if self.n_left >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")
        return self.number


def test_a_batch_without_memory_ahead_is_copied_when_its_turn_comes():
    """In its order, after those before it; copies ahead go on with the next one."""
    batches = [Full(number, number == 3) for number in range(6)]
    with simulated_gpu():
        copies, _ = fed(lambda first, count: iter(batches), 0, 6, "cuda:0")
        assert list(copies) == list(range(6))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_batch_that_does_not_fit_alone_ends_the_run_with_advice(prefetch):
    with simulated_gpu():
        copies, _ = fed(lambda first, count: iter([Full(0, 9)]), 0, 1, "cuda:0", prefetch)
        with pytest.raises(
            OutOfMemoryError, match=r"copied to cuda:0: lower .*batch_size.* GiB\.\)"
        ):
            list(copies)


@pytest.mark.gpu
def test_copies_ahead_on_a_gpu_are_the_batches_themselves():
    batches = [(torch.full((256, 1024), float(n)).pin_memory(), torch.arange(n)) for n in range(9)]
    copies, _ = fed(lambda first, count: iter(batches[first : first + count]), 0, 9, "cuda")
    for number, (images, labels) in enumerate(copies):
        assert images.is_cuda
        assert torch.equal((images * 2).cpu(), batches[number][0] * 2)
        assert torch.equal(labels.cpu(), batches[number][1])


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "least", "most"), [(8, 0.8, 1.0), (8192, 0.0, 0.3)])
def test_a_gpu_is_out_of_work_where_steps_are_small(size, least, most):
    square = torch.rand(size, size, device="cuda")
    torch.cuda.synchronize()
    copies, clock = fed(lambda _, count: iter([torch.ones(2)] * count), 0, 20, "cuda")
    for _ in copies:
        square @ square
        time.sleep(0.001)
    assert least <= clock.idle_share() <= most


class HandClock:
    """A clock that goes on only when it is told to: a busy machine must not turn a test red."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize(
    ("slow", "n_times", "told"),
    [
        ("data", 6, "faster: 100% of the time is waiting for data: make the data set faster"),
        ("copy", 6, "faster: 100% of the time is copying to the device: set memory.prefetch: 2"),
        ("compute", 6, None),
        ("logging", 5, "faster: 100% of the time is logging and saving: raise trainer.save_ever"),
    ],
)
def test_an_epochs_time_goes_to_the_part_that_is_slow_and_the_advice_follows(
    slow, n_times, told, tmp_path, monkeypatch, caplog
):
    """Five batches of training, one of validation; a checkpoint at each of five steps.

    On the CPU nothing is copied: copies are slow on a GPU.
    """
    hand = HandClock()
    monkeypatch.setattr("base.training.epoch_time.time", hand)
    monkeypatch.setattr("base.training.run_log.time", hand)

    def slowed(part, function):
        def with_sleep(*args):
            hand.sleep(0.5 * (part == slow))
            return function(*args)

        return with_sleep

    class Slow(Trainer):
        forward = slowed("compute", Trainer.forward)

    on_gpu = slow == "copy"
    # Tensors of the simulated GPU cannot be saved or copied as they are.
    save = (lambda *_: None) if on_gpu else BaseTrainer.save
    if on_gpu:
        monkeypatch.setattr(Snapshot, "take", lambda _, state: state)
    monkeypatch.setattr(BaseTrainer, "save", slowed("logging", save))
    monkeypatch.setattr(BatchReader, "__getitems__", slowed("data", BatchReader.__getitems__))
    monkeypatch.setattr(feeding.Copies, "begin", slowed("copy", feeding.Copies.begin))
    options = ("trainer.save_every=1 steps", "trainer.epochs=1", "memory.prefetch=0")
    with caplog.at_level("INFO", "kindling"), simulated_gpu() if on_gpu else nullcontext():
        trainer = make(*options, trainer=Slow, device=torch.device("cuda:0") if on_gpu else CPU)
        train_in(trainer, tmp_path)
    with (tmp_path / "metrics.csv").open() as file:
        row = next(csv.DictReader(file))
    expected = {part: 0.5 * n_times * (part == slow) for part in PARTS}
    assert {part: float(row[f"time/{part}"]) for part in PARTS} == expected
    assert float(row["seconds"]) == sum(expected.values())
    assert float(row["wait"]) == (slow == "data")
    found = [text for text in caplog.messages if text.startswith("faster: ")]
    assert found == [] if told is None else [text[: len(told)] for text in found] == [told]


def test_a_profiler_is_no_reason_to_save_less_often(tmp_path, monkeypatch, caplog):
    hand = HandClock()
    monkeypatch.setattr("base.training.epoch_time.time", hand)
    forward = BaseTrainer.forward
    monkeypatch.setattr(BaseTrainer, "forward", lambda *args: hand.sleep(0.5) or forward(*args))
    monkeypatch.setattr("base.run.profiler._write", lambda *_: hand.sleep(3))
    with caplog.at_level("INFO", "kindling"):
        run(tmp_path, "profile={epochs: [2], steps: 1}")
    assert not [text for text in caplog.messages if text.startswith("faster: ")]
    *_, second, _, whole = (tmp_path / "report" / "time.txt").read_text().splitlines()
    assert second.split() == ["2", "0.00", "0.00", "3.00", "3.00"]
    assert whole == "faster: no advice"


@pytest.mark.parametrize(
    ("seconds", "facts", "expected"),
    [
        ((5, 0, 5, 0), {}, "50% of the time is waiting for data: set data_loader.args.num_w"),
        ((5, 0, 5, 0), {"num_workers": 4}, "set data_loader.args.cache: memory"),
        ((5, 0, 5, 0), {"num_workers": 4, "cache": None}, "make the data set faster"),
        ((5, 0, 5, 0), {"num_workers": 4, "cache": "memory"}, None),
        ((5, 0, 5, 0), {"readers": "none", "cache": "memory"}, None),
        ((5, 0, 5, 0), {"readers": "none"}, "make the data set faster"),
        ((5, 0, 5, 0), {"num_workers": None, "cache": None}, "make the data set faster"),
        ((0, 3, 5, 0), {"pin_memory": False}, "38% of the time is copying to the device: set data"),
        ((0, 3, 5, 0), {"prefetch": 0}, "copying to the device: set memory.prefetch: 2"),
        ((0, 3, 5, 0), {}, "copying to the device: reduce the size of samples, for example"),
        ((0, 3, 5, 0), {"device": "mps", "pin_memory": False}, None),
        ((0, 0, 5, 5), {}, "50% of the time is logging and saving: raise trainer.save_every"),
        ((1, 0, 9, 1), {}, None),
        ((0, 0, 5, 0), {"idle": 0.8}, "80% of the steps the GPU is idle: "
         "raise data_loader.args.batch_size above 32"),
        ((5, 0, 5, 0), {"idle": 0.8}, "waiting for data"),
        ((0, 0, 5, 0), {"idle": 0.8, "batch_size": None}, None),
        ((0.5, 0, 0.4, 0), {}, None),
        ((0, 0, 0, 0), {}, None),
    ],
)  # fmt: skip
def test_the_advice_follows_from_the_times(seconds, facts, expected):
    found = advice(dict(zip(PARTS, seconds, strict=True)), {**FACTS, **facts})
    assert found is None if expected is None else expected in found


def test_the_report_has_the_times_of_each_epoch_and_a_slow_loader_is_told(
    tmp_path, monkeypatch, caplog
):
    hand = HandClock()
    monkeypatch.setattr("base.training.epoch_time.time", hand)
    trainer = make("trainer.verbosity=2", "trainer.epochs=2")
    batches = trainer.train_loader.batches

    def slow(first, count):
        for batch in batches(first, count):
            hand.sleep(0.25)
            yield batch

    trainer.train_loader.batches = slow
    with caplog.at_level("INFO", "kindling"):
        train_in(trainer, tmp_path)
    told = [text for text in caplog.messages if text.startswith("faster: ")]
    assert len(told) == 1, "said once, not each epoch"
    assert "waiting for data" in told[0]
    assert trainer.device == CPU
    _, _, titles, *rows, _, whole = (tmp_path / "report" / "time.txt").read_text().splitlines()
    assert titles.split() == ["epoch", *PARTS]
    zeros = ["0.00"] * 3
    assert [row.split() for row in rows] == [["1", "1.25", *zeros], ["2", "1.25", *zeros]]
    assert whole == told[0]


def test_many_short_epochs_need_no_advice(tmp_path):
    names = ["epoch", *(f"time/{part}" for part in PARTS)]
    lines = [",".join(names), *(f"{n},0.3,0,0.3,0" for n in range(1, 9))]
    (tmp_path / "metrics.csv").write_text("\n".join(lines) + "\n")
    write_times(tmp_path, {**FACTS, "profiled": []})
    assert (tmp_path / "report" / "time.txt").read_text().endswith("faster: no advice\n")


def test_a_run_that_began_without_times_goes_on_with_them(tmp_path):
    run(tmp_path, stop_at=6)
    path = tmp_path / "metrics.csv"
    with path.open() as file:
        (first,) = csv.DictReader(file)
    old = {name: cell for name, cell in first.items() if not name.startswith(("time/", "wait"))}
    path.write_text(",".join(old) + "\n" + ",".join(old.values()) + "\n")
    run(tmp_path, resume=True)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {name: rows[0][name] for name in old} == old
    assert [row["epoch"] for row in rows if row["time/data"]] == ["2"]
    _, _, _, *shown, _, _ = (tmp_path / "report" / "time.txt").read_text().splitlines()
    assert [row.split()[0] for row in shown] == ["2"]
