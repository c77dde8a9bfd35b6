"""What options ask of batches is checked before a folder is made: by the sizes of real epochs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from toy import make, train_in

from base.base_data_loader import BaseDataLoader
from base.errors import ConfigError, TrainingError
from base.names.registry import DATA_LOADERS, LOSSES, MODELS
from base.run.checks import check
from trainer.trainer import Trainer

CONFIG = """
name: checks
model: {type: Normed}
data_loader: {type: Given, args: {n: 20, batch_size: 4}}
optimizer: {type: SGD, args: {lr: 0.1}}
loss: cross_entropy
trainer: {epochs: 1, tensorboard: false, progress: false, verbosity: 0}
"""


class Normed(nn.Module):
    """With `pixels` above 1, a normalised channel has several values in each sample."""

    def __init__(self, pixels: int = 1, frozen: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(1, 3, 1), nn.BatchNorm1d(3)
        self.pixels, self.frozen = pixels, frozen

    def train(self, mode: bool = True) -> Normed:
        super().train(mode)
        if self.frozen:
            self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x[:, None, : self.pixels])).mean(2)


def data(n: int) -> TensorDataset:
    return TensorDataset(torch.randn(n, 5), torch.arange(n) % 3)


class Given(BaseDataLoader):
    def __init__(self, n: int, batch_size: int, drop_last: bool = False) -> None:
        super().__init__(data(n), batch_size, True, 0, 0, drop_last=drop_last)


class Stock(DataLoader):
    def __init__(self, n: int, batch_size: int) -> None:
        super().__init__(data(n), batch_size)


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Normed", Normed)
    monkeypatch.setitem(DATA_LOADERS.registered, "Given", Given)
    monkeypatch.setitem(DATA_LOADERS.registered, "Stock", Stock)
    monkeypatch.setitem(LOSSES.registered, "contrast", contrast)
    monkeypatch.setitem(LOSSES.registered, "Contrast", Contrast)


def trained_and_checked(*overrides: str) -> tuple[str, str]:
    """Return what the check says, and what training without it says."""
    said = ["", ""]
    try:
        check(make(*overrides, text=CONFIG))
    except ConfigError as error:
        said[0] = str(error)
    try:
        train_in(make(*overrides, text=CONFIG))
    except Exception as error:
        said[1] = str(error)
    return said[0], said[1]


@pytest.mark.parametrize("loader", ["Given", "Stock"])
@pytest.mark.parametrize(
    ("n", "batch_size", "micro_batch"),
    [
        (160, 53, None),
        (21, 4, None),
        (9, 1, None),
        (20, 4, 1),
        (20, 10, 3),
        (17, 8, 7),
        (40, 13, 4),
    ],
)
def test_a_single_sample_for_batch_norm_is_found_where_training_would_fail(
    loader: str, n: int, batch_size: int, micro_batch: int | None
) -> None:
    size = "null" if micro_batch is None else micro_batch
    args = f"{{type: {loader}, args: {{n: {n}, batch_size: {batch_size}}}}}"
    said, failed = trained_and_checked(f"data_loader={args}", f"memory.micro_batch={size}")
    assert "more than 1 value per channel" in failed
    assert "single sample" in said or "parts of 1" in said
    assert "drop_last: true" in said or micro_batch is not None


@pytest.mark.parametrize(
    "overrides",
    [
        ["data_loader.args.n=20"],
        ["data_loader.args={n: 21, batch_size: 4, drop_last: true}"],
        ["data_loader.args.n=21", "model.args={pixels: 4}"],
        ["data_loader.args.n=21", "model.args={frozen: true}"],
        ["data_loader.args.n=22", "memory.micro_batch=2"],
        ["data_loader.args.n=21", "memory.micro_batch=8", "model.args.pixels=2"],
    ],
)
def test_batches_that_can_be_trained_on_are_let_through(overrides: list[str]) -> None:
    assert trained_and_checked(*overrides) == ("", "")


class Counted(IterableDataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Any]:
        return iter(data(self.n))


class Unknown:
    """A loader of the user's own, which does not say how many samples it has."""

    batch_size = 4

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[Any]:
        yield from DataLoader(data(21), 4)


def test_a_single_sample_at_the_end_of_a_stream_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = functools.partial(DataLoader, batch_size=4)
    monkeypatch.setitem(DATA_LOADERS.registered, "Stream", lambda n: stream(Counted(n)))
    check(make("data_loader={type: Stream, args: {n: 22}}", text=CONFIG))
    with pytest.raises(ConfigError, match="batch 6 of 6 has a single sample"):
        check(make("data_loader={type: Stream, args: {n: 21}}", text=CONFIG))


