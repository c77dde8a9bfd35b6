"""Services: each step is sent once, whatever is cut and resumed; none can stop a training."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from services_fakes import FAKES

from logger.services import SERVICES, coarser, side_by_side
from logger.writers import Histogram, Writers

CONFIG = {"name": "toy", "seed": 1, "none": None, "loss": [{"type": "mse"}], "empty": {}}


@pytest.fixture(params=sorted(FAKES))
def service(request, monkeypatch) -> Any:
    """The module that stands in for a service; its name is its ``__name__``."""
    module = FAKES[request.param]()
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def start(service: Any, folder: Path, **args: Any) -> Writers:
    folder.mkdir(exist_ok=True)
    return Writers([SERVICES[service.__name__](folder, CONFIG, **args)])


def train(writers: Writers, first: int, last: int) -> None:
    """Log as a run does: each step, and after each fifth the epoch and a picture."""
    for step in range(first, last + 1):
        writers.add_scalars({"step/loss": float(step), "lr": 0.1}, step)
        if step % 5 == 0:
            writers.add_scalars({"valid/loss": float(step)}, step)
            writers.flush()
            writers.add_images("samples", torch.zeros(2, 1, 4, 4), step)


def seen(service: Any) -> dict[str, list[tuple[int, float]]]:
    """Return tag -> (step, value), as sent."""
    found: dict[str, list[tuple[int, float]]] = {}
    for step, values in service.points():
        for tag, value in values.items():
            if isinstance(value, float):
                found.setdefault(tag, []).append((step, value))
    return found


WHOLE = {
    "step/loss": [(step, float(step)) for step in range(1, 13)],
    "lr": [(step, 0.1) for step in range(1, 13)],
    "valid/loss": [(5, 5.0), (10, 10.0)],
}


def test_a_run_is_sent_whole(service, tmp_path, caplog):
    writers = start(service, tmp_path / "run")
    train(writers, 1, 12)
    writers.close()
    assert seen(service) == WHOLE
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("cut", "back_to"), [(c, b) for c in (4, 5, 6, 7, 10) for b in (0, 3, 4, 5) if b < c]
)
def test_after_a_kill_no_step_is_there_twice_and_none_is_missing(service, tmp_path, cut, back_to):
    train(start(service, tmp_path / "run"), 1, cut)  # killed: no close
    writers = start(service, tmp_path / "run")
    train(writers, back_to + 1, 12)
    writers.close()
    assert seen(service) == WHOLE


def test_offline_wandb_sends_no_step_twice_either(monkeypatch, tmp_path):
    module = FAKES["wandb"]()
    monkeypatch.setitem(sys.modules, "wandb", module)
    train(start(module, tmp_path / "run", mode="offline"), 1, 7)
    writers = start(module, tmp_path / "run", mode="offline")
    train(writers, 4, 12)
    writers.close()
    assert seen(module) == WHOLE
    assert [each["mode"] for each in module.inits] == ["offline", "offline"]


def test_a_resumed_run_is_the_same_run_of_the_service(service, tmp_path):
    for _ in range(2):
        start(service, tmp_path / "run").close()
    if service.__name__ == "mlflow":
        assert service.runs == ["toy-run"]
        assert service.status == ["FINISHED", "RUNNING", "FINISHED"]
        assert service.params == {"name": "toy", "seed": "1", "loss.0.type": "mse"}
    else:
        one, two = service.inits
        assert one == two
        assert one["project"] == "toy"
        assert "toy-run" in one.values()


def test_two_runs_are_two_runs_of_wandb(monkeypatch, tmp_path):
    module = FAKES["wandb"]()
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("one", "two"):
        random.seed(3)  # as each run of a seed does
        start(module, tmp_path / name).close()
    assert len({each["id"] for each in module.inits}) == 2


def test_a_run_that_fails_is_marked_as_failed(service, tmp_path):
    writers = start(service, tmp_path / "run")
    try:
        raise RuntimeError("loss")
    except RuntimeError:
        writers.close()
    if service.__name__ == "mlflow":
        assert service.status == ["FAILED"]
    if service.__name__ == "wandb":
        assert service.exit_codes == [1]


def test_opening_leaves_the_random_stream_where_it_was(service, tmp_path, monkeypatch):
    name = "MlflowClient" if service.__name__ == "mlflow" else "init"
    real = getattr(service, name)

    def drawing(*args, **kwargs):
        random.random()
        return real(*args, **kwargs)

    monkeypatch.setattr(service, name, drawing)
    random.seed(5)
    start(service, tmp_path / "run")
    assert random.random() == random.Random(5).random()


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_missing_service_warns_once_with_what_to_install(name, monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(sys.modules, name, None)
    writers = Writers([SERVICES[name](tmp_path, CONFIG)])
    train(writers, 1, 5)
    writers.close()
    (message,) = caplog.messages
    assert message.startswith(f"{name} is off, training continues without it: ")


def test_where_nothing_is_installed_the_warning_says_how(project_root, tmp_path):
    """In a process without site-packages, so that none of them can be there."""
    code = (
        "import sys; from logger.services import *; from logger.writers import Writers\n"
        "config = {'name': 'toy'}; folder = Path(sys.argv[1])\n"
        "writers = Writers(kind(folder, config) for kind in SERVICES.values())\n"
        "assert writers.writers == []\n"
    )
    command = [sys.executable, "-S", "-c", code, tmp_path]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    for name, line in zip(SERVICES, lines, strict=True):
        assert line.endswith(f"{name} is not installed (pip install {name})")


def test_a_service_that_breaks_is_off_after_one_warning(service, tmp_path, caplog):
    writers = start(service, tmp_path / "run")
    (writer,) = writers.writers
    for name in ("_run", "_client"):
        if hasattr(writer, name):
            setattr(writer, name, None)
    train(writers, 1, 12)
    writers.close()
    assert len(caplog.messages) == 1
    assert writers.writers == []


def test_joined_buckets_hold_the_same_counts():
    counts = [float(k % 7) for k in range(1030)]
    joined = coarser(Histogram([float(k) for k in range(1031)], counts))
    assert len(joined.counts) <= 512
    assert len(joined.limits) == len(joined.counts) + 1
    for low, high, count in zip(joined.limits, joined.limits[1:], joined.counts, strict=False):
        assert count == sum(counts[int(low) : int(high)])
    assert joined.limits[-1] == 1030


def test_histograms_reach_the_services(service, tmp_path, caplog):
    writers = start(service, tmp_path / "run")
    limits = [float(k) for k in range(1031)]
    writers.add_histograms({"weights": Histogram(limits, [1.0] * 1030)}, 3)
    writers.close()
    assert caplog.messages == []
    if service.__name__ != "mlflow":
        ((step, values),) = service.points()
        assert (step, sum(values["weights"].counts)) == (3, 1030)


def test_images_stand_side_by_side_in_rgb():
    images = torch.rand(3, 3, 4, 5)
    row = side_by_side(images)
    assert row.shape == (4, 15, 3)
    for k in range(3):
        part = torch.from_numpy(row[:, 5 * k : 5 * k + 5]).permute(2, 0, 1)
        assert torch.equal(part, (images[k] * 255).round().byte())
    assert side_by_side(torch.ones(1, 1, 2, 2)).tolist() == [[[255] * 3] * 2] * 2
