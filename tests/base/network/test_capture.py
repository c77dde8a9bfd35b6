"""What `capture:` records, against the same numbers taken by hand from one big batch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toy import NETWORKS, assert_resumes, assert_same, make, train_in

from base.callbacks import Callback
from base.config.durations import RunLength
from base.errors import ConfigError
from base.names.registry import MODELS
from base.network.activations import checkpoint_activations
from base.network.capture import LIMITS, Capture
from base.network.gradients import gradient_penalty
from logger.writers import Histogram, Writer
from trainer.trainer import Trainer

OFF = torch.amp.GradScaler("cpu", enabled=False)


class Kept(Writer):
    """Keeps what is written, by tag."""

    def __init__(self) -> None:
        self.scalars: dict[str, float] = {}
        self.histograms: dict[str, Histogram] = {}
        self.images: dict[str, Tensor] = {}
        self.steps: list[int] = []

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        if all(tag.startswith("capture/") for tag in values):
            self.scalars.update(values)
            self.steps.append(step)

    def add_histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        self.histograms.update(histograms)
        self.steps.append(step)

    def add_images(self, tag: str, images: Tensor, step: int) -> None:
        self.images[tag] = images
        self.steps.append(step)


def rule(
    match: Any = "*", of: str = "activations", record: Any = ("scalars",), every: str = "1 steps"
) -> dict[str, Any]:
    return {"match": match, "of": of, "record": list(record), "every": every}


def capture(model: nn.Module, *rules: Mapping[str, Any]) -> Capture:
    return Capture(rules, model, RunLength(steps_per_epoch=5, total_steps=20))


def record(
    model: nn.Module,
    rules: Iterable[Mapping[str, Any]],
    batches: list[Tensor],
    loss: Callable[[Tensor], Tensor] = lambda out: out.square().mean(),
    scaler: torch.amp.GradScaler = OFF,
) -> Kept:
    """Make one step of these batches as the trainer does, and return what it left."""
    kept, seen = Kept(), capture(model, *rules)
    for batch in batches:
        seen.start(1)
        part = scaler.scale(loss(model(batch)) / len(batches))
        with seen.backward(scaler):
            part.backward()
    seen.read_parameters(model.parameters(), scaler)
    seen.finish(kept)
    assert hooks(model) == 0
    return kept


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def a_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(8, 3)
    ).double()


def images(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed)).double()


def numbers(value: Tensor) -> dict[str, float]:
    value = value.detach().double()
    return {
        "mean": value.mean().item(),
        "std": value.std(correction=0).item(),
        "norm": value.norm().item(),
        "zeros": (value == 0).double().mean().item(),
    }


def scalars(kept: Kept, tag: str) -> dict[str, float]:
    return {name: kept.scalars[f"capture/{tag}/{name}"] for name in numbers(torch.ones(1))}


def by_hand(net: nn.Sequential, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return each layer's output and its gradient, for one batch."""
    outputs = [inputs]
    for layer in net:
        outputs.append(layer(outputs[-1]))
        outputs[-1].retain_grad()
    outputs[-1].square().mean().backward()
    gradients = [output.grad for output in outputs[1:]]
    net.zero_grad()
    return outputs[1:], gradients


KINDS = [rule(of=of) for of in ("activations", "gradients", "parameters")]


@pytest.mark.parametrize("n_batches", [1, 2, 6])
def test_the_scalars_of_a_step_are_those_of_one_big_batch(n_batches: int) -> None:
    net, inputs = a_net(), images(12)
    outputs, gradients = by_hand(net, inputs)
    kept = record(net, KINDS, list(inputs.chunk(n_batches)))
    for index, (output, gradient) in enumerate(zip(outputs, gradients, strict=True)):
        assert scalars(kept, f"{index}/activation") == pytest.approx(numbers(output), rel=1e-9)
        assert scalars(kept, f"{index}/gradient") == pytest.approx(numbers(gradient), rel=1e-9)
    for name, parameter in net.named_parameters():
        expected = pytest.approx(numbers(parameter.grad), rel=1e-9)
        assert scalars(kept, f"{name}/gradient") == expected
    assert len(kept.scalars) == 4 * (2 * len(outputs) + 6)


