"""Metrics, tables and monitors name the classes of the data."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import make, run

from base.errors import ConfigError
from base.report.curves import draw, panels_of
from base.report.prediction_sections import prediction_parts
from base.report.test_results import write_test_report
from base.run.checks import check
from base.run.testing import choose_checkpoint, run_test
from base.training.metric_values import with_class_names
from base.training.progress import Monitor
from logger.csv_writer import read_rows

CLASSES = ["night heron", "猫/大", "a $x$ b", "macro"]
METRICS = "metrics=[Recall, Precision, F1, IoU, AUROC, ConfusionMatrix, accuracy]"


def animals(folder: Path, classes: list[str] = CLASSES) -> str:
    """Return a config of a table whose column `kind` names the classes."""
    random = torch.Generator().manual_seed(0)
    rows = [["a", "b", "c", "kind"]]
    for k in range(80):
        values = torch.randn(3, generator=random) + k % len(classes)
        rows.append([*map(str, values.tolist()), classes[k % len(classes)]])
    with (folder / "animals.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    table = f"{{type: CsvDataset, args: {{file: {folder / 'animals.csv'}, target: kind}}}}"
    section = f"data_loader:\n  type: DatasetLoader\n  args:\n    dataset: {table}\n"
    section += f"    test_dataset: {table}\n    batch_size: 20\n    split: 0.2\n"
    model = f"model: {{type: MLP, args: {{n_inputs: 3, hidden: [], n_outputs: {len(classes)}}}}}"
    return f"""
