"""The work of the engine grows no faster than the network: twice the layers, twice the opcodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from counted import engine_opcodes, faster_than_linear
from torch import nn
from toy import CONFIG, run

from base.checkpoint.weight_mapping import match_weights
from base.config import load_config
from base.errors import CheckpointError
from base.network.freezing import last_layers
from base.network.patterns import NoMatch, match_modules, match_parameters
from base.runs.facts import list_runs
from base.runs.listing import csv_of_runs, table_text
from base.system.run_folder import create_run_folder
from base.training.parameter_groups import no_decay, parameter_groups

SECTION = {
    "type": "AdamW",
    "args": {"lr": 0.1},
    "params": "*",
    "layer_decay": 0.9,
    "param_groups": [
        {"match": "*", "preset": "no_decay"},
        {"match": "re:.*[02468]\\.weight", "lr": 0.2},
        {"match": {"type": "LayerNorm"}, "weight_decay": 0.1},
        {"match": "0.*", "freeze": True},
    ],
}
WEIGHTS = {"strip": ["module"], "rename": {"old.*": "*"}, "only": None, "skip": None,
           "on_shape_mismatch": "error"}  # fmt: skip


def network(n: int) -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)) for _ in range(n)))


def load(n: int) -> None:
    model = network(n)
    saved = {f"module.old.{name}": value for name, value in model.state_dict().items()}
    report, _ = match_weights(model, saved, WEIGHTS, "x")
    assert len(report.loaded) == 4 * n
    report.table()


def fail_to_load(n: int) -> None:
    """No name fits another."""
    saved = {f"module.old.encoder.{name}x": v for name, v in network(n).state_dict().items()}
    with pytest.raises(CheckpointError, match="not in the file"):
        match_weights(network(n), saved, WEIGHTS, "x")


def misspell(n: int) -> None:
    for match in (match_parameters, match_modules):
        with pytest.raises(NoMatch):
            match(network(n), "nothing.like.this")


def group(n: int) -> None:
    groups = parameter_groups(network(n), SECTION)
    assert sum(len(each["params"]) for each in groups) == 4 * (n - 1)


CASES = [group, load, fail_to_load, misspell, lambda n: no_decay(network(n)),
         lambda n: last_layers(dict(network(n).named_parameters()))]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_twice_the_parameters_are_twice_the_work(case):
    case(3)  # imports and caches
    assert faster_than_linear(*(engine_opcodes(lambda n=n: case(n)) for n in (60, 120))) == []


@pytest.mark.slow
def test_a_run_and_its_resume_do_twice_the_work_for_twice_the_parameters(tmp_path: Path) -> None:
    counts = []
    for n in (4, 30, 60):
        hidden = f"model.args.hidden=[{', '.join(['2'] * n)}]"
        settings = [hidden, "trainer.ema=0.9", "optimizer.type=AdamW", "optimizer.layer_decay=0.9",
                    "trainer.epochs=1"]  # fmt: skip
        folder = tmp_path / str(n)
        first = engine_opcodes(lambda f=folder, s=settings: run(f, *s, text=CONFIG, stop_at=3))
        again = engine_opcodes(lambda f=folder, s=settings: run(f, *s, text=CONFIG, resume=True))
        counts.append(first + again)
    assert faster_than_linear(*counts[1:], slack=2000) == []
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_twice_the_steps_are_twice_the_work(tmp_path: Path) -> None:
    counts = []
    for n in (2, 10, 20):
        settings = ["trainer.epochs=1", "trainer.log_every=1 steps",
                    f"data_loader.args.n_samples={n}4"]  # fmt: skip
        more = [*settings, "trainer.epochs=2"]
        folder = tmp_path / str(n)
        first = engine_opcodes(lambda f=folder, s=settings: run(f, *s, text=CONFIG))
        again = engine_opcodes(lambda f=folder, s=more: run(f, *s, text=CONFIG, resume=True))
        counts.append(first + again)
    assert faster_than_linear(*counts[1:], slack=2000) == []


def test_twice_the_runs_are_listed_with_twice_the_work(tmp_path: Path) -> None:
    config = load_config(None, [], text=CONFIG).to_yaml()
    counts = []
    for n in (3, 60, 120):
        for number in range(1, n + 1):
            folder = create_run_folder(tmp_path / str(n), "toy", settings=f"lr={number}")
            (folder / "config.yaml").write_text(config.replace("lr: 0.1", f"lr: {number}"))
            (folder / "metrics.csv").write_text(f"epoch,valid/loss\n1,{number}\n2,{number / 2}\n")
        counts.append(engine_opcodes(lambda n=n: show(tmp_path / str(n))))
    assert faster_than_linear(*counts[1:]) == []


def show(save_dir: Path) -> None:
    runs = list_runs(save_dir, "toy")
    assert table_text(runs, 100).count("lr") >= 1
    assert csv_of_runs([runs]).count("\n") == len(runs) + 1
