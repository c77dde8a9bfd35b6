"""Recorded predictions: those of the model, computed again by hand, for each kind of task.

The report changes nothing else: state, logs and random streams are the same without it.
"""

from __future__ import annotations

import csv
import json
import random
import signal
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from toy import CONFIG as TOY
from toy import NETWORKS, assert_same, make, run, train_in

from base.base_data_loader import BaseDataLoader
from base.base_trainer import BaseTrainer
from base.checkpoint.store import read
from base.config import load_config
from base.data.batch import Targets
from base.datasets.in_memory import InMemoryDataset
from base.names.registry import MODELS
from base.report.predictions import (
    MOST_WORST,
    Predictions,
    read_predictions,
    write_predictions,
)
from base.run.predictions import (
    MOST_COLUMNS,
    PredictionRecorder,
    _cells,
    predictions_of,
)
from base.run.session import open_run
from base.run.testing import choose_checkpoint
from tests.base.run.test_testing import CONFIG as IMAGES
from tests.digest import digest_of, loss_log
from trainer.trainer import Trainer

SPLIT = ("data_loader.args.validation_split=8",)


def rows_of(folder: Path, part: str = "valid") -> list[dict[str, str]]:
    with (folder / "report" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["part"] == part]


def ids_in_split(folder: Path, part: str = "valid") -> list[str]:
    with (folder / "split.csv").open(newline="") as file:
        return [row["id"] for row in csv.DictReader(file) if row["part"] == part]


def test_predictions_are_those_of_the_best_checkpoint(tmp_path: Path) -> None:
    trainer = run(tmp_path, "trainer.epochs=3", *SPLIT)
    state = read(choose_checkpoint(tmp_path))["model"]
    indices = [int(name) for name in ids_in_split(tmp_path)]
    dataset = trainer.valid_loader.dataset
    inputs, target = dataset.get_batch(torch.tensor(indices))
    hidden = (inputs.flatten(1) @ state["hidden.0.weight"].T + state["hidden.0.bias"]).relu()
    outputs = hidden @ state["head.weight"].T + state["head.bias"]
    probabilities = outputs.softmax(1)
    rows = rows_of(tmp_path)
    assert [row["id"] for row in rows] == [str(index) for index in indices]
    assert [int(row["target"]) for row in rows] == target.tolist()
    assert [int(row["prediction"]) for row in rows] == outputs.argmax(1).tolist()
    found = torch.tensor([float(row["probability"]) for row in rows])
    torch.testing.assert_close(found, probabilities.max(1).values, atol=1e-6, rtol=1e-5)
    found = torch.tensor([float(row["target_probability"]) for row in rows])
    wanted = probabilities.gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("more", [(), ("trainer.ema=0.5",), ("trainer.test=true",)], ids=str)
