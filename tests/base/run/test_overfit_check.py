"""`--check overfit`: what stands in the way of learning one batch is measured and named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from test_networks import Pair, WganTrainer
from torch import Tensor, nn
from toy import CONFIG, NETWORKS, assert_same, make

from base.errors import ConfigError
from base.names.registry import LOSSES, MODELS
from base.run.check_kinds import run_check
from base.run.check_steps import copied

LEARNS = ["model.args.hidden=[32]", "optimizer={type: AdamW, args: {lr: 0.01}}"]
TABLE = CONFIG.replace("n_inputs: 5", "n_inputs: 2").replace(
    "  type: SyntheticDataLoader\n"
    "  args: {n_samples: 24, shape: [1, 1, 5], n_classes: 3, batch_size: 4, validation_split: 4}",
    "  type: DatasetLoader\n"
    "  args:\n    dataset: {type: CsvDataset, args: {file: FILE, target: kind}}\n"
    "    batch_size: 8\n    split: 0",
)


def overfit(*overrides: str, **how: Any) -> tuple[str, int]:
    return run_check(make(*LEARNS, *overrides, **how), "overfit")


def lowest_possible(report: str) -> float:
    return float(report.partition("lowest possible is ")[2].split()[0])


def test_a_batch_is_learned_and_no_weight_changes() -> None:
    trainer = make(*LEARNS)
    before = copied(dict(trainer.model.state_dict()))
    report, code = run_check(trainer, "overfit")
    assert code == 0
    assert report.startswith("one batch of 4 samples: loss 0.9794 at the start, ")
    assert report.endswith("passed: the model learns the batch by heart\n")
    assert lowest_possible(report) == 0
    assert_same(dict(trainer.model.state_dict()), before)


@pytest.mark.parametrize(
    "overrides",
    [
        ["memory.accumulate=2"],
        ["memory.micro_batch=2"],
        ["memory.precision=bf16"],
        ["optimizer={type: LBFGS, args: {lr: 0.5}}"],
        ["optimizer.clip_norm=1"],
        ["lr_scheduler={type: OneCycleLR, args: {max_lr: 0.02}, every: step}"],
        ["trainer.ema={decay: 0.9}"],
        ["loss=[cross_entropy, {type: multi_margin_loss, weight: 0.1}]"],
    ],
)
def test_the_step_is_the_configs(overrides: list[str]) -> None:
    report, code = overfit(*overrides)
    assert code == 0, report


def test_the_lowest_loss_of_smoothed_labels_is_their_entropy() -> None:
    report, code = overfit("loss={type: cross_entropy, args: {label_smoothing: 0.3}}")
    shares = [0.7 + 0.3 / 3, 0.3 / 3, 0.3 / 3]
    entropy = -sum(share * math.log(share) for share in shares)
    assert math.isclose(lowest_possible(report), entropy, abs_tol=1e-3)
    assert code == 0
    assert "smooths the labels (label_smoothing 0.3)" in report


def table(folder: Path, rows: list[tuple[float, float, str]]) -> str:
    lines = ["a,b,kind", *(f"{a},{b},{kind}" for a, b, kind in rows)]
    (folder / "rows.csv").write_text("\n".join(lines))
    return TABLE.replace("FILE", str(folder / "rows.csv"))


def test_targets_that_contradict_each_other_are_counted(tmp_path: Path) -> None:
    rows = [(0.1 * k, 1 - 0.2 * k, "x" if k < 3 else "y") for k in range(6)]
    good = table(tmp_path, [*rows, (0.7, 0.9, "x"), (0.8, 0.3, "y")])
    assert overfit("model.args.n_outputs=2", text=good)[1] == 0
    twins = table(tmp_path, [*rows, (0.7, 0.9, "x"), (0.7, 0.9, "y")])
    report, code = overfit("model.args.n_outputs=2", text=twins)
    assert code == 1
    assert "targets contradict each other: 1 samples have the same inputs" in report
    lowest = 2 * math.log(2) / 8  # of two samples with probability 1/2 each, in eight
    assert f"cannot fall below {lowest:.4f}" in report


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["model.args.dropout=0.9"], "dropout (hidden."),
        (["optimizer.args.weight_decay=50"], "weight decay (50) holds it at"),
        (
            ["optimizer={type: SGD, args: {lr: 0.5}}", "optimizer.clip_norm=1e-4"],
            "the limit of the gradients (0.0001) holds it at",
        ),
    ],
)
def test_what_is_made_to_prevent_it_is_named_and_passes(overrides: list[str], text: str) -> None:
    report, code = overfit(*overrides)
    assert text in report
    assert code == 0
    assert report.endswith("passed: the model learns the batch by heart without that\n")


@pytest.mark.parametrize(("rate", "word"), [(3e-4, "small"), (60.0, "large")])
def test_a_rate_that_is_far_off_is_named(rate: float, word: str) -> None:
    report, code = overfit(f"optimizer={{type: SGD, args: {{lr: {rate * 10}}}}}")
    if f"is too {word}" not in report:
        report, code = overfit(f"optimizer={{type: SGD, args: {{lr: {rate}}}}}")
    assert code == 1
    assert f"is too {word}" in report
    assert report.endswith("not passed\n")


def test_frozen_parameters_are_named() -> None:
    report, code = overfit("freeze=['hidden.*', 'head.weight']")
    assert code == 1
    assert " parameters are frozen (hidden.0.weight" in report
    assert "%" not in report.partition("parameters are frozen")[0].splitlines()[-1]


def test_frozen_parameters_are_counted_and_not_rounded() -> None:
    model = make(*LEARNS, "freeze=hidden.*").model
    n = sum(p.numel() for name, p in model.named_parameters() if name.startswith("hidden"))
    total = sum(p.numel() for p in model.parameters())
    report, _ = overfit("freeze=hidden.*")
    assert f"{n:,} of {total:,} parameters are frozen (hidden.0.weight" in report


def test_a_rate_that_is_too_small_is_blamed_with_weight_decay_as_it_is() -> None:
    options = ["optimizer={type: AdamW, args: {lr: 5e-4, weight_decay: 0.01}}"]
    report, code = overfit(*options)
    assert code == 1
    line = " ".join(report.split())
    assert "with ten times the rate the batch is learned; see" in line
    assert "and without" not in line
    assert "the model gives the same outputs" not in report


class Dead(nn.Module):
    """A layer behind a ReLU that never lets anything through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dead, self.head = nn.Linear(5, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        nn.init.constant_(self.dead.bias, -1e4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.dead(self.first(inputs.flatten(1))).relu())


def test_dead_layers_and_equal_outputs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Dead", Dead)
    text = CONFIG.replace("{type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3}}", "Dead")
    report, code = run_check(make(text=text), "overfit")
    assert code == 1
    assert "no gradient but 0 reached first.weight, first.bias, dead.weight, dead.bias" in report
    assert "the model gives the same outputs for every sample" in report


def test_a_loss_that_is_not_finite_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(output: Tensor, target: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(output, target)
        return loss / (loss > 0.9)

    monkeypatch.setitem(LOSSES.registered, "breaks", breaks)
    report, code = overfit("loss=breaks")
    assert code == 1
    assert "the training stopped: the loss is not finite at step" in report


def test_networks_without_a_common_loss_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Pair", Pair)

    class Adversarial(WganTrainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            values = super().train_step(batch)
            return {f"own_{name}": value for name, value in values.items()}

    with pytest.raises(ConfigError, match="minimises no value `loss`"):
        run_check(make("trainer.monitor=off", trainer=Adversarial, text=NETWORKS), "overfit")
