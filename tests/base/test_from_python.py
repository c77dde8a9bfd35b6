"""``from base import train``: the same run as that of ``train.py``, with its values at hand."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from base import ConfigError, UsageError, load_run, train
from base.config.loading import load_config
from logger.csv_writer import read_rows

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config" / "digits.yaml"
SHORT = {"trainer.epochs": 2, "data_loader.args.data_dir": ROOT / "data"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    save_dir = tmp_path_factory.mktemp("saved")
    more = {"trainer.save_dir": save_dir, "trainer.ema": {"decay": 0.5}}
    return train(CONFIG, {**SHORT, **more}, device="cpu")


def test_the_values_are_those_of_train_py(trained, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "train.py", "-c", CONFIG, "-d", "cpu", "--set",
               *(f"{key}={value}" for key, value in SHORT.items()),
               f"trainer.save_dir={tmp_path}", "trainer.ema={decay: 0.5}"]  # fmt: skip
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, timeout=120)
    (folder,) = (tmp_path / "digits").iterdir()
    rows = read_rows(folder / "metrics.csv")
    values = ("train/loss", "valid/loss", "valid/accuracy")
    for mine, theirs in zip(trained.history, rows, strict=True):
        assert {name: mine[name] for name in values} == {
            name: float(theirs[name]) for name in values
        }
    assert trained.metrics["valid/loss"] == float(rows[-1]["valid/loss"])
    best = max(rows, key=lambda row: float(row["valid/accuracy"]))
    assert trained.best["epoch"] == float(best["epoch"])
    assert trained.best["valid/accuracy"] == pytest.approx(float(best["valid/accuracy"]))


def test_the_model_has_the_averaged_weights_of_the_best_checkpoint(trained) -> None:
    from base.checkpoint.weights import read_weights

    saved = read_weights(trained.folder, ema=True)
    model = load_run(trained.folder).model  # what else the run has is gone
    gc.collect()
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[name])
    assert any(not torch.equal(value, saved[name]) for name, value in
               read_weights(trained.folder, ema=False).items())  # fmt: skip


def test_a_run_is_resumed(trained) -> None:
    more = {"trainer.epochs": 3, "trainer.save_dir": trained.folder.parents[1]}
    more = {**SHORT, "trainer.ema": {"decay": 0.5}, **more}
    longer = train(CONFIG, more, resume=trained.folder, device="cpu")
    assert longer.folder == trained.folder
    assert [row["epoch"] for row in longer.history] == [1, 2, 3]
    assert load_run(trained.folder).metrics == longer.metrics


def test_a_config_may_be_a_dict(tmp_path: Path) -> None:
    config = dict(load_config(CONFIG))
    run = train(config, {**SHORT, "trainer.epochs": 1, "trainer.save_dir": tmp_path}, device="cpu")
    assert len(run.history) == 1


def test_an_error_has_no_calls_of_the_engine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'epochs'") as caught:
        train(CONFIG, {"trainer.epohcs": 1, "trainer.save_dir": tmp_path})
    files = {Path(str(each.path)).name for each in caught.traceback}
    assert files == {"test_from_python.py", "from_python.py"}
    assert caught.value._render_traceback_() == [f"ConfigError: {caught.value}"]
    assert not list(tmp_path.iterdir())


def test_a_missing_run_and_a_value_that_is_no_data_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        load_run(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"plain data, as a YAML file does: .*Tensor"):
        train(CONFIG, {"trainer.epochs": torch.tensor(3)})