def test_state_logs_and_random_streams_are_the_same_without_a_report(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    ends = []
    for is_on in ("true", "false"):
        folder = tmp_path / is_on
        trainer = run(folder, f"trainer.report={is_on}", *more, text=IMAGES)
        streams = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        mode = [module.training for module in trainer.model.modules()]
        saved = sorted(path.name for path in (folder / "checkpoints").iterdir())
        state = read(folder)
        state.pop("epoch_rows")  # which hold times
        ends.append([streams, weights, mode, saved, state, loss_log(folder)])
        assert (folder / "report" / "predictions.csv").exists() == (is_on == "true")
    assert digest_of(ends[0]) == digest_of(ends[1])


def test_a_resumed_run_is_the_same_with_a_report(tmp_path: Path) -> None:
    run(tmp_path / "one", "trainer.epochs=2")
    run(tmp_path / "one", "trainer.epochs=4", resume=True)
    run(tmp_path / "other", "trainer.epochs=2", "trainer.report=false")
    run(tmp_path / "other", "trainer.epochs=4", "trainer.report=false", resume=True)
    ends = [read(tmp_path / name) for name in ("one", "other")]
    for end in ends:
        end.pop("epoch_rows")
    assert_same(*ends)


def test_averaged_weights_predict_if_the_run_averages(tmp_path: Path) -> None:
    trainer = run(tmp_path, "trainer.ema=0.9", "trainer.epochs=2", *SPLIT)
    averages = read(choose_checkpoint(tmp_path))["ema"]["averages"]
    indices = torch.tensor([int(name) for name in ids_in_split(tmp_path)])
    inputs, _ = trainer.valid_loader.dataset.get_batch(indices)
    model = trainer.model.eval()
    outputs = torch.func.functional_call(model, averages, (inputs,)).softmax(1)
    found = torch.tensor([float(row["probability"]) for row in rows_of(tmp_path)])
    torch.testing.assert_close(found, outputs.max(1).values.detach(), atol=1e-6, rtol=1e-5)


def test_the_test_records_in_the_pass_that_it_makes_anyway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[str, int | None]] = []
    evaluate = BaseTrainer.evaluate

    def counted(trainer: Any, loader: Any, phase: str, max_batches: int | None = None) -> Any:
        passes.append((phase, max_batches))
        return evaluate(trainer, loader, phase, max_batches)

    monkeypatch.setattr(BaseTrainer, "evaluate", counted)
    run(tmp_path, text=IMAGES)
    # Four epochs, one batch to see what is predicted, the report, the test.
    assert passes[-3:] == [("valid", 1), ("valid", None), ("test", None)]
    assert passes.count(("valid", None)) == 5
    assert len(rows_of(tmp_path, "test")) == 30
    right = sum(row["target"] == row["prediction"] for row in rows_of(tmp_path, "test"))
    assert 0 < right <= 30
    assert len(rows_of(tmp_path)) == len(ids_in_split(tmp_path)) == 12


def test_a_run_without_a_folder_or_without_the_setting_makes_no_report(tmp_path: Path) -> None:
    train_in(make())
    run(tmp_path, "trainer.report=false", "trainer.test=true", text=IMAGES)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert not names & {"index.html", "predictions.csv", "mistakes"}
    assert "test.json" in names


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = nn.Linear(2, 2), nn.Linear(2, 1)


class Adversarial(Trainer):
    """Two networks that predict nothing."""

    n_batches = 0

    def train_step(self, batch: Any) -> dict[str, Tensor]:
        for name in ("generator", "critic"):
            loss = getattr(self.model, name)(batch[0].flatten(1)).square().mean()
            self.backward(loss, only=name)
            self.update(name)
        return {"loss": loss}

    def valid_step(self, batch: Any) -> dict[str, Tensor]:
        self.n_batches += 1
        return {"loss": batch[0].mean()}


def test_networks_without_predictions_are_not_evaluated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS.registered, "Pair", Pair)
    text = NETWORKS.replace("validation_split: 0", "validation_split: 8")
    counts = []
    for is_on in ("true", "false"):
        setting = f"trainer.report={is_on}"
        folder = tmp_path / is_on
        counts.append(run(folder, setting, trainer=Adversarial, text=text).n_batches)
    assert counts[0] == counts[1] + 1
    assert not (tmp_path / "true" / "report" / "predictions.csv").exists()


# --- One task after another, without a training --------------------------------------------------


def config_of(loss: str, *more: str) -> Any:
    return load_config(None, [f"loss={loss}", *more], text=TOY)


def recorded(
    config: Any, parts: list[tuple[Any, Any]], record: dict[str, Any] | None = None, **images: Any
) -> Predictions:
    """Return what is recorded of batches of (outputs, target)."""
    record = record or {}
    recorder = PredictionRecorder(config, record.get("classes", ()))
    for outputs, target in parts:
        recorder.update(outputs, target, [images.get("images"), target])
    assert not recorder.fault
    return predictions_of(recorder, object(), "valid", record)


