"""``run(n)`` equals ``run(k)`` and ``resume(n - k)``, bit for bit, for every cut k."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from digest import digest, digest_of, loss_log

from base.checkpoint.store import read
from base.config import load_config
from base.run.build import build_experiment
from base.run.session import open_folder
from base.system.signals import InterruptedRunError
from tests.base.toy import StopAt, train_in
from trainer.trainer import Trainer

# Dropout, random shifts, averages, a rate that changes each step, clipping, two losses, metrics of
# both kinds; 477 digits in 5 batches, the last one short, so the last window of 3 is short too.
CONFIG = """
name: resume
seed: 7
model: {type: DigitsNet, args: {width: 4, dropout: 0.3}}
data_loader: {type: DigitsDataLoader, args: {batch_size: 96, validation_split: 960, augment: true}}
optimizer: {type: AdamW, args: {lr: 0.003}, clip_norm: 1.0}
lr_scheduler: {type: OneCycleLR, args: {max_lr: 0.01}, every: step}
loss:
  - {type: cross_entropy, weight: 0.5, name: main}
  - {type: cross_entropy, args: {label_smoothing: 0.1}, name: smooth}
metrics: [accuracy, {type: accuracy, name: whole, over: epoch}]
trainer: {epochs: 2, ema: {decay: 0.9}, tensorboard: false, log_every: 2 steps}
"""


def run(
    tmp_path: Path, overrides: list[str], resume: Path | None = None, stop_at: int | None = None
) -> Path:
    """Train in this process, as train.py does; return the run's folder."""
    config = load_config(None, [f"trainer.save_dir={tmp_path}", *overrides], text=CONFIG)
    torch.manual_seed(config["seed"])
    experiment = build_experiment(config, torch.device("cpu"))
    if stop_at is not None:
        experiment.callbacks["StopAt"] = StopAt(stop_at)
    trainer = Trainer(experiment)
    trainer.stateful.pop("callback.StopAt", None)
    try:
        with open_folder(config, resume) as folder:
            train_in(trainer, folder, resume)
    except InterruptedRunError:
        assert stop_at is not None
    finally:
        for loader in (experiment.train_loader, experiment.valid_loader):
            loader.close()
    return folder


def n_steps(overrides: list[str]) -> int:
    config = load_config(None, overrides, text=CONFIG)
    return build_experiment(config, torch.device("cpu")).total_steps


@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_cut_resumes_to_the_same_bits(tmp_path: Path, accumulate: int) -> None:
    overrides = [f"memory.accumulate={accumulate}"]
    whole = digest(run(tmp_path, overrides))
    for cut in range(1, n_steps(overrides)):
        folder = run(tmp_path, overrides, stop_at=cut)
        assert digest(folder) != whole
        run(tmp_path, overrides, resume=folder)
        assert digest(folder) == whole, f"cut after step {cut}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a whole run."""
    return digest(run(tmp_path_factory.mktemp("plain"), []))


@pytest.fixture(scope="module")
def cut_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its third step, of ten."""
    return run(tmp_path_factory.mktemp("cut"), [], stop_at=3)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (1, 2), (2, 2)])
def test_the_number_of_workers_may_change_at_the_cut(
    tmp_path: Path, plain: str, before: int, after: int
) -> None:
    key = "data_loader.args.num_workers"
    folder = run(tmp_path, [f"{key}={before}"], stop_at=3)
    run(tmp_path, [f"{key}={after}"], resume=folder)
    assert digest(folder) == plain


def test_a_saved_state_in_mid_epoch_does_not_change_the_run(tmp_path: Path, plain: str) -> None:
    assert digest(run(tmp_path, ["trainer.save_every=1 steps"])) == plain


def test_a_run_of_k_steps_goes_on_to_n(tmp_path: Path) -> None:
    constant = ["lr_scheduler=null"]
    whole = run(tmp_path, [*constant, "trainer.epochs=null", "trainer.steps=9"])
    folder = run(tmp_path, [*constant, "trainer.epochs=null", "trainer.steps=4"])
    run(tmp_path, [*constant, "trainer.epochs=null", "trainer.steps=9"], resume=folder)
    assert loss_log(folder) == loss_log(whole)
    states = [read(run_folder) for run_folder in (whole, folder)]
    for name in ("model", "optimizer.main", "ema", "meters"):
        assert digest_of(states[0][name]) == digest_of(states[1][name]), name


@pytest.mark.parametrize(
    "left_out", ["random", "progress", "optimizer.main", "schedule.main", "ema", "meters"]
)
def test_each_part_of_the_state_is_needed(
    tmp_path: Path, plain: str, cut_once: Path, left_out: str, monkeypatch: Any
) -> None:
    """The oracle sees a fault: with one part not restored, the end differs."""
    folder = Path(shutil.copytree(cut_once, tmp_path / cut_once.name))
    from base.run import session

    load = session.load_state_dicts

    def forgetful(stateful: Any, state: Any) -> None:
        fresh = {name: stateful[name].state_dict() for name in stateful}
        load(stateful, {**state, left_out: fresh[left_out]})

    monkeypatch.setattr(session, "load_state_dicts", forgetful)
    with contextlib.suppress(ValueError):  # a schedule that is stepped too often refuses
        run(tmp_path, [], resume=folder)
    assert digest(folder) != plain
