"""Losses are of standardised targets, metrics and predictions in the targets' own unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error
from toy import assert_resumes, make, run

from base.data.splits import divide
from base.errors import DataError, TrainingError
from base.run.checks import check
from base.run.dry_run_report import dry_run
from trainer.trainer import Trainer

CONFIG = """
name: prices
seed: 3
model: {type: MLP, args: {n_inputs: 4, hidden: [6], n_outputs: 1}}
data_loader:
  type: DatasetLoader
  args:
    dataset:
      type: CsvDataset
      args: {file: FILE, target: [price], task: regression, categories: [kind]}
    batch_size: 7
    split: 0.3
    normalize: auto
optimizer: {type: SGD, args: {lr: 0.1}}
loss: mse_loss
metrics:
  - {type: MeanLoss, args: {loss: l1_loss}, name: mae}
  - {type: MeanLoss, args: {loss: mse_loss}, name: mse}
trainer: {epochs: 2, tensorboard: false, progress: false, verbosity: 0}
"""


@pytest.fixture
def text(tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    sizes, kinds = random.gamma(3, 50, 40).round(1), random.integers(3, size=40)
    prices = (1000 * sizes + 20_000 * kinds + random.normal(0, 4000, 40)).round()
    weights = (sizes / 7).round(1)
    rows = zip(sizes, kinds, prices, weights, strict=True)
    lines = ["size,kind,price,weight", *(f"{s},k{k},{p},{w}" for s, k, p, w in rows)]
    (tmp_path / "prices.csv").write_text("\n".join(lines))
    return CONFIG.replace("FILE", str(tmp_path / "prices.csv"))


def prices(text: str, columns: tuple[int, ...] = (2,)) -> np.ndarray:
    lines = Path(text.partition("file: ")[2].partition(",")[0]).read_text().split("\n")[1:]
    return np.array([[float(line.split(",")[c]) for c in columns] for line in lines])


def outputs(trainer: Any, loader: Any) -> np.ndarray:
    """Return the model's outputs for a loader's samples, in their order."""
    trainer.model.eval()
    with torch.no_grad():
        return torch.cat([trainer.model(x) for x, _ in loader.batches(0, len(loader))]).numpy()


def test_metrics_are_in_the_unit_of_the_target_and_losses_are_not(text: str, tmp_path: Path):
    trainer = run(tmp_path / "run", text=text.replace("n_inputs: 4", "n_inputs: 5"))
    values = trainer.evaluate(trainer.valid_loader, "valid")
    trained_on, held_out = divide(0.3, 40, 3)
    mean, std = prices(text)[trained_on].mean(), prices(text)[trained_on].std()
    found, true = outputs(trainer, trainer.valid_loader), prices(text)[held_out]
    assert std > 10_000
    loss = np.square(found - (true - mean) / std).mean()
    assert values["valid/loss"] == pytest.approx(loss, rel=1e-4)
    assert values["valid/mse"] == pytest.approx(loss * std**2, rel=1e-4)
    assert values["valid/mae"] == pytest.approx(
        mean_absolute_error(true, found * std + mean), rel=1e-4
    )


def test_what_predict_gives_is_put_back_too(text: str):
    class Halves(Trainer):
        def predict(self, outputs: Any) -> Any:
            seen.append(outputs)
            return {
                "half": outputs / 2,
                "rank": outputs.argsort(dim=0),
                "other": outputs[:, [0, 0]],
            }

    text = text.replace("n_inputs: 4", "n_inputs: 5")
    metrics = "metrics=[{type: MeanLoss, args: {loss: l1_loss}, name: mae, output: half}]"
    seen: list[torch.Tensor] = []
    trainer = make(metrics, trainer=Halves, text=text)
    values = trainer.evaluate(trainer.valid_loader, "valid")
    trained_on, held_out = divide(0.3, 40, 3)
    mean, std = prices(text)[trained_on].mean(), prices(text)[trained_on].std()
    expected = mean_absolute_error(prices(text)[held_out], torch.cat(seen) / 2 * std + mean)
    assert values["valid/mae"] == pytest.approx(expected, rel=1e-4)
    batch = next(trainer.valid_loader.batches(0, 1))
    given = Halves.predict(trainer, torch.rand(7, 1))
    found, (inputs, targets) = trainer.in_own_unit(given, batch)
    assert torch.allclose(found["half"], given["half"] * std + mean)
    assert found["rank"] is given["rank"]
    assert found["other"] is given["other"]
    assert inputs is batch[0]
    assert torch.allclose(targets, batch[1] * std + mean)


def test_a_target_that_is_another_part_of_the_batch_stays(text: str):
    text = text.replace("inputs: 4", "inputs: 5").replace("outputs: 1", "outputs: 5")
    trainer = make("batch.target=0", "batch.inputs=[0]", text=text)  # an autoencoder
    values = trainer.evaluate(trainer.valid_loader, "valid")
    assert values["valid/mse"] == pytest.approx(values["valid/loss"])
    assert values["valid/loss"] < 5


def test_a_run_on_a_table_resumes_exactly(text: str, tmp_path: Path):
    assert_resumes(tmp_path, text=text.replace("n_inputs: 4", "n_inputs: 5"))


def test_each_of_several_targets_has_its_own_scale(text: str):
    text = text.replace("[price]", "[price, weight]").replace("n_outputs: 1", "n_outputs: 2")
    trainer = make(text=text)
    values = trainer.evaluate(trainer.valid_loader, "valid")
    trained_on, held_out = divide(0.3, 40, 3)
    both = prices(text, (2, 3))
    mean, std = both[trained_on].mean(0), both[trained_on].std(0)
    found = outputs(trainer, trainer.valid_loader) * std + mean
    assert values["valid/mae"] == pytest.approx(
        mean_absolute_error(both[held_out], found), rel=1e-4
    )
    with pytest.raises(DataError, match=r"2 standardised targets, but predictions \(7, 3\)"):
        trainer.in_own_unit(torch.zeros(7, 3), next(trainer.valid_loader.batches(0, 1)))


def test_without_normalisation_nothing_is_put_back(text: str):
    trainer = make("data_loader.args.normalize=inputs", text=text.replace("inputs: 4", "inputs: 5"))
    values = trainer.evaluate(trainer.valid_loader, "valid")
    assert values["valid/mse"] == pytest.approx(values["valid/loss"])
    assert values["valid/loss"] > 1e9


def test_a_model_of_another_width_is_told_the_columns(text: str):
    trainer = make(text=text)
    for function in (check, dry_run):
        with pytest.raises(TrainingError) as error:
            function(trainer)
        assert "dimension 1 must be 4, not 5; what would fit: in_features=5" in str(error.value)
        names = "size, kind=k0, kind=k1, kind=k2, weight"
        assert f"\n  the inputs are 5 numbers: {names}" in str(error.value)
    trainer = make(text=text.replace("n_inputs: 4", "n_inputs: null"))
    assert trainer.model.hidden[0].in_features == 5


def test_metrics_are_in_the_unit_of_the_target_where_it_is_one_of_several(text: str):
    text = text.replace("n_inputs: 4", "n_inputs: 5")
    plain, several = (
        make(text=text),
        make("batch={target: {target: 1, row: 0}, inputs: [0]}", text=text),
    )
    values = [each.evaluate(each.valid_loader, "valid") for each in (plain, several)]
    assert values[0]["valid/mae"] > 1000
    assert values[0] == values[1]
