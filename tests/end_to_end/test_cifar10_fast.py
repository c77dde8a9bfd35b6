"""config/cifar10_fast.yaml, which is meant for a GPU, is right on the CPU with synthetic images."""

from __future__ import annotations

import json

import pytest
import torch
from digest import digest, loss_log
from processes import ROOT
from torch import Tensor
from torch.nn import functional as F
from workplace import Workplace

from model.resnet import ResNet9

IMAGES = (
    "{type: SyntheticDataset, args: {n_samples: 384, shape: [3, 16, 16], noise: 0.3, n_classes: 4}}"
)
SMALL = (
    f"data_loader.args.dataset={IMAGES}",
    f"data_loader.args.test_dataset={IMAGES}",
    "data_loader.args.batch_size=32",
    "model.args={width: 8, n_classes: 4}",
    "memory.compile=false",
    "trainer.epochs=5",
    "trainer.keep=9",
    "trainer.report=false",
    "trainer.tensorboard=false",
)


@pytest.mark.end_to_end
def test_it_learns_by_the_schedule_that_it_names_and_resumes(place: Workplace) -> None:
    run = place.train("-c", ROOT / "config" / "cifar10_fast.yaml", "--set", *SMALL)
    rates = [float(row["lr"]) for row in loss_log(run)]
    # Linear over 60 steps, of which the first has 1/100 of the peak: up in 12 steps, then down.
    expected = [0.4 * (1 - (step - 11) / 48) for step in (11, 23, 35, 47)]
    assert rates[:4] == pytest.approx(expected, rel=1e-3)
    assert rates[4] < 1e-4
    assert json.loads((run / "report" / "test.json").read_text())["accuracy"] > 0.5  # chance: 0.25

    before = digest(run)
    done = place.run("-r", run / "checkpoints" / "step-00000024")
    assert (done.returncode, done.stderr) == (0, "")
    assert digest(run) == before


def test_resnet9_is_the_network_of_its_source() -> None:
    """Eight convolutions and a linear layer, written once more with torch's functions."""
    torch.manual_seed(0)
    model = ResNet9(width=8).eval()
    assert sum(p.numel() for p in ResNet9().parameters()) == 6_573_120
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean)
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    convolutions = iter([m for m in model.modules() if isinstance(m, torch.nn.Conv2d)])
    norms = iter([m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)])

    def block(x: Tensor) -> Tensor:
        x, norm = F.conv2d(x, next(convolutions).weight, padding=1), next(norms)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()

    images = torch.randn(2, 3, 32, 32)
    x = block(images)
    x = F.max_pool2d(block(x), 2)
    x = x + block(block(x))
    x = F.max_pool2d(block(x), 2)
    x = F.max_pool2d(block(x), 2)
    x = x + block(block(x))
    expected = F.max_pool2d(x, 4).flatten(1) @ model.head.weight.T / 8
    torch.testing.assert_close(model(images), expected)
