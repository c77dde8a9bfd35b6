"""Gradients of chosen tensors, against finite differences in float64 and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base.errors import TrainingError
from base.network.gradients import gradient_of, gradient_penalty, layer_gradient_norms, saliency


def a_net() -> nn.Sequential:
    """A smooth network of 4x4 images in two channels, with all that depends on the mode."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(12, 3),
    )
    net(torch.randn(16, 2, 4, 4))  # statistics other than 0 and 1
    return net.double()


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def differences(function: Callable[[Tensor], Tensor], at: Tensor, width: float = 1e-6) -> Tensor:
    """Return the slope of a function of one number, by central differences."""
    slope = torch.zeros_like(at)
    for index in range(at.numel()):
        step = torch.zeros_like(at)
        step.view(-1)[index] = width
        slope.view(-1)[index] = (function(at + step) - function(at - step)) / (2 * width)
    return slope


def slopes(net: nn.Module, inputs: Tensor, target: Tensor | int) -> Tensor:
    """Return each sample's slope of its score, by differences."""
    target = torch.as_tensor(target).expand(len(inputs))
    with torch.no_grad():
        return differences(lambda x: net(x)[torch.arange(len(x)), target].sum(), inputs)


# --- The penalty of a critic ------------------------------------------------------------------


@pytest.mark.parametrize("target", [1.0, 0.0])
def test_the_penalty_of_a_linear_critic_is_that_of_its_weights_norm(target: float) -> None:
    critic = nn.Sequential(nn.Flatten(), nn.Linear(8, 1)).double()
    real, fake = torch.randn(2, 5, 2, 4).double()
    expected = (critic[1].weight.norm() - target) ** 2
    assert torch.allclose(gradient_penalty(critic, real, fake, target), expected)


def test_the_penalty_is_taken_between_real_and_fake_at_a_place_of_its_own_for_each_sample() -> None:
    seen: list[Tensor] = []

    def critic(points: Tensor) -> Tensor:
        seen.append(points.detach())
        return points.square().flatten(1).sum(dim=1) / 2  # the slope is the point itself

    real, fake = torch.randn(2, 6, 3, 2).double()
    penalty = gradient_penalty(critic, real, fake)
    (points,) = seen
    share = ((points - fake) / (real - fake)).flatten(1)
    assert torch.allclose(share, share[:, :1].expand_as(share))
    assert share.min() >= 0
    assert share.max() <= 1
    assert len(share[:, 0].unique()) == 6
    assert torch.allclose(penalty, (points.flatten(1).norm(dim=1) - 1).square().mean())