def test_a_binary_logit_gives_the_probability_of_what_it_predicts() -> None:
    outputs, target = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([[1.0], [1.0], [0.0]])
    record = {"classes": ["no", "yes"]}
    found = recorded(config_of("binary_cross_entropy_with_logits"), [(outputs, target)], record)
    assert (found.task, list(found.names)) == ("binary", ["no", "yes"])
    assert found.target.tolist() == [1, 1, 0]
    assert found.prediction.tolist() == [1, 0, 1]
    second = outputs[:, 0].sigmoid()
    wanted = torch.stack([second[0], 1 - second[1], second[2]])
    np.testing.assert_allclose(found.probability, wanted, rtol=1e-6)
    wanted = torch.stack([second[0], second[1], 1 - second[2]])
    np.testing.assert_allclose(found.target_probability, wanted, rtol=1e-6)
    assert [worst.row for worst in found.worst] == [1, 2]  # -1 for class 1 is worse than 0.5 for 0


def test_labels_have_a_probability_each() -> None:
    outputs, target = torch.randn(6, 3), (torch.rand(6, 3) > 0.5).float()
    config = config_of("binary_cross_entropy_with_logits")
    found = recorded(config, [(outputs[:4], target[:4]), (outputs[4:], target[4:])])
    assert found.task == "multilabel"
    assert (found.target == target.bool().numpy()).all()
    assert (found.prediction == (outputs > 0).numpy()).all()
    np.testing.assert_allclose(found.probability, outputs.sigmoid(), rtol=1e-6)
    loss = nn.functional.binary_cross_entropy_with_logits(outputs, target, reduction="none").mean(1)
    loss[((outputs > 0) == target.bool()).all(1)] = 0
    wrong = int((loss > 0).sum())
    assert [worst.row for worst in found.worst] == loss.argsort(descending=True)[:wrong].tolist()


def test_several_targets_of_a_regression_weigh_the_same() -> None:
    target = torch.tensor([[1.0, 1000.0], [2.0, 3000.0], [3.0, 2000.0], [4.0, 4000.0]])
    outputs = target + torch.tensor([[0.0, 100.0], [3.0, 0.0], [0.1, 0.0], [0.0, torch.nan]])
    record = {"table": {"targets": ["height", "weight"]}}
    found = recorded(config_of("mse_loss"), [(outputs, target)], record)
    assert (found.task, list(found.names)) == ("regression", ["height", "weight"])
    np.testing.assert_array_equal(found.prediction, outputs)
    np.testing.assert_array_equal(found.target, target)
    assert [worst.row for worst in found.worst] == [3, 1, 0, 2]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_number_is_recorded_in_any_shape(shape: tuple[int, ...]) -> None:
    outputs, target = torch.randn(5, *shape), torch.randn(5, 1)
    found = recorded(config_of("l1_loss"), [(outputs, target)])
    np.testing.assert_array_equal(found.prediction, outputs.reshape(5, 1))


def test_of_large_outputs_only_their_error_is_kept() -> None:
    shapes = [(3, 1, 9, 9), (2, 1, 7, 8)]  # images of several sizes
    parts = [(torch.randn(shape), torch.randn(shape)) for shape in shapes]
    found = recorded(config_of("mse_loss"), parts)
    wanted = torch.cat([(o - t).abs().mean((1, 2, 3)) for o, t in parts])
    np.testing.assert_allclose(found.scores["mean_absolute_error"], wanted, rtol=1e-5)
    assert found.target.shape == (5, 0)
    assert [worst.row for worst in found.worst] == wanted.argsort(descending=True).tolist()


def test_pixels_are_counted_without_the_ignored_ones() -> None:
    from sklearn.metrics import confusion_matrix, jaccard_score

    outputs, target = torch.randn(4, 3, 5, 6), torch.randint(0, 3, (4, 5, 6))
    target[:, 0] = 255
    config = config_of("{type: cross_entropy, args: {ignore_index: 255}}")
    images = torch.rand(4, 3, 5, 6)
    found = recorded(config, [(outputs, target)], images=images)
    chosen, known = outputs.argmax(1), target != 255
    wanted = confusion_matrix(target[known], chosen[known])
    assert found.pairs == [[t, p, int(wanted[t, p])] for t in range(3) for p in range(3)]
    for row in range(4):
        one = known[row]
        iou = jaccard_score(target[row][one], chosen[row][one], average="macro")
        assert found.scores["mean_iou"][row] == pytest.approx(iou)
        right = (target[row][one] == chosen[row][one]).double().mean()
        assert found.scores["pixel_accuracy"][row] == pytest.approx(float(right))
    worst = found.worst[0]
    assert worst.row == int(np.argmin(found.scores["mean_iou"]))
    assert (worst.mask == chosen[worst.row].numpy()).all()
    assert (worst.target_mask == -1).sum() == 6