def test_the_histogram_of_a_step_is_that_of_one_big_batch() -> None:
    net, inputs = a_net(), images(12)
    outputs, gradients = by_hand(net, inputs)
    rules = [rule(of=of, record=["histograms"]) for of in ("activations", "gradients")]
    kept = record(net, rules, list(inputs.chunk(3)))
    for tag, value in [("1/activation", outputs[1]), ("0/gradient", gradients[0])]:
        expected, _ = torch.histogram(value.detach().float(), torch.tensor(LIMITS))
        assert kept.histograms[f"capture/{tag}"].counts == expected.tolist()
    assert sum(kept.histograms["capture/1/activation"].counts) == outputs[1].numel()
    assert not kept.scalars


def test_a_bucket_is_a_tenth_wide_and_all_of_float32_has_one() -> None:
    assert sorted(set(LIMITS)) == LIMITS
    assert max(LIMITS) > 1e38
    upper = [limit for limit in LIMITS if limit > 0]
    assert upper[0] == 1e-12
    assert all(b / a == pytest.approx(1.1) for a, b in pairwise(upper))


def test_an_image_shows_the_channels_of_the_first_sample() -> None:
    net, inputs = a_net(), images(12)
    outputs, gradients = by_hand(net, inputs)
    rules = [rule(of=of, record=["images"]) for of in ("activations", "gradients", "parameters")]
    kept = record(net, rules, list(inputs.chunk(3)))
    for tag, value in [("0/activation", outputs[0][0]), ("2/gradient", gradients[2][0])]:
        image = kept.images[f"capture/{tag}"]  # (channel, 1, height, width)
        expected = (value - value.min()) / (value.max() - value.min())
        assert torch.allclose(image[:, 0], expected.float(), atol=1e-5)
    assert kept.images["capture/2.weight/gradient"].shape == (4, 1, 3, 3)
    # What has no height and width gives no image.
    assert [
        tag for tag in kept.images if tag.split("/")[1] in ("3", "4", "4.weight", "4.bias")
    ] == []


def test_an_image_of_nothing_but_one_value_or_with_no_number_is_shown() -> None:
    net = nn.Sequential(nn.Identity())
    constant = torch.full((2, 100, 3, 3), 7.0, requires_grad=True)
    kept = record(net, [rule(record=["images"])], [constant])
    assert torch.equal(kept.images["capture/0/activation"], torch.zeros(64, 1, 3, 3))
    broken = torch.tensor([float("nan"), float("inf"), -1.0, 1.0]).view(1, 1, 2, 2).requires_grad_()
    kept = record(net, [rule(record=["images", "scalars", "histograms"])], [broken])
    assert kept.images["capture/0/activation"].flatten().tolist() == [0.5, 0.5, 0.0, 1.0]
    assert sum(kept.histograms["capture/0/activation"].counts) == 2


@pytest.mark.parametrize("scale", [2.0**16, 3000.0])
def test_the_loss_scale_is_taken_out_of_gradients(scale: float) -> None:
    net, inputs = a_net(), images(4)
    _, gradients = by_hand(net, inputs)
    rules = [rule("0", of, ["scalars", "images"]) for of in ("gradients",)]
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    kept = record(net, [*rules, rule("0.bias", "parameters")], [inputs], scaler=scaler)
    assert scalars(kept, "0/gradient") == pytest.approx(numbers(gradients[0]), rel=1e-9)
    bias = net[0].bias.grad / scale
    assert scalars(kept, "0.bias/gradient") == pytest.approx(numbers(bias), rel=1e-9)


