"""``deterministic: true`` sets what cuBLAS needs before CUDA starts, in each way to start a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import base.from_python
import base.run
import test as test_script
import train as train_script
from base.errors import ConfigError
from base.run.build import build_experiment, make_repeatable
from base.system.determinism import VARIABLE, why_not_deterministic
from tests.base.toy import CPU, make

OF_TORCH = (
    "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
    "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic "
    "because it uses CuBLAS and you have CUDA >= 10.2. To enable deterministic behavior in this "
    "case, you must set an environment variable before running your PyTorch application: "
    "CUBLAS_WORKSPACE_CONFIG=:4096:8 or CUBLAS_WORKSPACE_CONFIG=:16:8."
)
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    was = torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv(VARIABLE, "")  # so that it is restored
    del os.environ[VARIABLE]
    yield
    torch.use_deterministic_algorithms(was)


def test_the_variable_is_set_with_the_algorithms() -> None:
    make_repeatable(make().config)
    assert VARIABLE not in os.environ
    make_repeatable(make("deterministic=true").config)
    assert os.environ[VARIABLE] == ":4096:8"


def test_a_value_of_the_users_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, ":16:8")
    make_repeatable(make("deterministic=true").config)
    assert os.environ[VARIABLE] == ":16:8"


class Stop(Exception):  # noqa: N818
    """Ends an entry where it chooses its device, the first that may start CUDA."""


@pytest.mark.parametrize("entry", ["train.py", "resume", "test.py", "base.train"])
def test_it_is_set_before_the_device_is_chosen(
    entry: str, cut: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(_: str) -> Any:
        raise Stop(os.environ.get(VARIABLE))

    monkeypatch.setattr(base.run, "choose_device", choose)
    monkeypatch.setattr(base.from_python, "choose_device", choose)
    digits, file = project_root / "config" / "digits.yaml", cut / "config.yaml"
    file.write_text(file.read_text().replace("deterministic: false", "deterministic: true"))
    start = {
        "train.py": lambda: train_script.main(["-c", str(digits), "--set", "deterministic=true"]),
        "resume": lambda: train_script.main(["-r", str(cut)]),
        "test.py": lambda: test_script.main(["-r", str(cut)]),
        "base.train": lambda: base.from_python.train(digits, {"deterministic": True}),
    }[entry]
    with pytest.raises(Stop, match=":4096:8"):
        start()


def test_predictions_are_as_deterministic_as_the_run(finished: Path) -> None:
    from base.prediction import load_trained

    load_trained(finished, CPU)
    assert not torch.are_deterministic_algorithms_enabled()
    load_trained(finished, CPU, ["deterministic=true"])
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ[VARIABLE] == ":4096:8"


class Refused:
    """A matrix on a GPU whose product torch refuses."""

    def __matmul__(self, _: object) -> None:
        raise RuntimeError(OF_TORCH)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (":0:0", r"not deterministic with CUBLAS_WORKSPACE_CONFIG=:0:0: unset it, or set :4096:8"),
        (None, r"computed on the GPU before CUBLAS_WORKSPACE_CONFIG was set: start a new one"),
    ],
)
def test_what_torch_would_refuse_later_is_refused_before_anything_is_built(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is not None:
        monkeypatch.setenv(VARIABLE, given)
    config = make("deterministic=true").config
    make_repeatable(config)
    monkeypatch.setattr(torch, "ones", lambda *_, device: Refused())
    with pytest.raises(ConfigError, match=f"deterministic: .*{expected}"):
        build_experiment(config, GPU)


def test_neither_a_cpu_nor_other_runs_are_asked() -> None:
    assert why_not_deterministic(GPU) is None
    torch.use_deterministic_algorithms(True)
    assert why_not_deterministic(CPU) is None


@pytest.mark.gpu
def test_products_on_a_gpu_are_deterministic_in_a_new_process(run_cli: Any, place: Any) -> None:
    done = place.run("-c", "tiny.yaml", "--set", "deterministic=true", "-d", "cuda")
    assert done.returncode == 0, done.stderr
