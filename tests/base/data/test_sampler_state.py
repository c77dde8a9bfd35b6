"""Samplers with state, such as those that learn from losses: their order, saving and resume."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from toy import CONFIG, assert_resumes, assert_same, make, run, train_in

from base.base_data_loader import BaseDataLoader, as_batches
from base.checkpoint.store import read
from base.data.sampler_state import learns
from base.datasets.in_memory import InMemoryDataset, synthetic_images
from base.datasets.pipeline import Pipeline, TransformedDataset
from base.datasets.samplers import HardExampleSampler
from base.datasets.transforms import RandomShift
from base.errors import ConfigError, DataError, TrainingError
from base.names.registry import DATA_LOADERS, LOSSES
from trainer.trainer import Trainer

N = 24


def data() -> TensorDataset:
    return TensorDataset(*synthetic_images(N, (1, 1, 5), 3, 1.0, 0, "train"))


class Noisy(Dataset[Any]):
    """Adds noise to each sample, so that a sample drawn again is seen to be another one."""

    def __init__(self) -> None:
        self.images, self.targets = synthetic_images(N, (1, 1, 5), 3, 1.0, 0, "train")

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return self.images[index] + torch.rand(()), self.targets[index]


class Walk(Sampler[int]):
    """A sampler as people write them, which goes on from epoch to epoch and learns."""

    def __init__(self, n: int = N) -> None:
        self.n, self.first, self.total, self.epochs = n, 0, 0.0, 0
        self.seen: list[tuple[list[int], Tensor]] = []

    def __iter__(self) -> Iterator[int]:
        for place in range(self.n):
            yield (self.first + 7 * place) % self.n
        self.first += int(torch.randint(5, ())) + 1  # in the seeded stream of the epoch
        self.epochs += 1

    def __len__(self) -> int:
        return self.n

    def update(self, ids: Tensor, losses: Tensor) -> None:
        assert (ids.device.type, ids.dtype, losses.requires_grad) == ("cpu", torch.int64, False)
        self.seen.append((ids.tolist(), losses))
        self.total += float(losses.sum())
        self.first += int(ids[losses.argmax()])

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "total": self.total, "epochs": self.epochs}

    def load_state_dict(self, state_dict: Any) -> None:
        vars(self).update(state_dict)


def hard(n_workers: int = 0, **more: Any) -> Any:
    dataset = TransformedDataset(
        InMemoryDataset(*synthetic_images(N, (1, 1, 5), 3, 1.0, 0, "train")),
        Pipeline([RandomShift(1)]),
    )
    workers = "processes" if n_workers else "auto"
    sampler = HardExampleSampler(share=0.7)
    return BaseDataLoader(dataset, 4, True, 4, n_workers, sampler=sampler, workers=workers, **more)


def bare(n_workers: int = 0) -> Any:
    return BaseDataLoader(Noisy(), 4, True, 4, n_workers)


def noisy(n_workers: int = 0) -> Any:
    return BaseDataLoader(Noisy(), 4, True, 4, n_workers, sampler=HardExampleSampler(share=0.7))


def walking(n_workers: int = 0) -> Any:
    return BaseDataLoader(Noisy(), 4, True, 0, n_workers, sampler=Walk())


def stock(n_workers: int = 0) -> Any:
    return DataLoader(Noisy(), 4, sampler=Walk(), num_workers=n_workers)


def batched(n_workers: int = 0) -> Any:
    return DataLoader(Noisy(), batch_sampler=BatchSampler(Walk(), 4, False), num_workers=n_workers)


def part(n_workers: int = 0) -> Any:
    some = Subset(Noisy(), list(range(20, 0, -1)))
    return DataLoader(some, 4, sampler=Walk(20), num_workers=n_workers)


def stock_hard(n_workers: int = 0) -> Any:
    sampler = HardExampleSampler(share=0.7, n_samples=N)
    return DataLoader(Noisy(), 4, sampler=sampler, num_workers=n_workers)


LOADERS = {each.__name__: each for each in (hard, noisy, walking, stock, stock_hard, part, batched)}


@pytest.fixture(autouse=True)
def named_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, loader in {**LOADERS, "bare": bare}.items():
        monkeypatch.setitem(DATA_LOADERS.registered, name, loader)


def text_of(loader: str, n_workers: int = 0, epochs: int = 3) -> str:
    head, _, rest = CONFIG.partition("data_loader:")
    _, _, tail = rest.partition("optimizer:")
    section = f"data_loader: {{type: {loader}, args: {{n_workers: {n_workers}}}}}\n"
    tail = tail.replace("epochs: 2", f"epochs: {epochs}")
    return f"{head}{section}batch: {{ids: true}}\noptimizer:{tail}"


# --- Resume ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def end_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the last state of an uninterrupted run, which is trained once for each loader."""

    @functools.cache
    def train(loader: str) -> Any:
        folder = tmp_path_factory.mktemp(loader)
        run(folder, text=text_of(loader))
        return read(folder)

    return train


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("stop_at", [1, 5, 6, 8, 11])
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, end_of: Any, loader: str, stop_at: int
) -> None:
    run(tmp_path, text=text_of(loader), stop_at=stop_at)
    run(tmp_path, text=text_of(loader), resume=True)
    assert_same(read(tmp_path), end_of(loader))


