"""``padding: same`` with a stride: ceil(input / stride), and torch's own numbers at stride 1."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from base.network.output_sizes import SamePadConv1d, SamePadConv2d, SamePadConv3d, conv_class
from base.network.patterns import match_modules

OURS = {1: SamePadConv1d, 2: SamePadConv2d, 3: SamePadConv3d}
THEIRS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
MODES = ["zeros", "reflect", "replicate", "circular"]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
@given(data=st.data())
def test_the_output_is_the_input_by_the_stride_rounded_up(n, mode, data):
    def draw(low, high):
        return data.draw(st.tuples(*[st.integers(low, high)] * n))

    size, kernel, stride, dilation = draw(7, 11), draw(1, 4), draw(1, 4), draw(1, 2)
    layer = OURS[n](1, 1, kernel, stride, dilation=dilation, padding_mode=mode)
    expected = tuple(math.ceil(s / step) for s, step in zip(size, stride, strict=True))
    assert tuple(layer(torch.zeros(1, 1, *size)).shape[2:]) == expected
    assert tuple(layer(torch.zeros(1, *size)).shape[1:]) == expected  # without a batch


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (4, 1), (2, 3), (1, 1)])
def test_at_stride_1_it_is_torchs_own(n, mode, kernel, dilation):
    theirs = THEIRS[n](2, 4, kernel, 1, "same", dilation, 2, padding_mode=mode)
    ours = OURS[n](2, 4, kernel, 1, "same", dilation, 2, padding_mode=mode)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 2, *(9, 8, 7)[:n])
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "dilation", "before"),
    [(5, 3, 2, 1, 1), (6, 3, 2, 1, 0), (7, 4, 3, 1, 1), (6, 2, 4, 3, 1), (9, 1, 3, 1, 0)],
)
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_each_output_is_the_window_at_its_place(size, kernel, stride, dilation, before, mode):
    layer = SamePadConv1d(1, 1, kernel, stride, dilation=dilation, padding_mode=mode).double()
    signal = torch.randn(size, dtype=torch.float64)

    def value(place):
        if mode == "zeros":
            return float(signal[place]) if 0 <= place < size else 0.0
        if mode == "circular":
            return float(signal[place % size])
        nearest = min(max(place, 0), size - 1)
        return float(signal[nearest if mode == "replicate" else 2 * nearest - place])

    expected = [
        float(layer.bias)
        + sum(
            float(layer.weight[0, 0, k]) * value(start + k * dilation - before)
            for k in range(kernel)
        )
        for start in range(0, size, stride)
    ]
    assert layer(signal.view(1, 1, -1)).flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_its_weights_are_those_of_the_plain_layer_and_patterns_find_it():
    plain, ours = nn.Conv2d(2, 4, (3, 5), 2), SamePadConv2d(2, 4, (3, 5), 2)
    plain.load_state_dict(ours.state_dict(), strict=True)
    model = nn.Sequential(copy.deepcopy(ours))
    assert match_modules(model, {"type": "Conv2d"}) == ["0"]
    assert repr(ours).endswith("kernel_size=(3, 5), stride=(2, 2), padding=same)")


def test_another_padding_is_refused():
    with pytest.raises(ValueError, match="SamePadConv2d supports padding='same', not 1"):
        SamePadConv2d(1, 1, 3, 2, 1)


@pytest.mark.parametrize(
    ("named", "args", "built"),
    [
        (nn.Conv2d, {"padding": "same", "stride": 2}, SamePadConv2d),
        (nn.Conv2d, {"padding": "same", "stride": [1, 2]}, SamePadConv2d),
        (nn.Conv1d, {"padding": "same", "stride": 2}, SamePadConv1d),
        (nn.Conv3d, {"padding": "same", "stride": (2, 2, 2)}, SamePadConv3d),
        (nn.Conv2d, {"padding": "same", "stride": 1}, nn.Conv2d),
        (nn.Conv2d, {"padding": "same", "stride": [1, 1]}, nn.Conv2d),
        (nn.Conv2d, {"padding": "same"}, nn.Conv2d),
        (nn.Conv2d, {"padding": 1, "stride": 2}, nn.Conv2d),
        (nn.MaxPool2d, {"padding": "same", "stride": 2}, nn.MaxPool2d),
    ],
)
def test_torchs_layer_becomes_ours_where_torch_would_refuse(named, args, built):
    assert conv_class(named, args) is built
    if built in OURS.values():
        built(1, 1, 3, **args)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_lazy_one_becomes_what_is_written_out(n):
    torch.manual_seed(0)
    args = {"out_channels": 4, "kernel_size": 3, "stride": 2, "padding": "same", "bias": False}
    layer = conv_class(getattr(nn, f"LazyConv{n}d"), args)(**args)
    images = torch.randn(2, 3, *(7, 6, 5)[:n])
    first = layer(images)  # padded in the very call that finds the channels
    assert type(layer) is OURS[n]
    written = OURS[n](3, **args)
    written.load_state_dict(layer.state_dict())
    assert first.shape[2:] == (4, 3, 3)[:n]
    assert first.equal(layer(images))
    assert first.equal(written(images))
    assert conv_class(nn.LazyConv2d, {"padding": "same"}) is nn.LazyConv2d