def test_gradients_of_fp16_are_unscaled_in_full_precision_and_overflow_is_recorded() -> None:
    """The gradients are 1e-9, which is 0 in fp16 without the scale."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    inputs, scaler = torch.randn(8, 4), torch.amp.GradScaler("cpu", init_scale=2.0**16)

    def run(factor: float) -> Kept:
        def loss(out: Tensor) -> Tensor:
            assert out.dtype == torch.float16
            return out.float().sum() * factor

        rules = [
            rule(of=of, record=["scalars", "histograms"]) for of in ("gradients", "parameters")
        ]
        net.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            return record(net, rules, [inputs], loss, scaler)

    assert run(1e-9).scalars["capture/1/gradient/mean"] == pytest.approx(1e-9, rel=0.01)
    kept = run(10.0)
    assert kept.scalars["capture/1/gradient/norm"] == float("inf")
    assert kept.scalars["capture/1.bias/gradient/mean"] == float("inf")
    assert kept.scalars["capture/1/gradient/zeros"] == 0
    assert sum(kept.histograms["capture/1/gradient"].counts) == 0


def test_only_a_due_step_is_recorded_and_only_then_there_are_hooks() -> None:
    net, kept = a_net(), Kept()
    seen = capture(net, rule("0", every="3 steps"), rule("4", every="1 epochs"))
    watched = []
    for step in range(1, 11):
        for batch in images(4).chunk(2):
            seen.start(step)
            watched.append(hooks(net))
            with seen.backward(OFF):
                net(batch).sum().backward()
        seen.finish(kept)
        assert hooks(net) == 0
    assert kept.steps == [3, 5, 6, 9, 10]
    assert watched == [int(step in kept.steps) for step in range(1, 11) for _ in range(2)]


def test_rules_add_up() -> None:
    net = a_net()
    rules = [rule("0"), rule("0", record=["histograms"]), rule("0", "gradients"), rule(["0", "4"])]
    kept = record(net, rules, [images(2)])
    assert {tag.rpartition("/")[0] for tag in kept.scalars} == {
        "capture/0/activation",
        "capture/0/gradient",
        "capture/4/activation",
    }
    assert list(kept.histograms) == ["capture/0/activation"]


def trained(rules: list[Mapping[str, Any]], steps: int = 4) -> tuple[list[Tensor], Tensor]:
    """Train with dropout, in-place activations and a scaler; return weights and random state."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    scaler, seen, kept = torch.amp.GradScaler("cpu"), capture(net, *rules), Kept()
    for step in range(1, steps + 1):
        for batch in images(8, seed=step).float().chunk(2):
            seen.start(step)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = net(batch).float().square().mean() / 2
            with seen.backward(scaler):
                scaler.scale(loss).backward()
        seen.read_parameters(net.parameters(), scaler)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        seen.finish(kept)
    assert len(kept.scalars) == (len(rules) > 0) * 4 * (6 + 6 + 6)
    return [*net.state_dict().values()], torch.get_rng_state()


def test_recording_changes_no_number_of_the_training() -> None:
    formats = ["scalars", "histograms", "images"]
    rules = [rule(of=of, record=formats) for of in ("activations", "gradients", "parameters")]
    (watched, watched_random), (plain, plain_random) = trained(rules), trained([])
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))
    assert torch.equal(watched_random, plain_random)


def test_what_is_overwritten_in_place_afterwards_is_recorded_as_it_was() -> None:
    net, inputs = a_net().float(), images(4).float()
    outputs, gradients = by_hand(net, inputs)
    net[1].inplace = True
    formats = ["scalars", "images"]
    rules = [rule(["0", "1"], of, formats) for of in ("activations", "gradients")]
    kept = record(net, rules, [inputs])
    for index in (0, 1):
        tag = f"{index}/activation"
        assert scalars(kept, tag) == pytest.approx(numbers(outputs[index]))
        assert scalars(kept, f"{index}/gradient") == pytest.approx(numbers(gradients[index]))
        first = outputs[index][0].detach().float()
        expected = (first - first.min()) / (first.max() - first.min())
        assert torch.allclose(kept.images[f"capture/{tag}"][:, 0], expected, atol=1e-5)