def test_a_mask_of_one_channel_has_two_classes() -> None:
    outputs, target = torch.randn(2, 1, 4, 4), (torch.rand(2, 1, 4, 4) > 0.5).float()
    found = recorded(config_of("binary_cross_entropy_with_logits"), [(outputs, target)])
    right = ((outputs > 0) == target.bool()).sum()
    assert sum(count for t, p, count in found.pairs if t == p) == int(right)


def test_probabilities_of_the_trainer_are_not_activated_again() -> None:
    probabilities = torch.randn(5, 3).softmax(1)
    found = recorded(config_of("cross_entropy"), [(probabilities, torch.arange(5) % 3)])
    np.testing.assert_allclose(found.probability, probabilities.max(1).values, rtol=1e-6)


def test_ignored_targets_have_no_class_and_are_no_mistakes() -> None:
    target = torch.tensor([0, -100, 7, 1])
    found = recorded(config_of("cross_entropy"), [(torch.eye(4)[:, :3], target)])
    assert found.target.tolist() == [0, -1, -1, 1]
    assert np.isnan(found.target_probability).tolist() == [False, True, True, False]
    assert [worst.row for worst in found.worst] == [3]


def ignoring(unknown: float) -> Any:
    """Return a config with a loss of yes/no outputs that ignores a number; of NaN, its default."""
    index = -100 if unknown != unknown else int(unknown)
    return config_of(f"{{type: SigmoidFocalLoss, args: {{ignore_index: {index}}}}}")


@pytest.mark.parametrize("unknown", [float("nan"), -100.0, 255.0], ids=str)
def test_unknown_targets_of_two_classes_are_not_judged(unknown: float) -> None:
    outputs, target = torch.tensor([3.0, 3.0, -3.0]), torch.tensor([0.0, unknown, unknown])
    found = recorded(ignoring(unknown), [(outputs[:, None], target)])
    assert found.target.tolist() == [0, -1, -1]
    assert np.isnan(found.target_probability).tolist() == [False, True, True]
    assert [worst.row for worst in found.worst] == [0]


def test_unknown_labels_are_left_out_of_counts_and_rows(tmp_path: Path) -> None:
    outputs = torch.tensor([[3.0, -3.0, 3.0], [3.0, 3.0, -3.0], [3.0, 3.0, 3.0]])
    target = torch.tensor([[1.0, torch.nan, 0.0], [1.0, torch.nan, 0.0], [torch.nan] * 3])
    found = recorded(config_of("binary_cross_entropy_with_logits"), [(outputs, target)])
    assert found.target.tolist() == [[1, -1, 0], [1, -1, 0], [-1, -1, -1]]
    assert [worst.row for worst in found.worst] == [0]
    write_predictions(tmp_path, found)
    rows = rows_of(tmp_path)
    assert [row["target"] for row in rows] == ["0", "0", ""]
    assert [row["prediction"] for row in rows] == ["0|2", "0|1", "0|1|2"]
    assert [row["unknown"] for row in rows] == ["1", "1", "0|1|2"]
    summary = read_predictions(tmp_path)["valid"]
    assert summary["labels"] == [[2, 2, 2], [0, 0, 0], [0, 1, 0]]
    assert (summary["n_judged"], summary["n_exact"]) == (2, 1)
    assert sum(summary["calibration"]["counts"]) == 4