name: animals
seed: 3
{model}
{section}
optimizer: {{type: Adam, args: {{lr: 0.05}}}}
loss: cross_entropy
trainer: {{epochs: 2, tensorboard: false, progress: false, verbosity: 0}}
"""


def test_each_class_has_its_name_in_every_metric_and_table(tmp_path: Path) -> None:
    trainer = run(tmp_path / "run", METRICS, text=animals(tmp_path))
    names = trainer.train_loader.dataset.classes
    assert sorted(names) == sorted(CLASSES)
    row = read_rows(tmp_path / "run" / "metrics.csv")[-1]
    shown = {name: name for name in names} | {"macro": str(names.index("macro"))}
    for metric, mean in (("Recall", "macro"), ("F1", "macro"), ("IoU", "mean"), ("AUROC", "macro")):
        for phase in ("train", "valid"):
            found = {key for key in row if key.startswith(f"{phase}/{metric}/")}
            kept = shown if mean == "macro" else dict.fromkeys(names, "") | {n: n for n in names}
            assert found == {f"{phase}/{metric}/{each}" for each in [mean, *kept.values()]}

    run_test(trainer, choose_checkpoint(tmp_path / "run"), tmp_path / "run")
    report = tmp_path / "run" / "report"
    with (report / "ConfusionMatrix.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["true class", *names]
    assert [row[0] for row in rows] == names
    counts = torch.tensor([[float(cell) for cell in row[1:]] for row in rows])
    assert counts.sum() == 80
    values = json.loads((report / "test.json").read_text())
    for number, name in enumerate(names):  # by the table, whose rows are the true classes
        recall = float(counts[number, number] / counts[number].sum())
        assert values[f"Recall/{shown[name]}"] == pytest.approx(recall)
        precision = float(counts[number, number] / max(counts[:, number].sum(), 1.0))
        assert values[f"Precision/{shown[name]}"] == pytest.approx(precision)
    assert (report / "ConfusionMatrix.png").stat().st_size > 5000


def test_classes_without_names_and_other_sizes_keep_their_numbers(tmp_path: Path) -> None:
    trainer = run(tmp_path, METRICS)
    assert trainer.progress.step > 0
    row = read_rows(tmp_path / "metrics.csv")[-1]
    assert {f"valid/Recall/{k}" for k in ("macro", "0", "1", "2")} <= row.keys()


@pytest.mark.parametrize(
    ("result", "classes", "named"),
    [
        ({"macro": 1, "0": 2, "1": 3}, ["a", "b"], {"macro": 1, "a": 2, "b": 3}),
        ({"macro": 1, "0": 2, "1": 3}, [], {"macro": 1, "0": 2, "1": 3}),
        ({"macro": 1, "0": 2, "1": 3}, ["a", "b", "c"], {"macro": 1, "0": 2, "1": 3}),
        ({"0": 2, "1": 3, "2": 4}, ["a", "b"], {"0": 2, "1": 3, "2": 4}),
        ({"mean": 1, "0": 2, "1": 3}, ["mean", "x\ny"], {"mean": 1, "0": 2, "x y": 3}),
        ({"0": 2, "1": 3}, ["a  b", "a b"], {"0": 2, "1": 3}),
        ({"0": 2, "1": 3}, ["1", "0"], {"1": 2, "0": 3}),
        ({"big": 2, "small": 3}, ["a", "b"], {"big": 2, "small": 3}),
        (0.5, ["a"], 0.5),
    ],
)
def test_names_replace_numbers_if_there_is_one_for_each(
    result: Any, classes: list[str], named: Any
) -> None:
    assert with_class_names(result, classes) == named


def test_a_monitor_may_name_a_class_or_its_number(tmp_path: Path) -> None:
    """Runs of versions that logged the number resume with the config that they have."""
    text = animals(tmp_path)
    check(make(METRICS, "trainer.monitor=max valid/Recall/night heron", text=text))
    check(make(METRICS, "trainer.monitor=max valid/Recall/2", text=text))
    with pytest.raises(ConfigError, match="did you mean 'valid/Recall/"):
        check(make(METRICS, "trainer.monitor=max valid/Recall/night heronn", text=text))


def test_the_number_of_a_class_selects_its_value() -> None:
    values = {"valid/Recall/macro": 0.9, "valid/Recall/cat": 0.1, "valid/Recall/dog": 0.7}
    by_number, by_name = Monitor("max valid/Recall/1"), Monitor("max valid/Recall/dog")
    for monitor in (by_number, by_name):
        assert monitor.update(values, 1)
        assert not monitor.update({**values, "valid/Recall/dog": 0.6}, 2)
        assert not monitor.update({"train/loss": 1.0}, 3)
    assert by_number.best == by_name.best == 0.7


def test_a_thousand_classes_have_a_table_and_a_picture(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(1000)]
    write_test_report(tmp_path, {"confusion": torch.eye(1000)}, names)
    with (tmp_path / "report" / "confusion.csv").open() as file:
        assert next(file).startswith("true class,class 0,class 1,")
    assert (tmp_path / "report" / "confusion.png").exists()


def test_a_table_of_more_classes_is_a_list_of_its_cells(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(3000)]
    counts = torch.zeros(3000, 3000, dtype=torch.long)
    counts[7, 2999], counts[5, 5] = 3, 2
    write_test_report(tmp_path, {"confusion": counts, "loss": 0.5}, names)
    with (tmp_path / "report" / "confusion.csv").open(newline="") as file:
        found = list(csv.reader(file))
    assert found == [
        ["true class", "predicted class", "samples"],
        ["class 5", "class 5", "2"],
        ["class 7", "class 2999", "3"],
    ]
    assert not (tmp_path / "report" / "confusion.png").exists()
    assert json.loads((tmp_path / "report" / "test.json").read_text()) == {"loss": 0.5}


@pytest.mark.parametrize(
    "as_kind",
    [torch.Tensor.requires_grad_, torch.Tensor.bfloat16, torch.Tensor.double, np.asarray],
    ids=["of a graph", "bfloat16", "float64", "numpy"],
)
def test_a_large_table_may_be_of_any_kind(tmp_path: Path, as_kind: Callable[..., Any]) -> None:
    table = as_kind(torch.rand(3000, 2) + 0.1)
    write_test_report(tmp_path, {"table": table})
    with (tmp_path / "report" / "table.csv").open(newline="") as file:
        cells = [float(cell) for _, _, cell in list(csv.reader(file))[1:]]
    assert cells == table.reshape(-1).tolist()


def test_the_page_draws_and_lists_the_worst_of_many_classes(tmp_path: Path) -> None:
    """It does not grow with the classes."""
    sizes, charts = [], []
    for n in (2000, 4000):
        rows = [
            {"epoch": e, **{f"{phase}/F1/class {k}": k / n for k in range(n)},
             f"{phase}/F1/macro": 0.5}
            for e in range(1, 11) for phase in ("train", "valid")
        ]  # fmt: skip
        (panel,) = panels_of(rows)
        charts.append(panel)
        pairs = [[k, (k + 1) % n, 1 + k % 3] for k in range(n)]
        found = {"task": "classification", "names": [f"class {k}" for k in range(n)],
                 "pairs": pairs, "n_samples": n, "checkpoint": "x", "mistakes": []}  # fmt: skip
        parts = [*draw([panel]), *prediction_parts(tmp_path, "valid", found)]
        sizes.append(sum(map(len, parts)))
    assert sizes[1] < 1.1 * sizes[0]
    lines = list(charts[1].lines)
    assert lines[:2] == ["train macro", "valid macro"]
    kept = [f"{phase} class {k}" for phase in ("valid", "train") for k in range(100)]
    assert lines[2:] == kept
    assert charts[1].title == "F1, the lowest 100 of 4000 (valid)"
    assert len(panels_of([{"epoch": 1, "valid/F1/a": 0.1, "valid/F1/b": 0.2}])[0].lines) == 2


@pytest.mark.parametrize(
    ("monitor", "settings", "text"),
    [
        (
            "max valid/acuracy",
            [],
            r"did you mean 'valid/accuracy'\? There are valid/loss, valid/ac",
        ),
        ("max acuracy", [], r"did you mean 'valid/accuracy'\?"),
        ("min loss", [], r"did you mean 'valid/loss'\?"),
        ("max valid/recal", ["metrics=[{type: Recall, name: recall}]"], "'valid/recall/macro'"),
        ("max valid/ap", ["metrics=[{type: accuracy, name: app}]"], "'valid/app'"),
        ("min train/los", [], r"did you mean 'train/loss'\?"),
        ("max train/accuracy", ["trainer.train_metrics=false"], "`trainer.train_metrics` is off"),
        (
            "max valid/accuracy",
            ["data_loader.args.validation_split=0"],
            r"did you mean 'train/accuracy'\? There is no validation data",
        ),
        (
            "min valid/second",
            ["loss=[{type: cross_entropy, name: first}, {type: cross_entropy, name: secnd}]"],
            r"did you mean 'valid/secnd'\?",
        ),
    ],
)
def test_a_misspelt_monitor_is_answered_with_what_is_logged(
    monitor: str, settings: list[str], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        check(make("metrics=[accuracy]", *settings, f"trainer.monitor={monitor}"))
    plateau = f"lr_scheduler={{type: ReduceLROnPlateau, monitor: {monitor}}}"
    with pytest.raises(ConfigError, match=text):
        check(make("metrics=[accuracy]", *settings, plateau))


class Name(str):
    """A class name that counts how often it is compared with another."""

    n_compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Name.n_compared += 1
        return super().__eq__(other)


def test_naming_many_classes_compares_each_name_a_few_times() -> None:
    n_compared = []
    for n in (200, 400):
        names = [f"class {k % (n - 1)}" for k in range(n)]  # the first and the last are the same
        result = {"macro": 0.5, **{str(k): k / n for k in range(n)}}
        Name.n_compared = 0
        found = with_class_names({Name(key): value for key, value in result.items()}, names)
        n_compared.append(Name.n_compared)
        assert list(found.values()) == list(result.values())
        assert list(found) == ["macro", "0", *names[1:-1], str(n - 1)]
    assert n_compared[1] <= 2.2 * n_compared[0] + 100
