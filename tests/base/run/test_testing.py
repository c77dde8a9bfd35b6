"""The test phase: `trainer.test` and test.py give the same bits, from what the checkpoint knows."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import CPU, mark_the_test, run

from base.base_data_loader import BaseDataLoader
from base.checkpoint.store import read, read_manifest
from base.config import load_config
from base.datasets.in_memory import InMemoryDataset, SyntheticDataset
from base.distributed.group import World
from base.errors import CheckpointError, DataError
from base.names.registry import DATA_LOADERS, DATASETS, LOSSES
from base.run.testing import build_tested_experiment, choose_checkpoint, run_test
from tests.base.run.test_data_changes import forget_data
from trainer.trainer import Trainer

CONFIG = """
name: test
seed: 6
model:
  type: Sequential
  args:
    layers: [Flatten, {type: LazyLinear, args: {out_features: 3}}, {type: Dropout, args: {p: 0.2}}]
data_loader:
  type: DatasetLoader
  args:
    dataset: {type: SyntheticDataset, args: {n_samples: 40, shape: [2, 3, 3], n_classes: 3}}
    test_dataset:
      {type: SyntheticDataset, args: {n_samples: 30, shape: [2, 3, 3], n_classes: 3, part: test}}
    batch_size: 7
    split: 0.3
    normalize: auto
optimizer: {type: SGD, args: {lr: 1.0}}
loss: cross_entropy
trainer:
  {epochs: 4, test: true, monitor: min valid/loss, tensorboard: false, progress: false,
   verbosity: 0}
"""


def alone(folder: Path, trainer: type[Trainer] = Trainer, *overrides: str) -> dict[str, Any]:
    """Return what test.py writes: all is built from the run's folder."""
    checkpoint = choose_checkpoint(folder)
    text = read_manifest(checkpoint)["facts"]["config"]
    config = load_config(None, overrides, text=text)
    made = trainer(build_tested_experiment(config, CPU, checkpoint))
    run_test(made, checkpoint, folder)
    return report(folder)


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report" / "test.json").read_text())


def by_hand(folder: Path, step: Callable[[Any, Tensor, Tensor], Tensor]) -> float:
    """Return the mean of a step's values over the test data, without a loader or a trainer."""
    train, test = (
        load_set(part) for part in ({"n_samples": 40}, {"n_samples": 30, "part": "test"})
    )
    with (folder / "split.csv").open(newline="") as file:
        trained = [int(row["id"]) for row in csv.DictReader(file) if row["part"] == "train"]
    pixels = train.images[trained].double() / 255
    mean, std = (
        pixels.mean((0, 2, 3), keepdim=True),
        pixels.std((0, 2, 3), keepdim=True, correction=0),
    )
    images = ((test.images.double() / 255 - mean) / std).float()
    state = read(choose_checkpoint(folder))
    weights = {**state["model"], **state.get("ema", {}).get("averages", {})}
    outputs = images.flatten(1) @ weights["1.weight"].T + weights["1.bias"]
    return float(step(state, outputs, test.targets))


def load_set(args: dict[str, Any]) -> InMemoryDataset:
    return SyntheticDataset(shape=(2, 3, 3), n_classes=3, **args)


class ByProgress(Trainer):
    """A loss that grows with the epoch, and has a part of its own."""

    def __init__(self, experiment: Any) -> None:
        super().__init__(experiment)
        self.mine = Counted()
        self.register("mine", self.mine)

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        losses = super().compute_losses(outputs, batch)
        if self.model.training:
            self.mine.count += 1
        scale = 1 + self.progress.epoch + 0.01 * self.progress.step + 0.001 * self.mine.count
        return {name: loss * scale for name, loss in losses.items()}