def test_a_view_that_is_overwritten_in_place_breaks_nothing() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Flatten(0), nn.ReLU(inplace=True))
    rules = [rule(of="gradients"), rule()]
    kept = record(net, rules, [torch.randn(3, 4)])
    assert "capture/1/activation/mean" in kept.scalars
    assert "capture/1/gradient/mean" not in kept.scalars
    assert "capture/0/gradient/mean" in kept.scalars


class Several(nn.Module):
    """Gives tensors in a dict and tuples, some of them no real numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 2)
        self.heads = Heads()

    def forward(self, x: Tensor) -> Tensor:
        out, (hidden, _) = self.rnn(x)
        return out.sum() + 2 * hidden.sum() + self.heads(x)["list"][0].sum()


class Heads(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"list": [x * 2, x > 0, None], "name": "x", "none": x[:0]}


def test_of_an_output_of_several_tensors_each_is_recorded() -> None:
    net, x = Several(), torch.randn(5, 2, 3)
    kept = record(net, [rule(), rule(of="gradients")], [x], loss=lambda out: out)
    assert {tag.rpartition("/")[0].removeprefix("capture/") for tag in kept.scalars} == {
        "rnn/activation/0", "rnn/activation/1/0", "rnn/activation/1/1",
        "rnn/gradient/0", "rnn/gradient/1/0", "heads/activation/list/0",
    }  # fmt: skip
    assert scalars(kept, "heads/activation/list/0") == pytest.approx(numbers(x * 2))
    assert scalars(kept, "rnn/gradient/1/0") == pytest.approx(numbers(torch.full((1, 2, 2), 2.0)))


class Twice(nn.Module):
    """Uses one layer twice, under two names, the second time in a part without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.again = self.layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = self.again(x)
        return self.layer(x) * fixed


def test_calls_of_a_shared_module_count_together_and_no_grad_has_no_gradient() -> None:
    net, x = Twice(), torch.randn(4, 3)
    with torch.no_grad():
        out = net.layer(x)
    kept = record(net, [rule(), rule(of="gradients")], [x], loss=lambda out: out.sum())
    assert len(kept.scalars) == 8
    assert scalars(kept, "layer/activation") == pytest.approx(numbers(torch.cat([out, out])))
    assert scalars(kept, "layer/gradient") == pytest.approx(numbers(out))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_what_a_checkpoint_computes_again_does_not_count_again(use_reentrant: bool) -> None:
    def nested() -> nn.Sequential:
        net = a_net()
        return nn.Sequential(net[:3], net[3:])

    batches = [batch.requires_grad_() for batch in images(6).chunk(2)]
    expected = record(nested(), KINDS, batches).scalars
    net = nested()
    if use_reentrant:
        forward = net[0].forward
        net[0].forward = lambda x: checkpoint(forward, x, use_reentrant=True)
    else:
        checkpoint_activations(net, ["0"])
    found = record(net, KINDS, batches).scalars
    assert found == pytest.approx(expected, rel=1e-9)
    assert "capture/0.1/gradient/mean" in found


def test_a_penalty_that_computes_activations_again_does_not_count_them_again() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 1))
    points, kept = torch.ones(5, 3), []

    def with_penalty(out: Tensor) -> Tensor:
        return out.sum() + gradient_penalty(net, points, points)

    for is_checkpointed in (False, True):
        if is_checkpointed:
            checkpoint_activations(net, ["0"])
        for loss in (Tensor.sum, with_penalty):
            kept.append(record(net, [rule()], [points], loss).scalars)
    assert kept[0] == pytest.approx(kept[2])
    assert kept[1] == pytest.approx(kept[3])


