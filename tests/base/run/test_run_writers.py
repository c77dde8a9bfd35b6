"""`trainer.writers`, from the config to what the services get; errors are reported before a run."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from base.errors import ConfigError
from base.names.registry import project_root, set_project_root
from base.run.writers import build_writers
from logger.csv_writer import read_rows

FAKES = Path(__file__).parents[2] / "logger" / "services_fakes.py"
CONFIG = f"""
name: toy
model: {{type: DigitsNet, args: {{width: 4, dropout: 0.3}}}}
data_loader: {{type: DigitsDataLoader, args: {{data_dir: {project_root()}/data, batch_size: 96,
              validation_split: 960}}}}
optimizer: {{type: AdamW, args: {{lr: 0.003}}}}
loss: cross_entropy
metrics: [accuracy]
trainer:
  epochs: 3
  save_every: 1 steps
  log_every: 1 steps
  keep: 99
  verbosity: 0
  tensorboard: false
  writers: [{{type: wandb, args: {{project: digits}}}}, trackio, mlflow]
"""


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The three services, by their stand-ins."""
    spec = importlib.util.spec_from_file_location("fakes_of_services", FAKES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = {name: kind() for name, kind in module.FAKES.items()}
    for name, fake in made.items():
        monkeypatch.setitem(sys.modules, name, fake)
    return made


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    (tmp_path / "toy.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    set_project_root(project_root())
    yield
    torch.set_num_threads(threads)


def call(*words: str) -> Path:
    """Call train.py; return the newest run."""
    assert train.main([*words]) == 0
    return max(Path("saved").glob("*/*/"), key=lambda run: (run / "log.txt").stat().st_mtime_ns)


def scalars(service: Any) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for step, values in service.points():
        for tag, value in values.items():
            if isinstance(value, float | int):
                found.setdefault(tag, []).append((step, float(value)))
    return found


def test_a_run_that_is_cut_and_resumed_has_each_point_once_in_each_service(services) -> None:
    run = call("-c", "toy.yaml")
    for checkpoint in (run / "checkpoints").glob("step-*"):
        if int(checkpoint.name[5:]) > 7:  # as if killed after step 7 but for what was sent
            shutil.rmtree(checkpoint)
    assert call("-r", str(run), "--epochs", "4") == run
    rows = read_rows(run / "metrics.csv")
    for service in services.values():
        found = scalars(service)
        assert [step for step, _ in found["step/loss"]] == list(range(1, 21))
        for tag in ("valid/loss", "train/accuracy"):
            assert found[tag] == [(int(row["step"]), float(row[tag])) for row in rows]
    assert len({init["id"] for init in services["wandb"].inits}) == 1
    assert services["wandb"].inits[0]["project"] == "digits"
    assert services["mlflow"].params["optimizer.args.lr"] == "0.003"
    assert set(json.loads((run / "writers.json").read_bytes())) == set(services)
    assert not list(run.glob("events*"))


def test_services_leave_the_bits_of_a_training_alone(services) -> None:
    with_them = call("-c", "toy.yaml")
    without = call("-c", "toy.yaml", "--set", "trainer.writers=[]", "name=without")
    one, two = (read_rows(run / "metrics.csv") for run in (with_them, without))
    assert [row["train/loss"] for row in one] == [row["train/loss"] for row in two]


def test_without_the_packages_there_is_a_warning_each_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["wandb", "trackio", "mlflow"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
    run = call("-c", "toy.yaml", "--epochs", "1")
    log = (run / "log.txt").read_text()
    for name in names:
        assert log.count(f"{name} is off, training continues without it") == 1
    assert len(read_rows(run / "metrics.csv")) == 1


def test_nothing_is_imported_unless_it_is_named(services, monkeypatch) -> None:
    for name in services:
        monkeypatch.delitem(sys.modules, name)
    call("-c", "toy.yaml", "--epochs", "1", "--set", "trainer.writers=[csv]")
    assert not set(services) & set(sys.modules)


@pytest.mark.parametrize(
    ("switch", "named", "is_written"),
    [(True, [], True), (False, [], False), (False, ["tensorboard"], True), (True, ["csv"], True)],
)
def test_tensorboard_is_written_if_switched_on_or_named(
    tmp_path: Path, switch: bool, named: list[str], is_written: bool
) -> None:
    sections = [{"type": name, "args": {}} for name in named]
    config = {"name": "x", "trainer": {"tensorboard": switch, "writers": sections}}
    names = [writer.name for writer in build_writers(tmp_path, config, None)]
    assert names == ["metrics.csv", *["TensorBoard"] * is_written]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("[{type: wandb, args: {projekt: a}}]", r"args\.projekt: unknown argument for wandb; did"),
        ("[{type: csv, args: {x: 1}}]", r"args\.x: unknown argument for csv \(it takes none\)"),
        ("[{type: wandb, args: {project: [a]}}]", r"args\.project: expected a text"),
        ("[wandbb]", r"found the text 'wandbb'; did you mean 'wandb'\?"),
        ("[wandb, wandb]", r"'wandb' is already item 0"),
        ("[{type: mlflow, args: {folder: x}}]", r"args\.folder: unknown argument for mlflow"),
    ],
)
def test_slips_end_the_program_before_a_folder_is_made(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call("-c", "toy.yaml", "--set", f"trainer.writers={setting}")
    assert not Path("saved").exists()


def test_what_is_captured_may_go_to_a_service_alone(services) -> None:
    call("-c", "toy.yaml", "--epochs", "1", "--set", "capture=[{match: stem.*, every: 1 steps}]")
    tags = scalars(services["trackio"])
    assert any(tag.startswith("capture/stem") for tag in tags)
    with pytest.raises(ConfigError, match="captured values are written to TensorBoard"):
        call("-c", "toy.yaml", "--set", "capture=[stem.*]", "trainer.writers=[csv]")