def test_a_single_sample_that_no_check_foresees_is_an_error_with_advice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DATA_LOADERS.registered, "Unknown", Unknown)
    trainer = make("data_loader={type: Unknown}", text=CONFIG)
    with pytest.raises(TrainingError, match=r"batch 6 of the epoch.* a single sample.*drop_last"):
        train_in(trainer)


def test_the_trial_leaves_nothing_behind() -> None:
    trainer = make("data_loader.args.n=21", "model.args.pixels=4", text=CONFIG)
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    random = torch.get_rng_state()
    check(trainer)
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, state[name]), name


# --- Losses over pairs ----------------------------------------------------------------------------


def contrast(output: Tensor, target: Tensor) -> Tensor:
    return (output @ output.T).square().mean()


contrast.needs_whole_batches = True  # type: ignore[attr-defined]


class Contrast(nn.Module):
    needs_whole_batches = True

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return contrast(output, target)


@pytest.mark.parametrize("loss", ["contrast", "Contrast"])
@pytest.mark.parametrize(
    ("option", "value"),
    [("memory.micro_batch", 2), ("memory.accumulate", 2), ("trainer.on_oom", "halve")],
)
def test_a_loss_that_needs_whole_batches_gets_them(loss: str, option: str, value: Any) -> None:
    check(make(f"loss={loss}", text=CONFIG))
    with pytest.raises(ConfigError, match=f"{option}: .*'{loss}' compares the samples"):
        check(make(f"loss={loss}", f"{option}={value}", text=CONFIG))


# --- Batches that cannot be cut -------------------------------------------------------------------


class TimeFirst(BaseDataLoader):
    """Sequences (time, sample, value) with a class for each sample."""

    def __init__(self, batch_size: int = 4) -> None:
        def collate(samples: list[Any]) -> Any:
            return torch.stack([x for x, _ in samples], dim=1), torch.stack([y for _, y in samples])

        dataset = TensorDataset(torch.randn(10, 7, 2), torch.arange(10) % 3)
        super().__init__(dataset, batch_size, False, 0, 0, collate)


class LastStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[-1])


@pytest.mark.parametrize("option", ["memory.micro_batch=2", "trainer.on_oom=halve"])
def test_time_is_not_cut_for_samples(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA_LOADERS.registered, "TimeFirst", TimeFirst)
    monkeypatch.setitem(MODELS.registered, "LastStep", LastStep)
    text = CONFIG.replace("Given, args: {n: 20, batch_size: 4}", "TimeFirst")
    text = text.replace("Normed", "LastStep")
    check(make(text=text))
    name = option.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"{name}: .*\(7, 4, 2\).*not that of its 4 samples"):
        check(make(option, text=text))


def test_a_phase_of_time_first_sequences_counts_its_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(DATA_LOADERS.registered, "TimeFirst", TimeFirst)
    monkeypatch.setitem(MODELS.registered, "LastStep", LastStep)
    monkeypatch.setitem(LOSSES.registered, "square", lambda output, target: output.square().mean())
    text = CONFIG.replace("Given, args: {n: 20, batch_size: 4}", "TimeFirst")
    trainer = make("loss=square", text=text.replace("Normed", "LastStep"))
    inputs = trainer.train_loader.dataset.tensors[0]
    expected = trainer.model(inputs.movedim(0, 1)).square().mean().item()
    found = trainer.evaluate(trainer.train_loader, "valid")["valid/loss"]
    assert found == pytest.approx(expected, rel=1e-6)
    trainer.train_epoch()
    assert trainer.progress.samples == 10


# --- Steps that are tried -------------------------------------------------------------------------


class ByHand(Trainer):
    """Steps its optimizer itself, counts its steps, and keeps what it has seen."""

    def __init__(self, experiment: Any) -> None:
        super().__init__(experiment)
        self.n_calls, self.seen, self.centre = 0, [], torch.zeros(3)

    def train_step(self, batch: Any) -> dict[str, Any]:
        loss = self.losses["cross_entropy"](self.forward(batch), batch[1])
        loss.backward()
        self.optimizers["main"].step()
        self.optimizers["main"].zero_grad()
        self.n_calls += 1
        self.seen.append(loss.item())
        self.centre.add_(1)
        return {"loss": loss}


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_a_step_of_one_s_own_that_was_tried_has_not_been_made(optimizer: str) -> None:
    text = CONFIG.replace("SGD", optimizer)
    tried, plain = (make(text=text, trainer=ByHand) for _ in range(2))
    held = tried.seen, tried.centre, tried.losses
    check(tried)
    assert all(a is b for a, b in zip(held, (tried.seen, tried.centre, tried.losses), strict=True))
    assert (tried.n_calls, tried.seen, tried.centre.sum()) == (0, [], 0)
    for trainer in (tried, plain):
        train_in(trainer)
    assert tried.seen == plain.seen
    for one, other in zip(tried.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)