def test_an_output_that_a_penalty_gives_no_gradient_is_left_out() -> None:
    """Torch calls its hooks with None: the slope of a convolution does not depend on its input."""
    critic = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LeakyReLU(), nn.Conv2d(2, 1, 4), nn.Flatten())
    points = images(4).float()
    features = critic[:2](points)
    (expected,) = torch.autograd.grad(critic[2:](features).sum(), features)

    def loss(out: Tensor) -> Tensor:
        return out.sum() + gradient_penalty(critic, points, points)

    kept = record(critic, [rule("1", "gradients")], [points], loss)
    assert kept.scalars["capture/1/gradient/norm"] == pytest.approx(float(expected.norm()))


def test_the_gradients_of_several_backward_passes_add_up() -> None:
    """Two losses, each with its own pass through the same graph, count as their sum does."""
    rules = [rule(of=of, record=["scalars", "images"]) for of in ("gradients", "parameters")]
    net, inputs, apart = a_net(), images(4), Kept()
    together = record(net, rules, [inputs], loss=lambda out: out.square().mean() + out.sum())
    net.zero_grad()
    seen = capture(net, *rules)
    seen.start(1)
    out = net(inputs)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # each network has a scaler of its own
    with seen.backward(OFF):
        out.square().mean().backward(retain_graph=True)
    with seen.backward(scaler):
        scaler.scale(out.sum()).backward()
    seen.finish(apart)
    modules = {tag: value for tag, value in together.scalars.items() if tag.count(".") == 0}
    assert len(modules) == 4 * 5
    assert apart.scalars == pytest.approx(modules, rel=1e-9)
    for tag, image in apart.images.items():
        assert torch.allclose(image, together.images[tag])


