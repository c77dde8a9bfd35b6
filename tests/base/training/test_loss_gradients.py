"""The gradient of each loss: closed forms, finite differences, and nothing else touched."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from toy import assert_same, batches, make, train_in, weights

from base.errors import ConfigError
from base.training.loss_gradients import loss_gradients
from trainer.trainer import Trainer


def vectors(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.double, requires_grad=True)


def test_norms_and_cosines_are_those_of_the_closed_form() -> None:
    x = vectors(3.0, 4.0)
    losses = {"square": x.square().sum() / 2, "first": 2 * x[0], "against": -x.sum()}
    values = loss_gradients(losses, [x])
    assert {name: value.item() for name, value in values.items()} == pytest.approx(
        {
            "grad_norm/square": 5.0,
            "grad_norm/first": 2.0,
            "grad_norm/against": math.sqrt(2),
            "grad_cosine/square/first": 3 / 5,
            "grad_cosine/square/against": -7 / (5 * math.sqrt(2)),
            "grad_cosine/first/against": -1 / math.sqrt(2),
        }
    )


def small_network() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, torch.randn(5, 3, dtype=torch.double), torch.randint(0, 2, (5,))


def two_losses(model: nn.Module, inputs: Tensor, target: Tensor) -> dict[str, Tensor]:
    scores = model(inputs)
    return {"fit": F.cross_entropy(scores, target), "size": scores.square().mean()}


def test_norms_and_cosines_are_those_of_finite_differences() -> None:
    model, inputs, target = small_network()
    values = loss_gradients(two_losses(model, inputs, target), model.parameters())
    slopes: dict[str, list[float]] = {"fit": [], "size": []}
    step = 1e-6
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for i in range(len(flat)):
                flat[i] += step
                above = two_losses(model, inputs, target)
                flat[i] -= 2 * step
                below = two_losses(model, inputs, target)
                flat[i] += step
                for name, slope in slopes.items():
                    slope.append(((above[name] - below[name]) / (2 * step)).item())
    fit, size = (torch.tensor(slope) for slope in slopes.values())
    assert values["grad_norm/fit"].item() == pytest.approx(fit.norm().item(), rel=1e-6)
    assert values["grad_norm/size"].item() == pytest.approx(size.norm().item(), rel=1e-6)
    cosine = F.cosine_similarity(fit, size, dim=0).item()
    assert values["grad_cosine/fit/size"].item() == pytest.approx(cosine, rel=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_cosine_below_0_means_that_one_loss_grows_as_the_other_falls(sign: int) -> None:
    x = vectors(1.0, -2.0, 0.5)

    def both() -> tuple[Tensor, Tensor]:
        return x.square().sum(), sign * (x[0] - x[1] + x[2] ** 3).exp()

    one, other = both()
    cosine = loss_gradients({"one": one, "other": other}, [x])["grad_cosine/one/other"]
    one.backward()
    with torch.no_grad():
        x -= 1e-4 * x.grad
    assert (both()[1] > other) == (cosine < 0) == (sign < 0)


def test_what_is_frozen_or_not_reached_counts_nothing() -> None:
    x, frozen, alone = vectors(3.0, 4.0), vectors(1.0).requires_grad_(False), vectors(7.0)
    losses = {"a": x.square().sum() / 2 * frozen[0], "b": alone.sum(), "none": torch.zeros(())}
    values = loss_gradients(losses, [x, frozen, alone])
    assert [values[f"grad_norm/{name}"].item() for name in losses] == [5, 1, 0]
    assert all(values[f"grad_cosine/{pair}"] == 0 for pair in ("a/b", "a/none", "b/none"))


def test_sparse_gradients_count() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    values = loss_gradients({"a": table(torch.tensor([1, 1, 2])).sum()}, table.parameters())
    assert values["grad_norm/a"].item() == pytest.approx(math.sqrt(2 * 2**2 + 2 * 1**2))


def test_what_the_scale_has_saved_is_not_lost_in_half_precision_weights() -> None:
    x = torch.ones(4, dtype=torch.half, requires_grad=True)
    values = loss_gradients({"a": (x * 1e-4).sum().float() * 1e-4}, [x], scale=2.0**16)
    assert values["grad_norm/a"].item() == pytest.approx(2e-8, rel=0.01)


class NoWait(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        assert "_local_scalar_dense" not in str(function), "waits for the device"
        return function(*args, **(kwargs or {}))


def test_neither_grad_nor_random_streams_nor_graph_change_and_nothing_waits() -> None:
    model, inputs, target = small_network()
    model.append(nn.Dropout(0.5))
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, number)
    losses = two_losses(model, inputs, target)
    state = torch.get_rng_state()
    with NoWait():
        values = loss_gradients(losses, model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(value.requires_grad for value in values.values())
    for number, parameter in enumerate(model.parameters()):
        assert parameter.grad.eq(number).all()
    sum(losses.values()).backward()  # the graph is still there


# --- In a training --------------------------------------------------------------------------------


class TwoLosses(Trainer):
    """Cross entropy with a weight, and the mean square of the scores times a factor."""

    factor = 1.0

    def compute_losses(self, outputs: Any, batch: Any) -> Any:
        size = (outputs.float() * self.factor).square().mean()
        return {**super().compute_losses(outputs, batch), "size": size}


FIT = "loss={type: cross_entropy, name: fit, weight: 0.5}"
DROPOUT = "model.args={n_inputs: 5, hidden: [6], n_outputs: 3, dropout: 0.5}"


def flat_gradient(loss: Tensor, model: nn.Module) -> Tensor:
    parts = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_that_are_due_log_the_gradients_of_the_weighted_losses(accumulate: int) -> None:
    options = (FIT, "trainer.loss_gradients=2 steps", f"memory.accumulate={accumulate}")
    trainer = make(*options, "trainer.epochs=1", trainer=TwoLosses)
    twin = make().model
    twin.load_state_dict(trainer.model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    expected: list[list[Tensor]] = []
    data = list(batches(trainer))
    windows = [data[i : i + accumulate] for i in range(0, 5, accumulate)]
    for step, window in enumerate(windows, start=1):
        for inputs, target in window:
            scores = twin(inputs)
            losses = 0.5 * F.cross_entropy(scores, target), scores.square().mean()
            (sum(losses) / len(window)).backward(retain_graph=True)
        if step % 2 == 0:
            fit, size = (flat_gradient(loss, twin) for loss in losses)
            cosine = F.cosine_similarity(fit, size, dim=0)
            expected.append([fit.norm(), size.norm(), cosine])
        optimizer.step()
        optimizer.zero_grad()
    values = train_in(trainer)
    names = ("grad_norm/fit", "grad_norm/size", "grad_cosine/fit/size")
    means = torch.tensor(expected).mean(dim=0).tolist()
    assert [values[f"train/{name}"] for name in names] == pytest.approx(means, rel=1e-4)


@pytest.mark.parametrize("backward", ["sum", "separate"])
@pytest.mark.parametrize("memory", ["{}", "{precision: bf16}", "{precision: fp16, accumulate: 2}"])
def test_a_run_that_looks_at_its_gradients_ends_with_the_same_bits(
    memory: str, backward: str
) -> None:
    options = (FIT, DROPOUT, f"memory={memory}", f"trainer.backward={backward}")
    plain = make(*options, trainer=TwoLosses)
    train_in(plain)
    looking = make(*options, "trainer.loss_gradients=1 steps", trainer=TwoLosses)
    train_in(looking)
    assert_same(weights(looking), weights(plain))


def gradients_of_first_step(precision: str, factor: float) -> dict[str, float]:
    options = (FIT, "trainer.loss_gradients=1 steps", f"memory.precision={precision}")
    trainer = make(*options, trainer=TwoLosses)
    trainer.factor = factor
    with trainer.precision.autocast():
        values = trainer.train_step(next(batches(trainer, 1)))
    return {name: value.item() for name, value in values.items() if name.startswith("grad_")}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_small_gradients_survive_reduced_precision(precision: str) -> None:
    factor = 3e-4  # d(size)/d(scores) is about 1e-8: below the least number of fp16
    reduced, full = (gradients_of_first_step(each, factor) for each in (precision, "fp32"))
    assert 0 < full["grad_norm/size"] < 1e-6
    assert reduced == pytest.approx(full, rel=0.03)


def test_reduced_precision_ends_before_the_gradients_are_compared() -> None:
    trainer = make(
        FIT, "memory.precision=bf16", "trainer.loss_gradients=1 steps", trainer=TwoLosses
    )
    inputs, target = next(batches(trainer, 1))
    with torch.autocast("cpu", torch.bfloat16):
        scores = trainer.model(inputs)
        losses = 0.5 * F.cross_entropy(scores, target), scores.float().square().mean()
    fit, size = (flat_gradient(loss, trainer.model) for loss in losses)
    with trainer.precision.autocast():
        values = trainer.train_step((inputs, target))
    cosine = F.cosine_similarity(fit, size, dim=0).item()
    assert values["grad_cosine/fit/size"].item() == pytest.approx(cosine, rel=1e-5)


def test_gradients_that_overflow_in_fp16_show_as_not_finite() -> None:
    values = gradients_of_first_step("fp16", 1e3)
    assert not math.isfinite(values["grad_norm/size"])
    assert math.isfinite(values["grad_norm/fit"])


@pytest.mark.parametrize("option", ["backward=separate", "loss_gradients=1 epoch"])
def test_several_backward_passes_through_a_compiled_model_are_refused(option: str) -> None:
    """Torch raises at the first step, or gives wrong gradients where its cache is warm."""
    key = option.partition("=")[0]
    with pytest.raises(
        ConfigError, match=rf"memory\.compile: cannot be combined with trainer\.{key}"
    ):
        make("memory.compile=true", f"trainer.{option}")
