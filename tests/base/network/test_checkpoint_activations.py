"""``memory.checkpoint_activations`` refuses what a second forward would move once more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toy import CPU

from base.errors import ConfigError, TrainingError
from base.network.activations import OffloadedActivations, checkpoint_activations


class Moving(nn.Module):
    """Counts its calls in a buffer, in place or by a new tensor."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place, self.inner = in_place, nn.Linear(3, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return self.inner(x)


class Overwriting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2).exp()


class Whole(nn.Sequential):
    def __init__(self, part: nn.Module) -> None:
        super().__init__(nn.Linear(3, 3), part, nn.Linear(3, 2))


def gradients(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(0)
    model(torch.randn(4, 3)).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*spectral_norm.*deprecated:FutureWarning")
def test_a_spectral_norm_is_refused(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = Whole(nn.Sequential(norm(nn.Linear(3, 3)), nn.ReLU()))
    with pytest.raises(
        ConfigError, match="'1' contains a spectral norm, whose vectors would be updated twice"
    ):
        checkpoint_activations(model, ["1"])


def test_all_that_is_refused_is_told_together() -> None:
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.BatchNorm1d(3)))
    with pytest.raises(ConfigError) as caught:
        checkpoint_activations(model, ["0", "1"])
    assert len(caught.value.problems) == 2


def test_a_weight_norm_holds_nothing_that_moves() -> None:
    torch.manual_seed(1)
    part = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Dropout(0.5))
    model = Whole(part)
    plain = gradients(model)
    model.zero_grad()
    checkpoint_activations(model, ["1"])
    for one, other in zip(gradients(model), plain, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Moving(in_place=False), "'1' changes the buffer 'calls' in its forward"),
        (Moving(in_place=True), "'1' changes the buffer 'calls' in its forward"),
        (Overwriting(), "'1' changes its input 0 in its forward"),
    ],
    ids=["a new buffer", "a buffer in place", "an input"],
)
def test_what_moves_is_found_at_the_first_call(part: nn.Module, message: str) -> None:
    model = Whole(part)
    checkpoint_activations(model, ["1"])
    with pytest.raises(TrainingError, match=message):
        gradients(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_recomputes_too() -> None:
    torch.manual_seed(1)
    model = Whole(nn.Sequential(nn.Linear(3, 3), nn.Tanh()))
    plain = gradients(model)
    model.zero_grad()
    checkpoint_activations(model, ["1"])
    model.compile()
    for one, other in zip(gradients(model), plain, strict=True):
        torch.testing.assert_close(one, other)


# --- Offloaded ------------------------------------------------------------------------------------


def test_weights_stay_where_they_are_and_activations_go(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Whole(nn.Sequential(nn.Linear(3, 3), nn.Sigmoid()))
    plain = gradients(model)
    model.zero_grad()
    offloaded = OffloadedActivations(CPU)
    packed = []
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: packed.append(offloaded.pack_hook(tensor)) or packed[-1],
        offloaded.unpack_hook,
    ):
        loss = model(torch.randn(4, 3)).square().sum()
    loss.backward()
    there = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = [one for one, _ in packed if isinstance(one, Tensor)]
    assert len(kept) == 2, "the weights of all layers but the first"
    assert all(tensor.untyped_storage().data_ptr() in there for tensor in kept)
    gone = [tensor for _, tensor in packed if isinstance(tensor, Tensor)]
    assert len(gone) == len(packed) - len(kept) > 0
    for parameter, gradient in zip(model.parameters(), plain, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_a_weight_that_was_changed_meanwhile_is_noticed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with OffloadedActivations(CPU):
        loss = model(torch.randn(4, 3)).sum()
    with torch.no_grad():
        model[1].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