def test_gradients_that_a_step_takes_by_itself_are_left_out() -> None:
    """The slope within a penalty is no gradient of the loss; what the loss does through it is."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    points = torch.randn(5, 3).double()
    outputs: list[Tensor] = []
    hook = critic[0].register_forward_hook(lambda _, __, out: outputs.append(out))
    penalty = gradient_penalty(critic, points, points)
    hook.remove()
    (expected,) = torch.autograd.grad(penalty, outputs)

    kept, seen = Kept(), capture(critic, rule("0", "gradients"))
    for _ in range(2):
        seen.start(1)
        penalty = gradient_penalty(critic, points, points)
        with seen.backward(OFF):
            penalty.backward()
    seen.finish(kept)
    twice = torch.cat([expected, expected])
    assert scalars(kept, "0/gradient") == pytest.approx(numbers(twice))


def test_only_the_parameters_of_the_optimizer_that_steps_are_read() -> None:
    net = a_net()
    kept, seen = Kept(), capture(net, rule("*.weight", "parameters"))
    seen.start(1)
    with seen.backward(OFF):
        net(images(2)).sum().backward()
    seen.read_parameters(net[0].parameters(), OFF)
    for parameter in net.parameters():
        parameter.grad.zero_()  # as clipping and the step may
    seen.finish(kept)
    assert list(kept.scalars) == [f"capture/0.weight/gradient/{n}" for n in numbers(torch.ones(1))]
    assert kept.scalars["capture/0.weight/gradient/norm"] > 0


def test_parameters_without_a_gradient_and_sparse_ones_are_no_trouble() -> None:
    net = nn.Sequential(nn.Embedding(10, 3, sparse=True), nn.Linear(3, 2))
    net[1].requires_grad_(False)
    rules = [rule(of="parameters", record=["scalars", "histograms"])]
    kept = record(net, rules, [torch.tensor([1, 1, 4])], loss=lambda out: out.sum())
    assert scalars(kept, "0.weight/gradient") == pytest.approx(
        numbers(net[0].weight.grad.to_dense())
    )
    assert list(kept.histograms) == ["capture/0.weight/gradient"]


@pytest.mark.parametrize("fault", ["forward", "backward"])
@pytest.mark.parametrize("is_removed", [True, False])
def test_after_an_error_no_hook_is_left_and_the_next_step_is_whole(
    fault: str, is_removed: bool
) -> None:
    net, inputs, kept = a_net(), images(4), Kept()
    seen = capture(net, *KINDS)
    expected = record(a_net(), KINDS, [inputs]).scalars
    seen.start(1)

    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    def step() -> None:
        out = net(inputs)
        if fault == "backward":
            out.register_hook(fail)
        with seen.backward(OFF):
            out.sum().backward()

    breaking = net[4].register_forward_pre_hook(fail) if fault == "forward" else None
    with pytest.raises(RuntimeError, match="broken"):
        step()
    assert hooks(net) == 5
    if is_removed:
        seen.remove()
        assert hooks(net) == 0
    if breaking:
        breaking.remove()
    net.zero_grad()
    seen.start(2)
    assert hooks(net) == 5
    with seen.backward(OFF):
        net(inputs).square().mean().backward()
    seen.read_parameters(net.parameters(), OFF)
    seen.finish(kept)
    assert kept.scalars == expected


def tensors_of_shape(*shape: int) -> int:
    gc.collect()
    return sum(type(thing) is Tensor and thing.shape == shape for thing in gc.get_objects())


def test_nothing_is_kept_alive_after_the_step() -> None:
    """Even where the graph of the step lives on, and with it the places of its hooks."""
    net, kept = a_net(), Kept()
    formats = ["scalars", "histograms", "images"]
    seen = capture(net, *[rule(of=of, record=formats) for of in ("activations", "gradients")])
    seen.start(1)
    out = net(images(7))
    with seen.backward(OFF):
        out.square().mean().backward(retain_graph=True)
    during = tensors_of_shape(7, 2, 2, 2)
    seen.finish(kept)
    assert tensors_of_shape(7, 2, 2, 2) == during - 1  # the sum, were another pass to add to it
    written = dict(kept.scalars)
    with seen.backward(OFF):
        out.sum().backward()
    seen.finish(kept)
    assert kept.scalars == written
    assert not seen._handles
    del out
    assert tensors_of_shape(7, 2, 2, 2) == 0


def test_within_a_window_no_gradient_outlives_its_batch() -> None:
    net = a_net()
    seen = capture(net, *KINDS)
    for batch in images(14).chunk(2):
        seen.start(1)
        with seen.backward(OFF):
            net(batch).square().mean().backward()
        assert tensors_of_shape(7, 2, 2, 2) == 0


def test_a_step_that_is_not_due_costs_no_hook_even_within_the_backward_pass() -> None:
    net, kept = a_net(), Kept()
    seen = capture(net, *[rule(of=kind["of"], every="2 steps") for kind in KINDS])
    seen.start(1)
    out = net(images(2))
    assert out._backward_hooks is None
    with seen.backward(OFF):
        out.sum().backward()
    seen.read_parameters(net.parameters(), OFF)
    seen.finish(kept)
    assert kept.scalars == {}


def test_rules_that_match_nothing_are_told_together() -> None:
    rules = [rule("9"), rule("0"), rule("4.wieght", "parameters")]
    with pytest.raises(ConfigError) as caught:
        capture(a_net(), *rules)
    places = [problem.where for problem in caught.value.problems]
    assert places == ["capture.0.match", "capture.2.match"]
    assert "'9'" in str(caught.value)
    assert "did you mean '4.weight'" in str(caught.value)


def test_the_inside_of_a_compiled_model_is_refused() -> None:
    net = a_net()
    net.compile(backend="eager")
    capture(net, rule(of="parameters"))
    with pytest.raises(ConfigError, match=r"capture\.0\.match: .* remove memory\.compile"):
        capture(net, rule("0"))


# --- In a trainer -----------------------------------------------------------------------------

ALL = "capture=[{of: activations, every: 2 steps}, {of: gradients, every: 2 steps}, " + (
    "{of: parameters, record: [scalars, histograms], every: 2 steps}]"
)


class Show(Callback):
    """Puts a writer of the test's own beside the others."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def on_start(self, trainer: Any) -> None:
        trainer.writers.writers.append(self.writer)