@pytest.mark.parametrize("unknown", [float("nan"), 255.0], ids=str)
def test_unknown_pixels_of_a_mask_of_one_channel_are_not_counted(unknown: float) -> None:
    outputs, target = torch.full((1, 1, 2, 3), 2.0), torch.ones(1, 2, 3)
    target[0, 0, 0], target[0, 1] = 0.0, unknown
    images = torch.rand(1, 3, 2, 3)
    config = ignoring(unknown)
    found = recorded(config, [(outputs, target)], images=images)
    assert found.pairs == [[0, 1, 1], [1, 1, 2]]
    assert found.worst[0].target_mask.tolist() == [[0, 1, 1], [-1, -1, -1]]


def test_unknown_numbers_are_no_errors_and_predictions_that_are_not_finite_are() -> None:
    target = torch.tensor([[1.0, torch.nan], [2.0, 3.0], [torch.nan] * 2, [4.0, 5.0]])
    outputs = torch.tensor([[1.5, 9.0], [2.0, 3.0], [9.0, 9.0], [torch.nan, 5.0]])
    found = recorded(config_of("mse_loss"), [(outputs, target)])
    assert [worst.row for worst in found.worst] == [3, 0]
    images = [(torch.zeros(2, 1, 5, 5), torch.ones(2, 1, 5, 5))]
    images[0][1][0, 0, 0], images[0][1][1] = torch.nan, torch.nan
    found = recorded(config_of("mse_loss"), images)
    assert found.scores["mean_absolute_error"].tolist()[0] == 1.0
    assert np.isnan(found.scores["mean_absolute_error"][1])
    assert [worst.row for worst in found.worst] == [0]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("exact", [torch.float32, torch.float64], ids=str)
def test_targets_are_not_rounded_to_the_precision_of_outputs(
    half: torch.dtype, exact: torch.dtype
) -> None:
    target = torch.tensor([[839.67], [1001.23]], dtype=exact)
    outputs = torch.tensor([[840.0], [1000.0]], dtype=half)
    found = recorded(config_of("mse_loss"), [(outputs, target)])
    assert found.target.tolist() == target.tolist()
    assert found.prediction.tolist() == outputs.tolist()


def test_class_probabilities_as_targets_count_as_their_largest() -> None:
    found = recorded(config_of("cross_entropy"), [(torch.eye(3), torch.eye(3).roll(1, 0) * 0.8)])
    assert found.target.tolist() == [2, 0, 1]


def test_outputs_that_are_not_finite_are_recorded() -> None:
    outputs = torch.full((3, 2), torch.nan)
    found = recorded(config_of("cross_entropy"), [(outputs, torch.tensor([0, 1, 1]))])
    assert len(found.ids) == 3
    assert np.isnan(found.probability).all()


@pytest.mark.parametrize(
    ("outputs", "target"),
    [
        ({"a": torch.zeros(2)}, torch.zeros(2)),
        (torch.zeros(2, 3, 4), torch.zeros(2, 4).long()),
        (torch.zeros(2, 3), ["a", "b"]),
        (torch.zeros(()), torch.zeros(())),
        (torch.zeros(2, 3), torch.zeros(5).long()),
    ],
)
def test_other_outputs_are_not_recorded(outputs: Any, target: Any) -> None:
    recorder = PredictionRecorder(config_of("cross_entropy"))
    recorder.update(outputs, target, [None, target])
    recorder.update(outputs, target, [None, target])
    assert not recorder.is_useful
    assert not recorder.fault


def test_the_output_and_target_of_the_first_loss_are_recorded() -> None:
    config = config_of("[{type: cross_entropy, output: kind, target: kind}]")
    outputs = {"kind": torch.eye(3), "size": torch.zeros(3)}
    recorder = PredictionRecorder(config)
    recorder.update(outputs, Targets(kind=torch.tensor([0, 1, 1]), size=torch.zeros(3)))
    found = predictions_of(recorder, object(), "valid", {})
    assert found.prediction.tolist() == [0, 1, 2]
    assert not found.are_ids_known