@pytest.mark.parametrize("loader", ["hard", "noisy", "walking"])
def test_the_number_of_workers_changes_nothing(tmp_path: Path, end_of: Any, loader: str) -> None:
    run(tmp_path, text=text_of(loader, n_workers=2), stop_at=7)
    run(tmp_path, text=text_of(loader, n_workers=1), resume=True)
    assert_same(read(tmp_path), end_of(loader))


@pytest.mark.parametrize("loader", ["hard", "walking", "stock"])
def test_looking_at_batches_leaves_the_sampler_as_it_was(
    tmp_path: Path, end_of: Any, loader: str
) -> None:
    class Looking(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            if self.progress.step in (2, 7) and loader != "stock":
                next(self.train_loader.batches(0, 1))
            return super().train_step(batch)

    made = make(text=text_of(loader), trainer=Looking)
    for _ in range(2):
        next(made.train_loader.batches(0, 1))  # as the checks before a training do
    train_in(made, tmp_path)
    assert_same(read(tmp_path), end_of(loader))


@pytest.mark.parametrize("loader", ["stock", "batched"])
@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_sampler_is_left_behind_a_whole_pass(loader: str, n_workers: int) -> None:
    trainer = make(text=text_of(loader, n_workers))
    train_in(trainer)
    assert trainer.experiment.sampler_state.sampler.epochs == 3


@pytest.mark.parametrize("loader", ["stock", "stock_hard"])
def test_workers_of_torchs_loader_read_ahead_of_no_state(tmp_path: Path, loader: str) -> None:
    assert_resumes(tmp_path, stop_at=8, text=text_of(loader, n_workers=2))


@pytest.mark.parametrize("loader", ["hard", "walking"])
def test_windows_and_parts_gather_the_same(tmp_path: Path, loader: str) -> None:
    options = ("memory.accumulate=3", "memory.micro_batch=3")
    assert_resumes(tmp_path / "cut", *options, stop_at=3, text=text_of(loader))
    run(tmp_path / "whole", "optimizer.args.lr=0.0", text=text_of(loader))
    run(tmp_path / "parts", *options, "optimizer.args.lr=0.0", text=text_of(loader))
    one, other = (read(tmp_path / name)["train_sampler"] for name in ("whole", "parts"))
    torch.testing.assert_close(one["start"], other["start"], equal_nan=True)


def test_a_sampler_may_come_and_go_with_a_resume(tmp_path: Path) -> None:
    plain = text_of("hard").replace("type: hard", "type: bare")
    run(tmp_path, text=plain, stop_at=5)
    run(tmp_path, text=text_of("hard"), resume=True, stop_at=11)
    assert "train_sampler" in read(tmp_path)
    run(tmp_path, text=plain, resume=True)
    assert "train_sampler" not in read(tmp_path)


def test_a_checkpoint_in_mid_epoch_has_what_was_gathered(tmp_path: Path) -> None:
    run(tmp_path, text=text_of("hard"), stop_at=7)
    state = read(tmp_path)["train_sampler"]
    assert state["ids"].shape == state["losses"].shape == (8,)
    assert (state["start"]["losses"].isfinite().sum()) == 20  # of the first epoch


# --- What a sampler is given ----------------------------------------------------------------------


def test_a_sampler_gets_the_loss_of_each_sample_in_order() -> None:
    trainer = make("optimizer.args.lr=0.0", text=text_of("walking", epochs=2))
    sampler = trainer.experiment.sampler_state.sampler
    train_in(trainer)
    assert len(sampler.seen) == 2
    for ids, losses in sampler.seen:
        assert sorted(ids) == list(range(N))
        assert losses.shape == (N,)
    # The batches of the first epoch again, by hand.
    again = make(text=text_of("walking", epochs=2))
    again.model.load_state_dict(trainer.model.state_dict())
    found = []
    for batch in again.train_loader.batches(0, 6):
        found.append(F.cross_entropy(again.model(batch[0]), batch[1], reduction="none"))
    torch.testing.assert_close(torch.cat(found).detach(), sampler.seen[0][1])


def test_a_sampler_of_a_part_is_given_the_indices_that_it_drew() -> None:
    trainer = make(text=text_of("part", epochs=1))
    first = next(trainer.train_loader.batches(0, 1))
    assert first[2].tolist() == [20, 13, 6, 19]  # ids in the whole data set
    train_in(trainer)
    sampler = trainer.experiment.sampler_state.sampler
    assert sampler.seen[0][0] == [7 * place % 20 for place in range(20)]


def test_the_terms_of_a_loss_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def two(output: Tensor, target: Tensor) -> dict[str, Any]:
        return {
            "a": F.cross_entropy(output, target),
            "b": 0.5 * output.square().mean(),
            "logged": 3.0,
        }

    monkeypatch.setitem(LOSSES.registered, "two", two)
    text = text_of("walking", epochs=1).replace("loss: cross_entropy", "loss: two")
    trainer = make("optimizer.args.lr=0.0", text=text)
    values = train_in(trainer)
    assert {"train/a", "train/b", "train/logged"} <= values.keys()
    batch = next(make(text=text).train_loader.batches(0, 1))
    output = trainer.model(batch[0]).detach()
    expected = F.cross_entropy(output, batch[1], reduction="none")
    expected += 0.5 * output.square().mean(1)
    torch.testing.assert_close(trainer.experiment.sampler_state.sampler.seen[0][1][:4], expected)


def test_several_losses_count_by_their_weights() -> None:
    text = text_of("walking", epochs=1).replace(
        "loss: cross_entropy",
        "loss:\n  - {type: cross_entropy, weight: 0.5}\n"
        "  - {type: multi_margin_loss, weight: {from: 2, to: 2}}",
    )
    trainer = make("optimizer.args.lr=0.0", text=text)
    train_in(trainer)
    again = make(text=text)
    batch = next(again.train_loader.batches(0, 1))
    output = again.model(batch[0]).detach()
    expected = 0.5 * F.cross_entropy(output, batch[1], reduction="none")
    expected += 2 * F.multi_margin_loss(output, batch[1], reduction="none")
    found = trainer.experiment.sampler_state.sampler.seen[0][1][:4]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("parts", [4, 2])
def test_steps_that_are_not_made_teach_nothing(parts: int) -> None:
    class Bad(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            self.n_calls = getattr(self, "n_calls", 0) + 1
            if self.n_calls == 2 * 4 // parts:  # the second step, or the second part of it
                batch = [batch[0] * torch.nan, *batch[1:]]
            return super().train_step(batch)

    trainer = make(
        "trainer.on_nonfinite=skip",
        f"memory.micro_batch={parts}",
        text=text_of("walking", epochs=1),
        trainer=Bad,
    )
    train_in(trainer)
    ids, losses = trainer.experiment.sampler_state.sampler.seen[0]
    assert len(ids) == N - 4
    assert losses.isfinite().all()


def test_hard_samples_are_drawn_more_often_from_the_next_epoch_on() -> None:
    sampler = HardExampleSampler(share=0.5, memory=0.0)
    indices, generator = torch.arange(100, 300), torch.Generator().manual_seed(0)
    assert sampler.draw(indices, generator).sort().values.equal(indices)
    losses = torch.ones(200)
    losses[:20] = 9.0  # half of all
    sampler.update(indices, losses)
    counts = torch.zeros(300)
    for _ in range(50):
        order = sampler.draw(indices, generator)
        assert len(order) == 200
        counts += torch.bincount(order, minlength=300)
    per_epoch = counts[100:] / 50
    # 100 of 200 without replacement, and 100 by the loss: 9 / 360 of them for a hard one.
    assert abs(per_epoch[:20].mean() - (0.5 + 100 * 9 / 360)) < 0.1
    assert abs(per_epoch[20:].mean() - (0.5 + 100 / 360)) < 0.02


def test_the_loss_of_a_sample_is_a_running_mean() -> None:
    sampler = HardExampleSampler(memory=0.25)
    sampler.update(torch.tensor([3, 1, 3]), torch.tensor([1.0, 5.0, 2.0]))
    assert sampler.losses[[1, 3]].tolist() == [5.0, 1.5]
    sampler.update(torch.tensor([3]), torch.tensor([4.0]))
    assert sampler.losses[[1, 3]].tolist() == [5.0, 0.25 * 1.5 + 0.75 * 4.0]
    assert sampler.losses[[0, 2]].isnan().all()
    sampler.update(torch.tensor([], dtype=torch.int64), torch.tensor([]))
    sampler.update(torch.tensor([3]), torch.tensor([float("nan")]))
    assert sampler.losses[3] == 0.25 * 1.5 + 0.75 * 4.0


# --- A sample that is drawn again -----------------------------------------------------------------


class Twice(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter([3, 5, 3, 3])

    def __len__(self) -> int:
        return 4


class OwnSplit(BaseDataLoader):
    def _split_sampler(self, split: Any) -> tuple[Any, Any]:
        return Twice(), None


def shifted() -> TransformedDataset:
    images = torch.arange(N * 36).view(N, 1, 6, 6).to(torch.uint8)
    return TransformedDataset(InMemoryDataset(images, torch.zeros(N)), Pipeline([RandomShift(3)]))


@pytest.mark.parametrize("dataset", [Noisy, shifted])
@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("kind", ["given", "own split"])
def test_a_sample_drawn_again_is_changed_in_another_way(
    dataset: Any, n_workers: int, kind: str
) -> None:
    more: dict[str, Any] = {"workers": "processes"} if n_workers else {}
    if kind == "given":
        loader = BaseDataLoader(dataset(), 4, False, 0, n_workers, sampler=Twice(), **more)
    else:
        loader = OwnSplit(dataset(), 4, False, 0, n_workers, **more)
    once = BaseDataLoader(dataset(), N, False, 0, 0)
    for epoch in range(2):
        x, *_ = next(loader.batches(epoch, 1))
        first, *_ = next(once.batches(epoch, 1))
        assert x[0].equal(first[3])  # the bits of a sample that is drawn once
        assert x[1].equal(first[5])
        assert not x[0].equal(x[2]) or not x[0].equal(x[3])
    loader.close()


def test_torchs_weighted_sampler_draws_again_with_other_changes(tmp_path: Path) -> None:
    sampler = WeightedRandomSampler([1.0] * 3 + [0.0] * (N - 3), N)
    ours = BaseDataLoader(Noisy(), N, False, 0, 0, sampler=sampler)
    theirs = as_batches(DataLoader(Noisy(), N, sampler=sampler), 0)
    for loader in (ours, theirs):
        x, _ = next(loader.batches(0, 1))
        assert len(torch.unique(x.flatten(1), dim=0)) == N
        again, _ = next(loader.batches(0, 1))
        assert again.equal(x)


# --- What cannot be -------------------------------------------------------------------------------


def test_a_sampler_that_learns_needs_ids_and_whole_epochs() -> None:
    text = text_of("hard")
    with pytest.raises(ConfigError, match=r"HardExampleSampler learns from the loss of each sampl"):
        make("batch.ids=false", text=text)
    with pytest.raises(ConfigError, match=r"state by the epoch, which has 3 here"):
        make("trainer.epoch_steps=3", text=text)


def test_a_project_that_calls_update_itself_runs_unchanged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("stock", "batched"):
        with caplog.at_level("WARNING", logger="kindling"):
            trainer = make("batch.ids=false", text=text_of(name, epochs=1))
            train_in(trainer)
        assert trainer.experiment.sampler_state.sampler.seen == []
        assert (
            "Walk: set `batch: {ids: true}` to have its update(ids, losses) called" in caplog.text
        )
        caplog.clear()

    class Forgetful(Walk):
        state_dict = None  # type: ignore[assignment]

    with caplog.at_level("WARNING", logger="kindling"):
        loader = as_batches(DataLoader(Noisy(), 4, sampler=Forgetful()), 0)
    assert loader.sampler_state is None
    assert "Forgetful: its update(ids, losses) is not called, as it has no state_d" in caplog.text


def test_what_it_learns_must_be_saved() -> None:
    class Forgetful(Walk):
        state_dict = None  # type: ignore[assignment]

    with pytest.raises(DataError, match=r"Forgetful has update.*give it state_dict"):
        BaseDataLoader(data(), 4, True, 0, 0, sampler=Forgetful())

    class Other(Sampler[int]):
        def update(self, epoch: int) -> None: ...

        def __len__(self) -> int:
            return N

        def __iter__(self) -> Iterator[int]:
            return iter(range(N))

    assert not learns(Other())
    BaseDataLoader(data(), 4, True, 0, 0, sampler=Other())


def test_a_step_whose_loss_is_of_no_samples_is_told() -> None:
    class Own(Trainer):
        def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
            return {"loss": outputs.square().mean()}

    with pytest.raises(TrainingError, match="Walk needs the loss of each sample, but the 'l"):
        train_in(make(text=text_of("walking"), trainer=Own))

    class Without(Trainer):
        def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
            return {"a": self.losses["cross_entropy"](outputs, batch[1])}

    with pytest.raises(TrainingError, match="pass `batch=batch`"):
        train_in(make(text=text_of("walking"), trainer=Without))


def test_samplers_that_give_other_samples_are_told() -> None:
    def first_of(loader: Any) -> Any:
        return next(loader.batches(0, 1))

    with pytest.raises(DataError, match=r"Walk gave sample [0-9]+, which is for validation"):
        first_of(BaseDataLoader(data(), 4, True, 4, 0, sampler=Walk()))
    with pytest.raises(DataError, match="Walk gave index 24, but there are 24 samples"):
        first_of(BaseDataLoader(data(), 4, True, 0, 0, sampler=Walk(25)))
    for given in ("Walk", {"share": 0.5}):
        with pytest.raises(DataError, match=r"is not a sampler: name its class, `sampler: \{type:"):
            BaseDataLoader(data(), 4, True, 4, 0, sampler=given)
    for own in ([["a", "b"]] * 24, [[0, 1], [2]], [[0, 1]] * 24, [0.5] * 24):
        with pytest.raises(DataError, match="list gave"):
            first_of(BaseDataLoader(data(), 4, True, 0, 0, sampler=own))
    with pytest.raises(DataError, match="sampler: int has neither draw"):
        BaseDataLoader(data(), 4, True, 0, 0, sampler=3)
    with pytest.raises(DataError, match="give `sampling` or a `sampler`, not both"):
        BaseDataLoader(data(), 4, True, 0, 0, sampler=Walk(), sampling="balanced")
    with pytest.raises(DataError, match="share must be from 0 to 1, not 2"):
        HardExampleSampler(share=2)
