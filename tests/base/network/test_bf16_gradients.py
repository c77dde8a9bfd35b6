"""Convolutions whose bf16 gradient a CPU computes from uninitialized memory are refused."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from base.errors import TrainingError
from base.network import bf16_gradients
from base.network.bf16_gradients import has_uninitialized_gradient, refuse_uninitialized_gradients
from base.network.output_sizes import SamePadConv2d

NARROW = {  # layer, size of its images
    "one pixel": (lambda: nn.Conv2d(48, 48, 3, stride=2, padding=1), (1, 1)),
    "one column": (lambda: nn.Conv2d(32, 32, 3, stride=2, padding=1), (8, 1)),
    "two columns": (lambda: nn.Conv2d(32, 32, 3, stride=3, padding=1), (2, 2)),
    "5x5": (lambda: nn.Conv2d(32, 32, 5, stride=2, padding=2, bias=False), (1, 1)),
    "groups": (lambda: nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=2), (1, 1)),
    "transposed": (lambda: nn.ConvTranspose2d(32, 32, 3, stride=2, padding=1), (1, 1)),
}
WIDE = {
    "stride 1": (lambda: nn.Conv2d(32, 32, 3, padding=1), (1, 1)),
    "kernel 1": (lambda: nn.Conv2d(32, 32, 1, stride=2), (1, 1)),
    "wide": (lambda: nn.Conv2d(32, 32, 3, stride=2, padding=1), (8, 8)),
    "1-D": (lambda: nn.Conv1d(32, 32, 3, stride=2, padding=1), (8,)),
}


def forward(layer, size, dtype=torch.bfloat16):
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        return layer(torch.rand(16, layer.in_channels, *size))


def is_really_wrong(layer, size):
    """Train the layer as a step does, several times, beside float32."""
    given = torch.rand(16, layer.in_channels, *size).bfloat16()
    for _ in range(40):
        kept = [torch.full((layer.weight.numel() * n,), float("nan")) for n in (1, 1, 2, 2)]
        del kept
        gradients = []
        for dtype in (torch.bfloat16, torch.float32):
            layer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
                layer(given.to(dtype)).float().sum().backward()
            gradients.append(layer.weight.grad.clone())
        found, exact = gradients
        if not ((found - exact).abs() <= 0.1 * exact.abs().max()).all():
            return True
    return False


@pytest.mark.parametrize("case", NARROW)
def test_a_wrong_gradient_of_this_cpu_is_refused_and_a_right_one_is_not(case):
    """Which of the two this CPU gives is found by training the layer itself."""
    make, size = NARROW[case]
    torch.manual_seed(0)
    layer = make()
    if not is_really_wrong(layer, size):
        with refuse_uninitialized_gradients(nn.Sequential(layer)):
            forward(layer, size)
        return
    message = r"layer '0' \(Conv.*precision: fp32"
    with (
        pytest.raises(TrainingError, match=message),
        refuse_uninitialized_gradients(nn.Sequential(layer)),
    ):
        forward(layer, size)


@pytest.fixture
def always_wrong(monkeypatch):
    """Makes each gradient in bf16 wrong in one place, as on a CPU with the fault."""
    real = bf16_gradients._gradient

    def gradient(layer, given, padding):
        found = real(layer, given, padding)
        if given.dtype == torch.bfloat16:
            found.view(-1)[3] = float("nan")
        return found

    monkeypatch.setattr(bf16_gradients, "_gradient", gradient)


@pytest.mark.parametrize("case", NARROW)
def test_the_error_names_the_layer_its_input_and_the_setting(case, always_wrong):
    make, size = NARROW[case]
    model = nn.Sequential(nn.Identity(), nn.Sequential(make()))
    layer = model[1][0]
    shape = "x".join(map(str, (16, layer.in_channels, *size)))
    kind = type(layer).__name__
    message = rf"layer '1.0' \({kind} (3x3|5x5) with stride .* of {shape}\).*`memory: \{{precision"
    with pytest.raises(TrainingError, match=message), refuse_uninitialized_gradients(model):
        forward(layer, size)


@pytest.mark.parametrize("case", WIDE)
def test_other_convolutions_are_not_tried(case, always_wrong):
    make, size = WIDE[case]
    layer = make()
    with refuse_uninitialized_gradients(layer):
        forward(layer, size)


@pytest.mark.parametrize("how", ["float32", "frozen", "no_grad", "later"])
def test_what_needs_no_gradient_in_bf16_is_not_tried(how, always_wrong):
    make, size = NARROW["one pixel"]
    layer = make().requires_grad_(how != "frozen")
    with refuse_uninitialized_gradients(layer):
        if how == "float32":
            forward(layer, size, torch.float32)
        elif how == "no_grad":
            with torch.no_grad():
                forward(layer, size)
        elif how == "frozen":
            forward(layer, size)
    forward(layer, size)  # the hooks are removed


def test_weights_and_random_streams_are_left_alone():
    make, size = NARROW["one pixel"]
    layer = make()
    before, stream = layer.weight.detach().clone(), torch.get_rng_state()
    has_uninitialized_gradient(layer, torch.ones(4, 48, *size))
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad is None
    assert torch.equal(torch.get_rng_state(), stream)


EXACT = {
    "padded": (lambda: nn.Conv2d(4, 6, 3, stride=3, padding=1, groups=2), (2, 2)),
    "dilated": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2, padding=(2, 1), dilation=2), (5, 3)),
    "circular": (
        lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="circular"),
        (4, 2),
    ),
    "same": (lambda: SamePadConv2d(4, 6, 3, stride=2, padding="same"), (8, 1)),
    "1-D, same": (lambda: nn.Conv1d(4, 6, 3, padding="same"), (5,)),
    "3-D": (lambda: nn.Conv3d(4, 6, 3, stride=2, padding=1), (2, 3, 1)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        (3, 1),
    ),
}


@pytest.mark.parametrize("case", EXACT)
def test_the_gradient_that_is_tried_is_that_of_the_layer(case):
    make, size = EXACT[case]
    layer, given = make(), torch.rand(4, 4, *size)
    layer(given).sum().backward()
    found = bf16_gradients._gradient(layer, *bf16_gradients._padded(layer, given))
    torch.testing.assert_close(found, layer.weight.grad)


class ByKeyword(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(input=x)


def test_a_layer_may_be_called_with_a_keyword(always_wrong):
    model = ByKeyword(nn.Conv2d(8, 8, 3, stride=2, padding=1))
    with refuse_uninitialized_gradients(model), torch.autocast("cpu", torch.bfloat16):
        model(torch.rand(2, 8, 8, 8))
        with pytest.raises(TrainingError, match="layer 'layer'"):
            model(torch.rand(2, 8, 1, 1))


def test_an_image_without_a_batch_is_tried_too(always_wrong):
    layer = nn.Conv2d(16, 16, 3, stride=2, padding=1)
    with (
        pytest.raises(TrainingError, match="of 16x8x1"),
        refuse_uninitialized_gradients(layer),
        torch.autocast("cpu", torch.bfloat16),
    ):
        layer(torch.rand(16, 8, 1))


def test_an_input_that_is_not_finite_is_no_fault_of_the_layer(always_wrong):
    layer = nn.Conv2d(4, 4, 3, stride=2, padding=1)
    given = torch.rand(2, 4, 8, 1)
    given[0, 0, 0, 0] = float("inf")
    with refuse_uninitialized_gradients(layer), torch.autocast("cpu", torch.bfloat16):
        layer(given)


class OfItsOwnKind(nn.Conv2d):
    """Takes two images, and pads them itself."""

    def forward(self, pair):
        one, other = pair
        return super().forward(F.pad(one + other, [2, 2, 2, 2]))


@pytest.mark.parametrize("size", [(8, 8), (1, 1)])
def test_a_layer_of_another_kind_is_left_alone(size):
    layer = OfItsOwnKind(4, 4, 5, stride=2)
    given = torch.rand(2, 4, *size)
    with refuse_uninitialized_gradients(layer), torch.autocast("cpu", torch.bfloat16):
        layer((given, given))


def test_spectral_norm_makes_the_same_steps_as_without_the_check():
    def run(check):
        torch.manual_seed(0)
        layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 3, stride=2, padding=1))
        guard = refuse_uninitialized_gradients(layer) if check else nullcontext()
        with guard, torch.autocast("cpu", torch.bfloat16):
            layer(torch.rand(2, 4, 8, 8))
        return [each.clone() for each in layer.state_dict().values()]

    for one, other in zip(run(True), run(False), strict=True):
        assert torch.equal(one, other)


def test_activation_checkpointing_recomputes_the_same():
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())
    given = torch.rand(2, 8, 2, 2, requires_grad=True)
    with refuse_uninitialized_gradients(model):
        with torch.autocast("cpu", torch.bfloat16):
            output = checkpoint(model, given, use_reentrant=False)
        output.sum().backward()
    assert given.grad.isfinite().all()
