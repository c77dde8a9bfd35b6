"""BatchNorm over all processes: other layers with the same parameters, on CUDA alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from base.network.batch_norm import synchronize_batch_norm

CUDA = torch.device("cuda")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.BatchNorm2d(2), nn.GroupNorm(1, 2)))


def test_layers_are_replaced_and_their_parameters_stay() -> None:
    model = network().eval()
    before = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    converted = synchronize_batch_norm(model, CUDA)
    after = {**dict(converted.named_parameters()), **dict(converted.named_buffers())}
    assert {name: id(each) for name, each in after.items()} == {
        name: id(each) for name, each in before.items()
    }
    kinds = [type(each) for each in converted.get_submodule("1")]
    assert kinds == [nn.SyncBatchNorm, nn.GroupNorm]
    assert not any(each.training for each in converted.modules())


def test_a_cpu_keeps_its_layers() -> None:
    model = network()
    assert synchronize_batch_norm(model, torch.device("cpu")) is model
    assert type(model.get_submodule("1.0")) is nn.BatchNorm2d


@pytest.mark.gpu
def test_one_process_computes_what_batch_norm_does() -> None:
    torch.manual_seed(0)
    images, plain = torch.randn(8, 1, 6, 6, device=CUDA), network().to(CUDA)
    synchronized = network().to(CUDA)
    synchronized.load_state_dict(plain.state_dict())
    synchronized = synchronize_batch_norm(synchronized, CUDA)
    torch.testing.assert_close(synchronized(images), plain(images))
    for ours, theirs in zip(synchronized.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