def test_an_error_stops_the_recording_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = PredictionRecorder(config_of("cross_entropy"))
    recorder.update(torch.eye(3), torch.arange(3))
    recorder.update(torch.zeros(3, 2), torch.zeros(3).long().reshape(3, 1, 1))
    assert recorder.fault
    assert not recorder.is_useful
    recorder.update(torch.eye(3), torch.arange(3))
    assert recorder.rows == {}


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_record_what_one_does(size: int) -> None:
    config, draw = config_of("cross_entropy"), torch.Generator().manual_seed(0)
    parts = []
    for n_samples in (7, 7, 2):
        outputs = torch.randn(n_samples, 4, generator=draw)
        images = torch.rand(n_samples, 1, 5, 5, generator=draw)
        parts.append((outputs, torch.randint(0, 4, (n_samples,), generator=draw), images))
    whole = PredictionRecorder(config)
    for outputs, target, images in parts:
        whole.update(outputs, target, [images, target])
    states = []
    for rank in range(size):
        recorder = PredictionRecorder(config, (), rank, size)
        for outputs, target, images in parts:
            own = slice(rank, None, size)
            if len(target[own]):
                recorder.update(outputs[own], target[own], [images[own], target[own]])
            recorder.end_batch()
        states.append(recorder.state_dict())
    merged = PredictionRecorder(config)
    assert merged.whole(states).compute() == {}
    one, other = (predictions_of(each, object(), "valid", {}) for each in (whole, merged))
    for name in ("target", "prediction", "probability", "target_probability"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert [each.row for each in one.worst] == [each.row for each in other.worst]
    for mine, theirs in zip(one.worst, other.worst, strict=True):
        np.testing.assert_array_equal(mine.image, theirs.image)


def test_a_bounded_number_of_small_pictures_is_kept() -> None:
    recorder = PredictionRecorder(config_of("cross_entropy"))
    for _ in range(10):
        images, target = torch.rand(20, 3, 400, 200), torch.zeros(20).long()
        recorder.update(torch.randn(20, 3), target, [images, target])
    assert len(recorder.worst) == MOST_WORST
    assert {kept["image"].shape for kept in recorder.worst} == {(3, 160, 80)}
    errors = torch.cat(recorder.rows["target_probability"])
    wrong = torch.cat(recorder.rows["prediction"]) != 0
    least = errors[wrong].sort().values[:MOST_WORST]
    kept = [1 - each["error"] for each in recorder.worst]
    torch.testing.assert_close(torch.tensor(kept), least)


# --- Which sample is which -----------------------------------------------------------------------


class Shuffled(BaseDataLoader):
    """Validation data in an order of their own, whose input is their number."""

    def __init__(self, batch_size: int = 4, shuffle: bool = True) -> None:
        numbers = torch.arange(20.0).reshape(20, 1)
        dataset = InMemoryDataset(numbers, torch.arange(20) % 3)
        super().__init__(dataset, batch_size, shuffle, 0, 0)


def test_samples_are_named_in_the_order_in_which_they_are_read() -> None:
    loader = Shuffled()
    recorder = PredictionRecorder(config_of("mse_loss"))
    for inputs, _ in loader.batches(0, len(loader)):
        recorder.update(inputs, inputs, [inputs, inputs])
    found = predictions_of(recorder, loader, "valid", {})
    assert found.are_ids_known
    assert [float(name) for name in found.ids] == found.target[:, 0].tolist()
    assert list(found.ids) != sorted(found.ids, key=int)


def test_unreadable_samples_are_not_counted() -> None:
    loader, recorder = Shuffled(shuffle=False), PredictionRecorder(config_of("mse_loss"))
    numbers = torch.tensor([each for each in range(20) if each not in (3, 11)]).reshape(-1, 1)
    recorder.update(numbers.float(), numbers.float(), [numbers, numbers])
    found = predictions_of(recorder, loader, "valid", {}, bad=[3, 11])
    assert [int(name) for name in found.ids] == numbers[:, 0].tolist()


def test_a_loader_in_an_unknown_order_gives_numbers() -> None:
    recorder = PredictionRecorder(config_of("mse_loss"))
    recorder.update(torch.zeros(3), torch.zeros(3))
    dataset = torch.utils.data.TensorDataset(torch.zeros(3))
    found = predictions_of(recorder, DataLoader(dataset, shuffle=True), "valid", {})
    assert (list(found.ids), found.are_ids_known) == (["1", "2", "3"], False)
    found = predictions_of(recorder, DataLoader(dataset), "valid", {})
    assert (list(found.ids), found.are_ids_known) == (["0", "1", "2"], True)


# --- What may happen meanwhile -------------------------------------------------------------------


class StopInReport(Trainer):
    """Asks for a stop in the evaluation at the end."""

    def valid_step(self, batch: Any) -> dict[str, Tensor]:
        if self.is_finished() and len(self.training_state.phase_metrics) == 1:
            self.signals.stop = signal.SIGTERM
        return super().valid_step(batch)


def test_a_signal_during_the_report_leaves_a_complete_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(*SPLIT, trainer=StopInReport)
    values = train_in(trainer, _made(tmp_path))
    assert values["valid/loss"] > 0
    assert not (tmp_path / "report" / "predictions.csv").exists()
    assert any("stopped before the predictions" in text for text in caplog.messages)
    assert trainer.is_finished()


def test_an_error_in_the_report_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **more: Any) -> None:
        raise RuntimeError("no picture")

    monkeypatch.setattr("base.run.testing.write_predictions", fail)
    monkeypatch.setattr("base.run.testing.write_report", fail)
    trainer = make(f"trainer.save_dir={tmp_path}")
    with open_run(trainer, trainer.config) as opened:
        trainer.train(opened)
    assert capsys.readouterr().err.count("no picture") == 2
    (folder,) = tmp_path.glob("toy/*")
    assert any((folder / "checkpoints").iterdir())


