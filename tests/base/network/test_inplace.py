"""``memory.inplace``: activations overwrite their inputs where no number changes, not elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import assert_same, make, train_in

from base.names.registry import MODELS
from base.network.gradients import gradient_penalty
from base.network.inplace import work_in_place
from base.network.output_sizes import SamePadConv2d
from base.run.header import memory_options_in_use

DATA = (
    "data_loader={type: SyntheticDataLoader, args: {n_samples: 24, shape: [1, 4, 4], "
    "n_classes: 3, batch_size: 4, validation_split: 4}}"
)


class Operations(TorchDispatchMode):
    """Notes the names of torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func.overloadpacket).removeprefix("aten."))
        return func(*args, **(kwargs or {}))


def run(model: nn.Module, inputs: Tensor) -> tuple[list[Tensor], list[str]]:
    """Return the output and all gradients of one step, and the operations of the forward pass."""
    torch.manual_seed(0)
    inputs = inputs.clone().requires_grad_()
    with Operations() as seen:
        output = model(inputs)
    gradients = torch.autograd.grad(output.square().sum(), [inputs, *model.parameters()])
    return [output.detach(), *gradients], seen.names


def compared(model: nn.Module, inputs: Tensor) -> tuple[str, list[str]]:
    """Assert that no number differs in place; return the note and the operations."""
    plain = copy.deepcopy(model)
    note = work_in_place(model)
    expected, _ = run(plain, inputs)
    found, names = run(model, inputs)
    assert all(map(torch.equal, found, expected))
    assert not any(getattr(one, "inplace", False) for one in model.modules())
    return note, names


IMAGES = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
SAFE: dict[str, Callable[[], list[nn.Module]]] = {
    "relu_": lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()],
    "leaky_relu_": lambda: [nn.ConvTranspose2d(3, 4, 3), nn.LeakyReLU(0.1)],
    "hardtanh_": lambda: [SamePadConv2d(3, 4, 3, 2), nn.GroupNorm(2, 4), nn.ReLU6()],
    "hardtanh_ of a Linear": lambda: [nn.Linear(5, 2), nn.LayerNorm(2), nn.Hardtanh()],
}


@pytest.mark.parametrize("name", SAFE)
def test_a_safe_activation_works_in_place_and_no_number_changes(name: str) -> None:
    note, names = compared(nn.Sequential(*SAFE[name]()), IMAGES)
    assert note == "inplace: 1 of 1 activations"
    assert name.split()[0] in names


class Slices(nn.Module):
    """Calls the layers of a Sequential one by one, and keeps what is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.layers:
            kept.append(x := layer(x))
        return torch.cat(kept, dim=1)


class Shared(nn.Module):
    """Uses one activation in a Sequential and for a sum with its input."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), self.act)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x)
        return x + self.act(x - 0.1)


class SumWithInput(nn.Sequential):
    """A Sequential with a forward of its own, which needs the activation's input again."""

    def forward(self, x: Tensor) -> Tensor:
        x = self[0](x)
        return x + self[1](x)


class Doubled(nn.Conv2d):
    """A convolution whose own forward keeps its output."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept = super().forward(x)
        return self.kept


UNSAFE: dict[str, Callable[[], nn.Module]] = {
    "layers called one by one": Slices,
    "an activation of two places": Shared,
    "a forward of the model's own": lambda: SumWithInput(nn.Conv2d(3, 4, 3), nn.ReLU()),
    "a layer of the model's own": lambda: nn.Sequential(Doubled(3, 4, 3), nn.ReLU()),
    "on the inputs": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)),
    "after what needs its output": lambda: nn.Sequential(nn.Sigmoid(), nn.ReLU()),
    "what may be its input": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Identity(), nn.ReLU()),
    "what needs its input": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Dropout()),
    "a negative slope": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(-1.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_elsewhere_nothing_is_overwritten(name: str) -> None:
    _, names = compared(UNSAFE[name](), IMAGES)
    assert not [each for each in names if each.endswith("_") and "relu" in each]


def test_a_hook_keeps_the_layer_s_output() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    work_in_place(model)
    kept: list[Tensor] = []
    handle = model[0].register_forward_hook(lambda _, args, output: kept.append(output))
    model(IMAGES)
    assert torch.equal(kept[0], model[0](IMAGES))
    handle.remove()
    model[1].register_full_backward_hook(lambda *_: None)
    model(IMAGES.clone().requires_grad_()).sum().backward()


def test_a_penalty_on_the_slope_is_the_same() -> None:
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(36, 1))
    plain = copy.deepcopy(critic)
    assert work_in_place(critic) == "inplace: 1 of 1 activations"

    def penalty_and_gradients(model: nn.Module) -> list[Tensor]:
        torch.manual_seed(1)
        penalty = gradient_penalty(model, IMAGES, IMAGES.flip(0))
        found = torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True)
        return [penalty.detach(), *(one for one in found if one is not None)]

    pairs = zip(penalty_and_gradients(critic), penalty_and_gradients(plain), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_copy_of_the_model_switches_its_own_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    work_in_place(model)
    twin = copy.deepcopy(model)
    seen: list[tuple[bool, bool]] = []
    twin.register_forward_pre_hook(lambda *_: seen.append((twin[1].inplace, model[1].inplace)))
    twin(IMAGES)
    assert seen == [(True, False)]


def test_after_an_error_the_switch_is_off() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(1, 1))
    work_in_place(model)
    with pytest.raises(RuntimeError, match="shapes"):
        model(IMAGES)
    assert not model[1].inplace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.own, self.other = nn.ReLU(inplace=True), nn.SiLU()
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.other(self.own(self.stem(images) - 0.1)).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    "more",
    ["memory.precision=bf16", "memory.micro_batch=3", "memory.checkpoint_activations=[head]"],
)
def test_a_training_gives_the_same_weights(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Net", Net)
    plain = make("model={type: Net}", DATA, "metrics=[accuracy]", more)
    found = make("model={type: Net}", DATA, "metrics=[accuracy]", more, "memory.inplace=true")
    values = train_in(plain), train_in(found)
    assert "inplace: 2 of 3 activations" in memory_options_in_use(found)
    assert_same(found.model.state_dict(), plain.model.state_dict())
    assert values[0]["valid/loss"] == values[1]["valid/loss"]


def test_a_checkpointed_activation_keeps_its_input() -> None:
    from base.network.activations import checkpoint_activations

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    checkpoint_activations(model, ["1"])
    assert work_in_place(model) == "inplace: 0 of 1 activations"
