"""`summarise` in two processes of torchrun returns what one process returns, in both of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from base.training.metrics import build_metrics
from base.training.results import results_of, summarise
from logger.meters import Meters

ROOT = Path(__file__).resolve().parents[3]

SCRIPT = """
import json, sys
from pathlib import Path

import torch

from base.distributed import join_processes
from base.errors import KindlingError
from base.training.metrics import build_metrics
from base.training.results import results_of, summarise
from logger.meters import Meters

folder, fails = Path(sys.argv[1]), sys.argv[2] == "fails"
world = join_processes(20)


def broken(output, target):
    raise ValueError("no such class")


with world.reports_errors(), torch.inference_mode():
    data = torch.load(folder / "data.pt")
    sections = json.loads((folder / "metrics.json").read_text())
    meters, metrics = Meters("cpu"), build_metrics(sections)
    if fails:
        metrics["positions"].function = broken
    for positions in torch.arange(len(data["target"])).split(5):
        own = positions[world.rank :: world.size]
        loss = data["loss"][own].mean() if len(own) else 0.0
        meters.update({"loss": loss}, len(own))
        if world.rank == 1:
            meters.update({"of one rank": 2.0}, len(own))
        for metric in metrics.values():
            if len(own):
                metric.update(data["output"][own], data["target"][own], None, len(own))
            metric.end_batch()
    before = str([metric.state_dict() for metric in metrics.values()]) + str(meters.state_dict())
    try:
        values = summarise("valid", meters, metrics, world)
    except KindlingError as error:
        (folder / f"{world.rank}.txt").write_text(f"{type(error).__name__}: {error}")
        raise
    table = results_of(metrics, world)["ConfusionMatrix"].tolist()
    after = str([metric.state_dict() for metric in metrics.values()]) + str(meters.state_dict())
    assert before == after
    (folder / f"{world.rank}.json").write_text(json.dumps([list(values.items()), table]))
world.close()
"""


def data() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    output = torch.randn(21, 4, generator=random)
    target, loss = torch.randint(0, 4, (21,), generator=random), torch.rand(21, generator=random)
    return {"output": output, "target": target, "loss": loss}


SECTIONS = [
    {"type": name, "args": {}, "name": label, "over": over}
    for name, label, over in [
        ("ConfusionMatrix", "ConfusionMatrix", "batch"),
        ("accuracy", "accuracy", "batch"),
        ("F1", "F1", "batch"),
        ("AUROC", "AUROC", "batch"),
        ("accuracy", "positions", "epoch"),
    ]
]


def run(folder: Path, mode: str) -> subprocess.CompletedProcess:
    torch.save(data(), folder / "data.pt")
    (folder / "metrics.json").write_text(json.dumps(SECTIONS))
    (folder / "script.py").write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *command, folder / "script.py", folder, mode],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_two_processes_return_the_values_of_one(tmp_path):
    ended = run(tmp_path, "works")
    assert ended.returncode == 0, ended.stderr
    meters, metrics, given = Meters("cpu"), build_metrics(SECTIONS), data()
    for positions in torch.arange(21).split(5):
        meters.update({"loss": given["loss"][positions].mean()}, len(positions))
        meters.update({"of one rank": 2.0}, len(positions))
        for metric in metrics.values():
            metric.update(given["output"][positions], given["target"][positions])
    expected = summarise("valid", meters, metrics)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second  # to the bit
    assert first[1] == results_of(metrics)["ConfusionMatrix"].tolist()
    assert dict(first[0]) == pytest.approx(expected, rel=1e-7)
    assert [name for name, _ in first[0]] == list(expected)


def test_an_error_in_computing_ends_both_processes(tmp_path):
    ended = run(tmp_path, "fails")
    assert ended.returncode != 0
    own, other = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert own.startswith("TrainingError: metric 'positions' cannot be computed: ")
    assert other.startswith("PeerError: rank 0: metric 'positions' cannot be computed: ")