def test_a_failed_run_has_a_page(tmp_path: Path) -> None:
    class Failing(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            if self.progress.epoch == 1:
                raise RuntimeError("half way")
            return super().train_step(batch)

    trainer = make(f"trainer.save_dir={tmp_path}", trainer=Failing)
    with suppress(RuntimeError), open_run(trainer, trainer.config) as opened:
        trainer.train(opened)
    (folder,) = tmp_path.glob("toy/*")
    page = (folder / "report" / "index.html").read_text()
    assert "<h2>Curves</h2>" in page
    assert ">failed</b>" in page
    assert not (folder / "report" / "predictions.csv").exists()


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def test_the_summary_holds_what_the_page_needs(tmp_path: Path) -> None:
    run(tmp_path, "trainer.epochs=2", *SPLIT)
    content = json.loads((tmp_path / "report" / "predictions.json").read_text())
    (part,) = content["parts"].values()
    assert part["n_samples"] == sum(count for _, _, count in part["pairs"]) == 8
    assert part["checkpoint"] == choose_checkpoint(tmp_path).name


def test_the_pixels_of_many_classes_are_counted_in_one_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not in one of (class, class) for each sample."""
    sizes: list[int] = []
    count = torch.bincount

    def counted(*args: Any, **how: Any) -> torch.Tensor:
        sizes.append(len(count(*args, **how)))
        return count(*args, **how)

    n_samples, n_classes = 6, 50
    outputs = torch.randn(n_samples, n_classes, 4, 4)
    target = torch.randint(0, n_classes, (n_samples, 4, 4))
    monkeypatch.setattr(torch, "bincount", counted)
    recorded(config_of("cross_entropy"), [(outputs, target)])
    assert sum(sizes) == n_classes**2 + 3 * n_samples * n_classes


def test_of_a_wide_table_the_first_columns_are_shown() -> None:
    names = [f"gene_{number}" for number in range(1_000)]
    values = torch.arange(2.0)
    columns = SimpleNamespace(inputs=names, numbers=dict.fromkeys(names, values), categories={})
    cells = _cells(columns, 1)
    assert list(cells) == [*names[:MOST_COLUMNS], "..."]
    assert cells["gene_0"] == "1"
    assert cells["..."] == "960 more columns"
