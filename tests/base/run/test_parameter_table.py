"""The parameter table: every parameter once, as it is before the first step, whole and in short."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy import NETWORKS, make, run, train_in

from base.names.registry import MODELS
from base.run.parameter_table import (
    HEAD,
    MAX_LINES,
    Row,
    full_table,
    parameter_rows,
    short_table,
    write_csv,
)

GROUPS = "optimizer={type: AdamW, args: {lr: 0.02, weight_decay: 0.5}, param_groups: [no_decay]}"


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


def rows_of(*overrides: str, **how: Any) -> dict[str, Row]:
    return {row.name: row for row in parameter_rows(make(*overrides, **how).experiment)}


def register(monkeypatch: pytest.MonkeyPatch, model: type[nn.Module]) -> str:
    monkeypatch.setitem(MODELS.registered, model.__name__, model)
    return f"model={{type: {model.__name__}}}"


class Tied(nn.Module):
    """A weight with two names, and one that is computed from another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))

    def forward(self, inputs: Any) -> Any:
        return self.head(self.second(self.first(inputs.flatten(1))))


class Deep(nn.Sequential):
    """Twenty layers, each with a rate of its own."""

    layer_order = tuple(f"{i}.*" for i in range(1, 21))

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), *[nn.Linear(5, 5) for _ in range(19)], nn.Linear(5, 3))


# --- Rows -----------------------------------------------------------------------------------------


def test_a_row_describes_a_parameter() -> None:
    init = "init=[{match: {type: Linear}, weight: {type: normal_, args: {std: 0.5}}}]"
    rows = rows_of(GROUPS, init)
    assert rows["head.weight"] == Row(
        name="head.weight",
        shape="3x6",
        numbers=18,
        init="normal_(std=0.5)",
        group="main/0",
        lr=0.02,
        weight_decay=0.5,
        trainable="yes",
        loaded_from=None,
        shared_with=None,
    )
    bias = rows["head.bias"]
    assert (bias.init, bias.group, bias.weight_decay) == ("default", "main/1", 0)


def test_every_parameter_is_there_once_in_the_models_order() -> None:
    trainer = make(GROUPS)
    rows = parameter_rows(trainer.experiment)
    assert [row.name for row in rows] == [name for name, _ in trainer.model.named_parameters()]
    assert sum(row.numbers for row in rows) == sum(p.numel() for p in trainer.model.parameters())


def test_the_rate_is_that_of_the_first_step() -> None:
    args = "{max_lr: 0.5, div_factor: 10}"
    rows = rows_of(
        "optimizer={type: Adam, args: {lr: 0.1}, param_groups: [{match: '*.bias', lr: 0.2}]}",
        f"lr_scheduler={{type: OneCycleLR, every: step, args: {args}}}",
    )
    assert rows["head.weight"].lr == pytest.approx(0.05)
    assert rows["head.bias"].lr == pytest.approx(0.1)


def test_frozen_for_good_and_for_a_time_are_distinguished() -> None:
    rows = rows_of("freeze=[hidden.0.weight, {match: hidden.0.bias, until: 2 epochs}]")
    weight, bias, head = (rows[name] for name in ("hidden.0.weight", "hidden.0.bias", "head.bias"))
    assert (weight.trainable, weight.group, weight.lr) == ("no", None, None)
    assert (bias.trainable, bias.group, bias.lr) == ("after 2 epochs", "main/0", 0.1)
    assert head.trainable == "yes"


def test_a_rule_that_freezes_is_seen_too() -> None:
    rows = rows_of("optimizer.param_groups=[{match: 'hidden.*', freeze: true}]")
    assert rows["hidden.0.bias"].trainable == "no"
    assert rows["head.bias"].trainable == "yes"


def test_what_was_loaded_names_its_file_and_not_what_init_had_drawn(tmp_path: Path) -> None:
    state = make().model.state_dict()
    torch.save({"head.bias": state["head.bias"]}, tmp_path / "old.pt")
    weights = f"model.weights={{file: {tmp_path / 'old.pt'}, only: head.bias}}"
    rows = rows_of(weights, "init=[{match: {type: Linear}, bias: zeros_}]")
    assert (rows["head.bias"].init, rows["head.bias"].loaded_from) == ("loaded", "old.pt")
    assert (rows["hidden.0.bias"].init, rows["hidden.0.bias"].loaded_from) == ("zeros_", None)


def test_shared_and_computed_parameters_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(register(monkeypatch, Tied))
    assert rows["first.weight"].shared_with == "second.weight"
    assert "second.weight" not in rows
    magnitude = rows["head.parametrizations.weight.original0"]
    assert (magnitude.shape, magnitude.numbers, magnitude.group) == ("3x1", 3, "main/0")
    assert sum(row.numbers for row in rows.values()) == 25 + 5 + 5 + 3 + 15 + 3