def test_the_gradient_of_the_penalty_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    points = torch.randn(5, 3).double()  # real and fake are the same: nothing is drawn between them
    gradients = torch.autograd.grad(
        gradient_penalty(critic, points, points), [critic[0].weight, critic[2].weight]
    )
    for name, gradient in zip(["0.weight", "2.weight"], gradients, strict=True):

        def penalty(weight: Tensor, name: str = name) -> Tensor:
            def moved(x: Tensor) -> Tensor:
                return torch.func.functional_call(critic, {name: weight}, (x,))

            with torch.no_grad():
                total = [differences(lambda x: moved(x).sum(), x, 1e-5).norm() for x in points]
            return (torch.stack(total) - 1).square().mean()

        expected = differences(penalty, dict(critic.named_parameters())[name].detach(), 1e-4)
        assert torch.allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_the_scaler_leave_the_penalty_as_in_full_precision(dtype: Any) -> None:
    """The slopes are about 1e-9 here: fp16 would round them to 0."""
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    nn.init.normal_(critic[0].weight, std=1e-5)
    nn.init.normal_(critic[2].weight, std=1e-4)
    real, fake = torch.randn(2, 8, 3).to(dtype)  # as a generator gives them under autocast

    def penalty(real: Tensor, fake: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same places between them
        return gradient_penalty(critic, real, fake, target=1e-9) * 1e15

    weights = [critic[0].weight, critic[2].weight]
    expected = torch.autograd.grad(penalty(real.float(), fake.float()), weights)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with torch.autocast("cpu", dtype=dtype):
        loss = penalty(real, fake)
    scaler.scale(loss).backward()
    for weight, gradient in zip(weights, expected, strict=True):
        assert torch.equal(weight.grad / 1024, gradient)
        assert gradient.norm() > 1e-3


def test_a_critic_without_a_slope_gets_no_nan() -> None:
    critic = nn.Linear(3, 1)
    nn.init.zeros_(critic.weight)
    gradient_penalty(critic, torch.randn(4, 3), torch.randn(4, 3)).backward()
    assert critic.weight.grad.isfinite().all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_penalty_can_be_measured_in_validation(mode: Any) -> None:
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    torch.manual_seed(0)
    expected = gradient_penalty(critic, torch.ones(4, 3), torch.ones(4, 3) * 2)
    assert expected.requires_grad
    torch.manual_seed(0)
    with mode():
        found = gradient_penalty(critic, torch.ones(4, 3), torch.ones(4, 3) * 2)
        assert not torch.is_grad_enabled()
    assert torch.equal(found, expected)
    assert not found.requires_grad  # no graph is kept


def test_the_penalty_leaves_critic_real_and_fake_as_they_were() -> None:
    critic = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 1))
    critic[0].requires_grad_(False)
    critic[2].weight.grad = torch.ones(1, 4)
    source = torch.randn(4, 3, requires_grad=True)
    penalty = gradient_penalty(critic, torch.randn(4, 3), source * 2)
    assert critic.training
    assert [p.requires_grad for p in critic.parameters()] == [False, False, True, True]
    assert torch.equal(critic[2].weight.grad, torch.ones(1, 4))
    penalty.backward()
    assert source.grad is None  # the generator is not asked to make the critic smooth


def test_real_and_fake_of_two_shapes_are_named() -> None:
    with pytest.raises(TrainingError, match=r"the same shape, not \(4, 3\) and \(1, 3\)"):
        gradient_penalty(nn.Linear(3, 1), torch.randn(4, 3), torch.randn(1, 3))


# --- The gradient at the inputs -------------------------------------------------------------------


def test_saliency_is_the_size_of_the_slope_by_differences() -> None:
    net = a_net().eval()
    expected = slopes(net, images(), 2).abs().amax(dim=1, keepdim=True)
    found = saliency(net.train(), images(), target=2)
    assert found.shape == (3, 1, 4, 4)
    assert torch.allclose(found, expected, atol=1e-8)


def test_saliency_follows_one_class_one_a_sample_or_the_highest() -> None:
    net = nn.Linear(4, 3).double()
    inputs = torch.randn(5, 4).double()
    highest = net(inputs).argmax(dim=1)
    chosen = torch.tensor([0, 1, 2, 1, 0])
    assert torch.equal(saliency(net, inputs, 1), net.weight[[1] * 5].abs())
    assert torch.equal(saliency(net, inputs, chosen), net.weight[chosen].abs())
    assert torch.equal(saliency(net, inputs), net.weight[highest].abs())


def test_a_model_of_one_number_a_sample_has_saliency_too() -> None:
    net = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    assert torch.equal(saliency(net, torch.randn(5, 4)), net[0].weight.abs().expand(5, 4))


def test_saliency_leaves_the_model_as_it_was() -> None:
    net = a_net()
    net[1].eval()  # as a frozen BatchNorm in a model that trains
    net[0].requires_grad_(False)
    net[5].weight.grad = torch.ones_like(net[5].weight)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    inputs = images().requires_grad_()
    saliency(net, inputs)
    assert [module.training for module in net] == [True, False, True, True, True, True]
    assert torch.equal(net[5].weight.grad, torch.ones_like(net[5].weight))
    assert all(p.grad is None for p in [*net[0].parameters(), net[5].bias, inputs])
    assert [p.requires_grad for p in net[0].parameters()] == [False, False]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_an_error_of_saliency_leaves_the_model_in_its_mode() -> None:
    net = nn.Sequential(nn.LSTM(4, 3), nn.Dropout())
    net[1] = nn.Identity()  # the output is that of the LSTM: a tuple
    with pytest.raises(TrainingError, match=r"one tensor \(batch, classes\), not tuple"):
        saliency(net, torch.randn(2, 4))
    assert net.training
    assert net[0].training