class Counted:
    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class Centred(nn.Module):
    """A loss with a buffer that follows the training."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(output, target)
        if torch.is_grad_enabled():
            self.centre = 0.5 * self.centre + 0.5 * loss.detach()
        return loss * self.scale + self.centre


@pytest.mark.parametrize("ema", ["null", "{decay: 0.9}"])
def test_both_ways_to_test_give_the_same_bits_and_the_right_ones(ema, tmp_path):
    options = (f"trainer.ema={ema}", "optimizer.args.lr=6")
    trainer = run(tmp_path, *options, text=CONFIG, trainer=ByProgress)
    found = report(tmp_path)
    best = read(choose_checkpoint(tmp_path))["progress"]
    assert best["step"] < trainer.progress.step, "else there is nothing to tell apart"
    assert alone(tmp_path, ByProgress) == found

    def step(state: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        progress, count = state["progress"], state["mine"]["count"]
        scale = 1 + progress["epoch"] + 0.01 * progress["step"] + 0.001 * count
        return F.cross_entropy(outputs, targets) * scale

    assert found["loss"] == pytest.approx(by_hand(tmp_path, step), rel=1e-5)


def test_a_loss_with_state_has_that_of_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(LOSSES.registered, "Centred", Centred)
    run(tmp_path, "loss=Centred", "optimizer.args.lr=6", text=CONFIG)
    found = report(tmp_path)
    assert alone(tmp_path) == found

    def step(state: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets) + state["loss.Centred"]["centre"]

    assert found["loss"] == pytest.approx(by_hand(tmp_path, step), rel=1e-5)


def test_a_ramp_has_its_last_weight_in_a_test(tmp_path):
    ramp = "loss=[{type: cross_entropy, weight: {from: 0, to: 3, over: 100%}}]"
    run(tmp_path, ramp, text=CONFIG)
    found = report(tmp_path)
    assert alone(tmp_path) == found
    expected = by_hand(tmp_path, lambda _, outputs, targets: 3 * F.cross_entropy(outputs, targets))
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_model_that_draws_in_a_test_draws_the_same(tmp_path):
    class Noisy(Trainer):
        def forward(self, batch: Any) -> Any:
            outputs = super().forward(batch)
            return outputs + torch.randn_like(outputs)

    run(tmp_path, "optimizer.args.lr=6", text=CONFIG, trainer=Noisy)
    found = report(tmp_path)
    assert alone(tmp_path, Noisy) == found


def test_after_the_test_the_trainer_is_as_it_was_before(tmp_path, monkeypatch):
    mark_the_test(monkeypatch)
    options = ("optimizer.args.lr=6", "trainer.ema={decay: 0.9}")
    trainer = run(tmp_path / "one", *options, text=CONFIG, trainer=ByProgress)
    other = run(tmp_path / "two", *options, "trainer.test=false", text=CONFIG, trainer=ByProgress)
    assert trainer.is_testing
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name])
    assert trainer.progress == other.progress
    assert trainer.mine.count == other.mine.count
    assert torch.equal(trainer.ema.averages["1.bias"], other.ema.averages["1.bias"])


# --- Without the training data --------------------------------------------------------------------


class Gone(InMemoryDataset):
    """Training data that may be gone: the file `there` says whether they are."""

    def __init__(self, there: str, n_samples: int = 40, part: str = "train") -> None:
        if not Path(there).exists():
            raise DataError(f"{there}: no such file")
        made = load_set({"n_samples": n_samples, "part": part})
        super().__init__(made.images, made.targets)


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "there"
    path.touch()
    monkeypatch.setitem(DATASETS.registered, "Gone", Gone)
    return path


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["data_loader.args.normalize=imagenet", "data_loader.args.dataset.args.n_samples=20"],
        ["data_loader.args.split=null", "data_loader.args.valid_dataset={valid}"],
        ["data_loader.args.sampling=balanced", "trainer.epoch_steps=2"],
        ["valid_data_loader={valid_loader}", "data_loader.args.split=null"],
        ["test_data_loader={test_loader}", "data_loader.args.test_dataset=null"],
        ["loss=[{type: cross_entropy, weight: {from: 0, to: 3, over: 3 epochs}}]"],
    ],
    ids=lambda changes: changes[0].partition("=")[0] if changes else "plain",
)
def test_a_test_reads_no_training_data(changes, there, tmp_path):
    gone = f"{{type: Gone, args: {{there: {there}, part: more}}}}"
    tested = "{type: SyntheticDataset, args: {n_samples: 30, shape: [2, 3, 3], n_classes: 3}}"
    args = "batch_size: 7, normalize: auto"
    words = {
        "{valid}": gone,
        "{valid_loader}": f"{{type: DatasetLoader, args: {{dataset: {gone}, {args}}}}}",
        "{test_loader}": f"{{type: DatasetLoader, args: {{dataset: {tested}, {args}}}}}",
    }
    options = [f"data_loader.args.dataset={{type: Gone, args: {{there: {there}}}}}"]
    for change in changes:
        for word, text in words.items():
            change = change.replace(word, text)
        options.append(change)
    if "imagenet" in str(changes):
        options = [each for each in options if "imagenet" not in each]
        options.append("data_loader.args.normalize={mean: [0.1, 0.2], std: 0.5}")
    run(tmp_path / "run", *options, text=CONFIG)
    found = report(tmp_path / "run")
    there.unlink()
    assert alone(tmp_path / "run") == found


def test_training_data_are_read_where_a_trainer_asks_for_them(there, tmp_path):
    class Asking(Trainer):
        def __init__(self, experiment: Any) -> None:
            super().__init__(experiment)
            self.lengths = len(self.train_loader), len(self.valid_loader)
            self.n = len(self.train_loader.dataset) if Asking.asks else 0

    Asking.asks = True
    option = f"data_loader.args.dataset={{type: Gone, args: {{there: {there}}}}}"
    run(tmp_path / "run", option, text=CONFIG, trainer=Asking)
    found = report(tmp_path / "run")
    assert alone(tmp_path / "run", Asking) == found
    there.unlink()
    with pytest.raises(DataError, match="no such file"):
        alone(tmp_path / "run", Asking)
    Asking.asks = False
    assert alone(tmp_path / "run", Asking) == found


def test_a_loader_of_ones_own_gives_its_test_data_alone(there, tmp_path, monkeypatch):
    class Whole(BaseDataLoader):
        def __init__(self, data_dir: str, batch_size: int, training: bool = True) -> None:
            whole = Gone(data_dir) if training else load_set({"n_samples": 30, "part": "test"})
            dataset = InMemoryDataset(whole.images / 255, whole.targets)
            super().__init__(dataset, batch_size, training, 0.3 if training else 0.0, 0)

    monkeypatch.setitem(DATA_LOADERS.registered, "Whole", Whole)
    option = f"data_loader={{type: Whole, args: {{data_dir: {there}, batch_size: 7}}}}"
    text = CONFIG[: CONFIG.index("data_loader:")] + CONFIG[CONFIG.index("optimizer:") :]
    run(tmp_path / "run", option, text=text)
    found = report(tmp_path / "run")
    there.unlink()
    assert alone(tmp_path / "run") == found


@pytest.mark.parametrize("own_section", [False, True])
def test_runs_of_earlier_versions_compute_the_statistics_of_their_own_split(own_section, tmp_path):
    more = []
    if own_section:
        test_set = "n_samples: 30, shape: [2, 3, 3], n_classes: 3, part: test"
        args = f"{{dataset: {{type: SyntheticDataset, args: {{{test_set}}}}}, batch_size: 7, "
        args += "normalize: auto}"
        more = [f"test_data_loader={{type: DatasetLoader, args: {args}}}"]
    run(tmp_path, *more, text=CONFIG)
    found = report(tmp_path)
    expected = by_hand(tmp_path, lambda _, outputs, targets: F.cross_entropy(outputs, targets))
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    for checkpoint in (tmp_path / "checkpoints").glob("step-*"):
        forget_data(checkpoint)
    assert alone(tmp_path) == found


def test_classes_of_the_test_data_must_be_those_of_the_training(tmp_path):
    named = "{type: SyntheticDataset, args: {n_samples: 30, shape: [2, 3, 3], n_classes: 2}}"
    args = f"{{dataset: {named}, batch_size: 7}}"
    run(tmp_path, "trainer.test=false", text=CONFIG)
    alone(tmp_path, Trainer, f"test_data_loader={{type: DatasetLoader, args: {args}}}")
    path = tmp_path / "names.npz"
    np.savez(path, x=np.zeros((6, 18), np.float32), y=np.arange(6) % 3)
    arrays = f"{{file: {path}, inputs: x, targets: y, classes: [a, b, c]}}"
    args = f"{{dataset: {{type: ArrayFileDataset, args: {arrays}}}, batch_size: 7}}"
    with pytest.raises(DataError, match=r"training and .* data differ in their classes"):
        alone(
            tmp_path,
            Trainer,
            "data_loader.args.normalize=null",
            f"test_data_loader={{type: DatasetLoader, args: {args}}}",
        )


def test_a_checkpoint_that_lacks_what_a_step_reads_is_refused(tmp_path):
    run(tmp_path, text=CONFIG)
    with pytest.raises(CheckpointError, match="mine: not in the checkpoint"):
        alone(tmp_path, ByProgress)


class PlainTestLoader:
    """A user's loader that has only ``batches(first, count)``."""

    def __init__(self) -> None:
        self.images = torch.arange(30 * 18.0).reshape(30, 2, 3, 3) / 540
        self.labels = torch.arange(30) % 3

    def __len__(self) -> int:
        return 5

    def batches(self, first: int, count: int) -> Any:
        for number in range(first, first + count):
            rows = slice(6 * number, 6 * number + 6)
            yield self.images[rows], self.labels[rows]


def test_each_of_several_ranks_tests_its_part_of_a_users_loader(tmp_path, monkeypatch):
    monkeypatch.setitem(DATA_LOADERS.registered, "PlainTestLoader", PlainTestLoader)
    own = "test_data_loader={type: PlainTestLoader}"
    run(tmp_path, own, "data_loader.args.test_dataset=null", text=CONFIG)
    checkpoint = choose_checkpoint(tmp_path)
    config = load_config(None, [], text=read_manifest(checkpoint)["facts"]["config"])
    losses = []
    for rank in (0, 1):
        experiment = build_tested_experiment(config, CPU, checkpoint)
        experiment.world = World(rank, 2)
        trainer = Trainer(experiment)
        with trainer.world.paused():
            losses.append(run_test(trainer, checkpoint, tmp_path)["loss"])
    assert losses[0] != losses[1]
    assert sum(losses) / 2 == pytest.approx(alone(tmp_path)["loss"])