def test_several_optimizers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, Pair)
    rows = rows_of(text=NETWORKS)
    assert rows["generator.bias"].group == "generator/0"
    assert rows["critic.bias"].group == "critic/0"
    assert rows["critic.bias"].lr == 0.02


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = nn.Linear(3, 2), nn.Linear(2, 1)


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(1.0))


def test_a_single_number_is_a_scalar_and_an_optimizer_may_have_no_decay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (row,) = rows_of(register(monkeypatch, Scalar), "optimizer={type: Rprop}").values()
    assert (row.shape, row.numbers, row.lr, row.weight_decay) == ("scalar", 1, 0.01, None)


def test_the_audit_changes_nothing(tmp_path: Path) -> None:
    audited = make(GROUPS)
    parameter_rows(audited.experiment)
    train_in(audited)
    plain = run(tmp_path, GROUPS)
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(audited.model.state_dict()[name], weight)


# --- The file and the tables ----------------------------------------------------------------------


def test_the_file_holds_every_row_to_the_last_digit(tmp_path: Path) -> None:
    rows = rows_of(GROUPS, "optimizer.args.lr=0.1234567890123", "freeze=[hidden.0.weight]")
    write_csv([*rows.values()], tmp_path / "run" / "parameters.csv")
    with (tmp_path / "run" / "parameters.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [list(row) for row in read] == [list(Row._fields)] * 4
    for cells, row in zip(read, rows.values(), strict=True):
        assert cells == {k: "" if v is None else str(v) for k, v in row._asdict().items()}
    assert float(read[1]["lr"]) == 0.1234567890123
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["parameters.csv"]


def test_the_whole_table_leaves_out_what_none_has(monkeypatch: pytest.MonkeyPatch) -> None:
    head, *lines = full_table([*rows_of(GROUPS).values()]).splitlines()
    assert head.split() == [
        *("name", "shape", "numbers", "init", "group", "lr", "decay", "trainable")
    ]
    assert lines[0].split() == [
        *("hidden.0.weight", "6x5", "30", "default", "main/0", "2.00e-02", "0.5", "yes")
    ]
    assert len({line.index("main/") for line in lines}) == 1, "columns stand below each other"
    tied = full_table([*rows_of(register(monkeypatch, Tied)).values()])
    assert tied.splitlines()[0].split()[-1] == "shared_with"


def table(rows: list[Row]) -> list[dict[str, str]]:
    """Read the short table back; its cells are two spaces apart."""
    lines = [line.strip().split("  ") for line in short_table(rows).splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == list(HEAD)
    return [dict(zip(HEAD, line, strict=True)) for line in cells[1:]]


def test_the_short_table_has_a_line_for_each_kind_of_treatment() -> None:
    rows = rows_of(GROUPS, "freeze=[{match: hidden.0.bias, until: 3 steps}]")
    assert table([*rows.values()]) == [
        dict(zip(HEAD, line, strict=True))
        for line in (
            (
                "main/0",
                "2.00e-02",
                "0.5",
                "yes",
                "2",
                "48",
                "default",
                "hidden.0.weight, head.weight",
            ),
            ("main/1", "2.00e-02", "0", "after 3 steps", "1", "6", "default", "hidden.0.bias"),
            ("main/1", "2.00e-02", "0", "yes", "1", "3", "default", "head.bias"),
        )
    ]


def test_the_short_table_stays_short_and_its_counts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*rows_of(register(monkeypatch, Deep), GROUPS, "optimizer.layer_decay=0.5").values()]
    lines = table(rows)
    assert len({row.group for row in rows}) == 40
    assert len(lines) == MAX_LINES
    assert [line["group"] for line in lines] == [
        *("main/0", "main/1", "main/2", "main/3", "33 more", "main/37", "main/38", "main/39")
    ]
    assert lines[4]["lr"] == "..."
    assert float(lines[-1]["lr"]) == 0.02
    assert math.isclose(float(lines[0]["lr"]), 0.02 * 0.5**19, rel_tol=0.01)
    assert sum(int(line["tensors"]) for line in lines) == 40
    assert sum(int(line["numbers"]) for line in lines) == 19 * 30 + 18


def test_what_fits_into_the_short_table_is_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [{"match": f"{i}.*", "lr": 0.01 * i} for i in range(1, 8)]
    lines = table(
        [*rows_of(register(monkeypatch, Deep), f"optimizer.param_groups={rules}").values()]
    )
    assert [line["group"] for line in lines] == [f"main/{i}" for i in range(8)]
    assert lines[-1]["such as"] == "8.weight, 8.bias, ..."