def watch(*overrides: str, **how: Any) -> tuple[Kept, Any]:
    trainer = make(*overrides, **how)
    trainer.callbacks["Show"] = Show(kept := Kept())
    train_in(trainer)
    return kept, trainer


def test_a_step_of_two_batches_is_recorded_as_one_of_twice_the_size() -> None:
    one, _ = watch(ALL, "data_loader.args.batch_size=8", "trainer.steps=2", "trainer.epochs=null")
    two, _ = watch(ALL, "memory.accumulate=2", "trainer.steps=2", "trainer.epochs=null")
    assert len(one.scalars) == 4 * (5 + 5 + 4)
    assert two.scalars == pytest.approx(one.scalars, rel=1e-4, abs=1e-7)
    assert two.steps == one.steps == [2, 2]


def test_a_training_with_capture_ends_as_one_without_and_resumes(tmp_path: Path) -> None:
    (_, watched), (_, plain) = watch(ALL), watch()
    assert_same(watched.model.state_dict(), plain.model.state_dict())
    assert_resumes(tmp_path, ALL, "memory.accumulate=2")


def test_in_fp16_gradients_come_without_the_scale() -> None:
    rule = "capture=[{match: hidden.0, of: gradients, every: 1 steps}]"
    short = ("trainer.steps=1", "trainer.epochs=null")
    full, _ = watch(rule, *short)
    half, _ = watch(rule, *short, "memory.precision=fp16")
    assert half.scalars == pytest.approx(full.scalars, rel=0.02)


class Breaks(Trainer):
    def train_step(self, batch: Any) -> Any:
        values = super().train_step(batch)
        if self.progress.step == 3:
            raise RuntimeError("broken")
        return values


def test_a_training_that_breaks_leaves_no_hook() -> None:
    trainer = make(ALL, trainer=Breaks)
    with pytest.raises(RuntimeError, match="broken"):
        train_in(trainer)
    assert hooks(trainer.model) == 0


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.critic = nn.Linear(3, 2), nn.Linear(2, 1)


class PairTrainer(Trainer):
    """The critic's pass and the generator's go through the same points."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        fake = self.model.generator(torch.ones(4, 3))
        self.backward(self.model.critic(fake.detach()).sum(), only="critic")
        self.update("critic")
        self.backward(3 * self.model.critic(fake).sum(), only="generator")
        self.update("generator")
        return {"loss": torch.zeros(())}


def test_of_two_networks_each_has_its_own_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Pair", Pair)
    text = NETWORKS.replace("type: Adam", "type: SGD").replace("lr: 0.0", "lr: 0.000000001")
    every = ALL.replace("2 steps", "1 steps")
    kept, trainer = watch(
        every, "trainer.steps=1", "trainer.epochs=null", trainer=PairTrainer, text=text
    )
    slope = 3 * trainer.model.critic.weight.expand(4, 2)
    assert scalars(kept, "generator/gradient") == pytest.approx(numbers(slope))
    # Two calls of the critic, and a pass through each of them.
    both = torch.cat([torch.ones(4), torch.full((4,), 3.0)])
    assert scalars(kept, "critic/gradient") == pytest.approx(numbers(both))
    assert kept.scalars["capture/critic.bias/gradient/mean"] == 4
    assert kept.scalars["capture/generator.bias/gradient/norm"] == pytest.approx(
        slope.sum(dim=0).norm().item()
    )


def test_a_rule_that_matches_nothing_stops_before_the_training() -> None:
    with pytest.raises(ConfigError, match=r"capture\.0\.match: .*did you mean 'hidden\.0'"):
        make("capture=hiden.0")
