"""The layers that networks share: fixed cosine filters."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.layers import CosineFilters


def test_the_filters_are_scaled_cosine_waves_and_their_negatives():
    scipy_fft = pytest.importorskip("scipy.fft")
    layer = CosineFilters(n_out=32, kernel_size=4)
    waves, negatives = layer.weight[:16, 0], layer.weight[16:, 0]
    assert torch.equal(negatives, -waves)
    # The cosine transform of each wave has one value, at its own frequency, scaled by it.
    found = scipy_fft.dctn(waves.double().numpy(), axes=(1, 2), norm="ortho")
    pairs = sorted(((u, v) for u in range(4) for v in range(4)), key=lambda uv: (sum(uv), uv))
    for number, (u, v) in enumerate(pairs):
        expected = torch.zeros(4, 4, dtype=torch.double)
        expected[u, v] = (u + 1) * (v + 1) / 4
        torch.testing.assert_close(torch.from_numpy(found[number]), expected, atol=1e-6, rtol=0)


def test_the_filters_draw_no_random_numbers_and_are_not_trained():
    before = torch.get_rng_state()
    net = nn.Sequential(CosineFilters(), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 2))
    first, second = CosineFilters(), CosineFilters()
    assert torch.equal(first.weight, second.weight)
    torch.set_rng_state(before)
    CosineFilters()
    assert torch.equal(before, torch.get_rng_state())
    assert not net[0](torch.rand(2, 1, 8, 8)).requires_grad
    net(torch.rand(2, 1, 8, 8)).sum().backward()
    assert net[0].weight.grad is None
    assert net[3].weight.grad is not None


def test_each_channel_is_filtered_separately():
    images = torch.rand(2, 3, 8, 8)
    found = CosineFilters(n_out=6, channels=3)(images)
    one = CosineFilters(n_out=6).weight
    parts = [F.conv2d(images[:, [place]], one, stride=2, padding=1) for place in range(3)]
    torch.testing.assert_close(found, torch.cat(parts, dim=1))


@pytest.mark.parametrize("n_out", [0, 3, 34])
def test_a_number_of_filters_that_does_not_exist_is_refused(n_out):
    with pytest.raises(ValueError, match="even number from 2 to 32"):
        CosineFilters(n_out=n_out)