def test_saliency_is_the_same_in_validation_and_under_autocast() -> None:
    net, inputs = a_net().float(), images().float()
    expected = saliency(net, inputs)
    with torch.inference_mode():
        assert torch.allclose(saliency(net, images().float()), expected)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(saliency(net, inputs), expected)
        assert saliency(net, inputs.bfloat16()).dtype == torch.float32


# --- Gradients that are there, and those of a tensor within -----------------------------------


def test_a_layers_norm_is_that_of_all_its_gradients() -> None:
    net = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(4, 2), "idle": nn.Linear(2, 2)})
    net.scale = nn.Parameter(torch.ones(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    loss = (net["b"](net["a"](torch.randn(5, 3)).tanh()) * net.scale).square().mean()
    scaler.scale(loss).backward()
    norms = layer_gradient_norms(net, scaler.get_scale())
    assert list(norms) == ["(model)", "a", "b"]
    for name in ("a", "b"):
        both = torch.cat([p.grad.flatten() for p in net[name].parameters()])
        assert torch.allclose(norms[name], both.norm() / 1024)
    assert torch.allclose(norms["(model)"], net.scale.grad.norm() / 1024)


def test_sparse_gradients_have_a_norm() -> None:
    layer = nn.Sequential(nn.Embedding(10, 3, sparse=True))
    layer(torch.tensor([1, 1, 4])).sum().backward()
    assert layer_gradient_norms(layer)["0"] == pytest.approx((3 * 2**2 + 3) ** 0.5)


class Pipe(nn.Module):
    """Modules in a row, with something between them that acts on the output of ``inner``."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.view = nn.Flatten(0)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        inner = self.between(self.view(self.inner(self.first(x)))).view(-1, 4)
        return self.last(inner)


@pytest.mark.parametrize("name", ["first", "inner", "view"])
@pytest.mark.parametrize("between", [torch.tanh, F.relu_])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_of_an_output_is_that_of_finite_differences(
    name: str, between: Any, frozen: bool
) -> None:
    net = Pipe(between).double().requires_grad_(not frozen)
    inputs, target = torch.randn(3, 3).double(), torch.tensor([0, 1, 1])
    found = gradient_of(net, name, lambda: F.cross_entropy(net(inputs), target))
    assert all(p.grad is None for p in net.parameters())

    def moved(step: Tensor) -> Tensor:
        hook = net.get_submodule(name).register_forward_hook(lambda _, __, out: out + step)
        with torch.no_grad():
            loss = F.cross_entropy(net(inputs), target)
        hook.remove()
        return loss

    assert torch.allclose(found, differences(moved, torch.zeros_like(found)), atol=1e-9)
    assert not net.get_submodule(name)._forward_hooks


def test_autocast_takes_nothing_from_the_gradient_of_an_output() -> None:
    net, inputs = Pipe(torch.tanh), torch.randn(3, 3)
    expected = gradient_of(net, "inner", lambda: net(inputs).square().sum())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = gradient_of(net, "inner", lambda: net(inputs).square().sum())
    assert torch.equal(found, expected)


def test_a_module_that_is_not_there_or_not_used_is_named() -> None:
    net = Pipe(torch.tanh)
    x = torch.randn(2, 3)

    def fails(name: str, loss: Callable[[], Tensor]) -> str:
        with pytest.raises(TrainingError) as caught:
            gradient_of(net, name, loss)
        assert all(not module._forward_hooks for module in net.modules())
        return str(caught.value)

    assert "no module 'iner'; did you mean 'inner'?" in fails("iner", lambda: net(x).sum())
    assert "'last' was called 0 times" in fails("last", lambda: net.first(x).sum())
    assert "'inner' was called 2 times" in fails("inner", lambda: net(x).sum() + net(x).sum())
    unused = "does not depend on the output of 'first'"
    assert unused in fails("first", lambda: net.last(net.first(x).detach()).sum())
    assert unused in fails("first", lambda: net.first(x).detach().sum())
    net.last = nn.LSTM(4, 2)
    assert "'last' returns tuple" in fails("last", lambda: net(x)[0].sum())
