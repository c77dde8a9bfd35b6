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

from model.layers import PatchWhitening
from model.resnet import ResNet9

IMAGES = (
    "{type: SyntheticDataset, args: {n_samples: 384, shape: [3, 16, 16], noise: 0.3, n_classes: 4}}"
)
SMALL = (
    f"data_loader.args.dataset={IMAGES}",
    f"data_loader.args.test_dataset={IMAGES}",
    "data_loader.args.batch_size=32",
    "model.args.layers=[{type: ResNet9, args: {width: 8, n_classes: 4, whitens: true, alpha: 0.3, "
    "pools_first: true, scale: 0.0625}}]",
    "data_loader.args.transforms=[RandomFlip]",  # patterns that are shifted are not learnt as fast
    "optimizer.args.lr=0.25",  # for smaller batches
    "optimizer.param_groups=[{match: '*norm.bias', lr: 16, weight_decay: 7.8e-6}]",
    "lr_scheduler.args.max_lr=0.25",
    "memory.compile=false",
    "trainer.epochs=5",
    "trainer.keep=9",
    "trainer.report=false",
    "trainer.tensorboard=false",
)


@pytest.mark.end_to_end
def test_it_learns_by_the_schedule_that_it_names_and_resumes(place: Workplace) -> None:
    run = place.train("-c", ROOT / "config" / "cifar10_fast.yaml", "--set", *SMALL)
    names = loss_log(run)[0].keys()
    (own,) = (name for name in names if name.startswith("lr") and name.endswith("0"))
    rates = [float(row[own]) for row in loss_log(run)]
    # Linear over 60 steps, of which the first has 1/100 of the peak: up in 12 steps, then down.
    expected = [0.25 * (1 - (step - 11) / 48) for step in (11, 23, 35, 47)]
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


def test_a_whitened_patch_has_uncorrelated_values_of_variance_one() -> None:
    """Also of a batch that the filters were not measured on, and of a file of weights."""
    torch.manual_seed(0)
    mixed = torch.rand(3, 3)
    blurred = F.avg_pool2d(torch.randn(96, 3, 20, 20), 3, 1)  # neighbours resemble each other
    images = torch.einsum("ij,njhw->nihw", mixed, blurred)
    layer = PatchWhitening(eps=1e-9)
    layer(images[:64])
    assert layer.weight.shape == (27, 3, 3, 3)
    assert not list(layer.parameters())
    inside = layer(images[64:])[:, :, 1:-1, 1:-1]
    found = torch.cov(inside.transpose(0, 1).flatten(1))
    torch.testing.assert_close(found, torch.eye(27), atol=0.2, rtol=0)

    other = PatchWhitening(eps=1e-9)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(images), layer(images))


def test_components_of_noise_are_not_blown_up() -> None:
    flat = torch.rand(64, 3, 1, 1).expand(64, 3, 8, 8) + 1e-4 * torch.rand(64, 3, 8, 8)
    layer = PatchWhitening()
    layer(flat)
    assert layer.weight.flatten(1).norm(dim=1).max() <= 10.01  # 1 / sqrt(eps)


def test_the_other_arguments_of_resnet9_change_what_they_say() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    plain, other = ResNet9(width=4), ResNet9(width=4, whitens=True, alpha=0.3, pools_first=True)
    assert other.eval()(images).shape == plain.eval()(images).shape
    kinds = [type(module) for module in other.modules()]
    assert torch.nn.ReLU not in kinds
    assert kinds.count(torch.nn.CELU) == 8
    seen: list[int] = []
    for norm in (m for m in other.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[-1]))
    other(images)
    assert seen == [32, 16, 16, 16, 8, 4, 4, 4]
    pooled = ResNet9(width=4, pools_first=True).eval()  # scales of 1: the maximum moves past them
    pooled.load_state_dict(dict(zip(pooled.state_dict(), plain.state_dict().values(), strict=True)))
    torch.testing.assert_close(pooled(images), plain(images))
