"""Losses from a config: functions, classes, modules of a project, torch's own by name."""

import collections
import copy
import dataclasses
import functools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toy import assert_resumes, assert_same, batches, make, run, train_in, weights

from base.config.durations import RunLength
from base.errors import ConfigError, TrainingError
from base.run.checks import check
from base.training.losses import Ramp, WeightedLoss, build_losses, terms
from base.training.metrics import build_metrics
from base.training.results import with_total
from base.training.selection import Selection
from trainer.trainer import Trainer

torch.manual_seed(0)
OUTPUT, TARGET = torch.randn(6, 3), torch.randint(0, 3, (6,))


def section(type_name: str, *, name: str = "", weight: float = 1.0, **args):
    return {"type": type_name, "args": args, "name": name or type_name, "weight": weight}


def margin(output, target, size=1.0):
    return F.relu(size - output.gather(1, target[:, None])).mean()


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, output, target):
        return F.cross_entropy(output, target) * self.factor


class Halfway:
    pass


KNOWN = {"margin": margin, "Scaled": Scaled, "module": Scaled(3.0), "Halfway": Halfway}


def build(kind, part, *, where=""):
    """Stand in for base.names.construction."""
    named = KNOWN[part["type"]]
    if isinstance(named, type):
        return named(**part["args"])
    return functools.partial(named, **part["args"]) if part["args"] else named


def test_functions_classes_and_modules_give_what_they_give_by_hand():
    sections = [section("margin", size=2.0), section("Scaled", factor=2.0), section("module")]
    losses = build_losses(sections, build=build)
    entropy = F.cross_entropy(OUTPUT, TARGET)
    assert list(losses) == ["margin", "Scaled", "module"]
    assert losses["margin"](OUTPUT, TARGET).equal(margin(OUTPUT, TARGET, 2.0))
    assert losses["Scaled"](OUTPUT, TARGET).item() == pytest.approx(2 * entropy.item())
    assert losses["module"](OUTPUT, TARGET).item() == pytest.approx(3 * entropy.item())


def test_torchs_functions_and_classes_can_be_named_with_lists_for_class_weights():
    args = {"weight": [1.0, 2.0, 4.0], "label_smoothing": 0.1}
    sections = [
        section("cross_entropy", name="plain"),
        section("cross_entropy", name="function") | {"args": args},
        section("CrossEntropyLoss", name="class", weight=0.5) | {"args": args},
    ]
    losses = build_losses(sections)
    weight = torch.tensor([1.0, 2.0, 4.0])
    expected = F.cross_entropy(OUTPUT, TARGET, weight, label_smoothing=0.1)
    assert losses["plain"](OUTPUT, TARGET).equal(F.cross_entropy(OUTPUT, TARGET))
    assert losses["function"](OUTPUT, TARGET).equal(expected)
    assert losses["class"](OUTPUT, TARGET).equal(expected)
    assert [loss.weight for loss in losses.values()] == [1.0, 1.0, 0.5]


def test_the_weight_is_left_to_whoever_sums():
    loss = build_losses([section("margin", weight=0.25)], build=build)["margin"]
    assert loss.weight == 0.25
    assert loss(OUTPUT, TARGET).equal(margin(OUTPUT, TARGET))


def test_gradients_flow():
    output = OUTPUT.clone().requires_grad_()
    build_losses([section("margin")], build=build)["margin"](output, TARGET).backward()
    assert output.grad is not None


def test_a_loss_moves_its_own_tensors():
    losses = build_losses([section("Scaled", factor=2.0), section("margin")], build=build)
    assert losses["Scaled"].to("meta").function.factor.device.type == "meta"
    losses["margin"].to("meta")
    weights = functools.partial(F.cross_entropy, weight=torch.ones(3), reduction="sum")
    moved = WeightedLoss("x", weights).to("meta").function
    assert moved.keywords["weight"].device.type == "meta"
    assert moved.keywords["reduction"] == "sum"


def test_a_loss_of_one_element_is_a_scalar_and_other_shapes_are_named():
    assert WeightedLoss("x", lambda output, target: output[:1, 0])(OUTPUT, TARGET).shape == ()
    with pytest.raises(TrainingError, match=r"loss 'x' must .*, not shape \(6,\)"):
        WeightedLoss("x", lambda output, target: output[:, 0])(OUTPUT, TARGET)
    with pytest.raises(
        TrainingError, match=r"loss 'x' must return a tensor of one number, not 0\.5"
    ):
        WeightedLoss("x", lambda output, target: 0.5)(OUTPUT, TARGET)


def test_an_error_names_the_loss_what_it_was_given_and_the_line():
    def broken(output, target):
        raise KeyError("no such class")

    with pytest.raises(TrainingError) as raised:
        WeightedLoss("mine", broken)({"scores": OUTPUT}, (TARGET,))
    assert re.fullmatch(
        r"loss 'mine' fails on output \{scores: \(6, 3\)\} and target \(\(6,\)\): "
        r"tests/base/training/test_losses.py:\d+: KeyError: 'no such class'",
        str(raised.value),
    )
    selection = Selection("loss.0", output="score")
    with pytest.raises(ConfigError, match="did you mean 'scores'"):  # a clear error stays as it is
        WeightedLoss("x", WeightedLoss("inner", F.cross_entropy, 1.0, selection))({"scores": 1}, 2)


def test_a_metric_with_the_name_of_a_loss_is_refused_and_hides_nothing():
    named = "loss=[{type: cross_entropy, name: accuracy}, {type: cross_entropy, weight: 0}]"
    with pytest.raises(
        ConfigError, match=r"metrics\.0\.name: .*'accuracy' too; choose another name"
    ):
        check(make(named, "metrics=[accuracy]"))
    check(make(named, "metrics=[{type: accuracy, name: share}]"))


def test_faults_are_told_together():
    sections = [
        section("margin", name="a"),
        section("margin", name="a"),
        section("margin", name="loss"),
        section("Halfway", name="b"),
    ]
    with pytest.raises(ConfigError) as raised:
        build_losses(sections, build=build)
    assert [str(problem) for problem in raised.value.problems] == [
        "loss.1.name: 'a' is taken by another loss",
        "loss.2.name: 'loss' is the name of the sum of all losses",
        "loss.3: Halfway is not a loss: it cannot be called with (output, target)",
    ]
    assert list(build_losses([section("margin", name="loss")], build=build)) == ["loss"]
    with pytest.raises(ConfigError, match=r"loss\.0\.name: 'loss' is the name of the sum"):
        build_losses([section("margin", name="loss", weight=2.0)], build=build)


# --- Several outputs and targets ------------------------------------------------------------------

Pair = collections.namedtuple("Pair", ["first", "second"])


@dataclasses.dataclass
class Fields:
    first: str
    second: str


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"first": "a", "second": "b"}, "second"),
        ({0: "a", 1: "b"}, 1),
        (("a", "b"), 1),
        (["a", "b"], -1),
        (Pair("a", "b"), "second"),
        (Pair("a", "b"), 1),
        (Fields("a", "b"), "second"),
    ],
)
def test_a_part_is_picked_by_name_or_position(given: Any, key: str | int) -> None:
    assert Selection(output=key)(given, "t") == ("b", "t")
    assert Selection(target=key)("o", given) == ("o", "b")
    assert Selection(target=key)("o", torch.zeros(2), given) == ("o", "b")
    assert Selection()(given, given) == (given, given)


def test_a_target_is_looked_for_in_the_target_first() -> None:
    batch = {"image": 1, "label": 2}
    assert Selection(target="label")("o", {"label": 3}, batch) == ("o", 3)
    assert Selection(target="image")("o", {"label": 3}, batch) == ("o", 1)
    assert Selection(target=0)("o", torch.zeros(2), ["image", "label"]) == ("o", "image")


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        (
            Selection("loss.1", output="maks"),
            "loss.1.output: there is no 'maks'; did you mean 'mask'? (the output has mask, edges)",
        ),
        (
            Selection("loss.1", output=0),
            "loss.1.output: there is no 0 (the output has mask, edges)",
        ),
        (
            Selection("loss.0", target="imgae"),
            "loss.0.target: there is no 'imgae'; did you mean 'image'? "
            "(the target is one Tensor; the batch has image, label)",
        ),
    ],
)
def test_a_part_that_is_not_there_is_told_with_what_is(selection: Selection, text: str) -> None:
    outputs, batch = {"mask": 1, "edges": 2}, {"image": 1, "label": torch.zeros(2)}
    with pytest.raises(ConfigError) as raised:
        selection(outputs, batch["label"], batch)
    assert str(raised.value) == text


def test_positions_that_are_not_there_and_lone_outputs_are_told() -> None:
    with pytest.raises(ConfigError, match=r"no 2 \(the output has 0, 1, first, second\)"):
        Selection(output=2)(Pair(1, 2), None)
    with pytest.raises(ConfigError, match=r"no 'x' \(the output is one Tensor\)"):
        Selection(output="x")(torch.zeros(2), None)


class TwoOutputs(Trainer):
    """Its network seems to have two: scores, and their squares under another name."""

    def forward(self, batch: Any) -> Any:
        scores = super().forward(batch)
        return {"scores": scores, "squares": scores.square()}


TWO = (
    "loss=[{type: cross_entropy, output: scores},"
    "{type: mse_loss, output: squares, target: 0, weight: 0.5, name: fit}]"
)


class Narrow(TwoOutputs):
    """The image has five numbers, of which three are selection."""

    def forward(self, batch: Any) -> Any:
        outputs = super().forward(batch)
        return {**outputs, "squares": F.pad(outputs["squares"], (0, 2))[:, None, None]}


def by_hand(model: nn.Module, inputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    scores = model(inputs)
    squares = F.pad(scores.square(), (0, 2))[:, None, None]
    return F.cross_entropy(scores, target), F.mse_loss(squares, inputs)


def test_losses_of_several_outputs_and_targets_are_those_of_a_loop_by_hand() -> None:
    trainer = make(TWO, "optimizer.args.lr=0.05", trainer=Narrow)
    twin = make().model
    twin.load_state_dict(trainer.model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05)
    parts = []
    for inputs, target in batches(trainer):
        entropy, fit = by_hand(twin, inputs, target)
        optimizer.zero_grad()
        (entropy + 0.5 * fit).backward()
        optimizer.step()
        parts.append([(entropy + 0.5 * fit).item(), entropy.item(), fit.item()])
    values = train_in(trainer)
    assert_same(weights(trainer), {name: p.detach() for name, p in twin.named_parameters()})
    logged = [values[f"train/{name}"] for name in ("loss", "cross_entropy", "fit")]
    assert logged == pytest.approx(torch.tensor(parts[5:]).mean(dim=0).tolist())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("loss={type: cross_entropy, output: socres}", r"loss\.0\.output: .*'socres'.*'scores'\?"),
        (TWO.replace("target: 0", "target: 2"), r"loss\.1\.target: .*no 2 .*the batch has 0, 1"),
    ],
)
def test_an_absent_name_ends_the_training_in_the_first_batch(options: str, text: str) -> None:
    trainer = make(options, trainer=Narrow)
    with pytest.raises(ConfigError, match=text):
        train_in(trainer)
    assert trainer.progress.batches_total == 0


def test_metrics_pick_their_parts_too() -> None:
    keys = {"args": {}, "over": "batch"}
    metrics = build_metrics(
        [
            {"type": "accuracy", "name": "a", "output": "scores", "target": "kind", **keys},
            {"type": "accuracy", "name": "b", "output": "scors", "target": None, **keys},
        ]
    )
    metrics["a"].update({"scores": OUTPUT}, None, {"kind": TARGET})
    assert metrics["a"].compute() == (OUTPUT.argmax(1) == TARGET).float().mean().item()
    with pytest.raises(ConfigError, match=r"metrics\.1\.output: .*'scores'"):
        metrics["b"].update({"scores": OUTPUT}, TARGET)
    assert "selection" not in metrics["a"].state_dict()


def test_metrics_of_a_run_see_the_output_that_they_name() -> None:
    again = "{type: MeanLoss, args: {loss: mse_loss}, output: squares, target: 0, name: again}"
    parts = f"metrics=[{{type: accuracy, output: scores}}, {again}]"
    values = train_in(make(TWO, parts, "optimizer.args.lr=0.05", trainer=Narrow))
    plain = train_in(make("optimizer.args.lr=0.05", "metrics=[accuracy]", TWO, trainer=Predicting))
    assert values["train/accuracy"] == plain["train/accuracy"] > 0
    assert values["valid/accuracy"] == plain["valid/accuracy"]
    assert values["train/again"] == pytest.approx(values["train/fit"])


class Predicting(Narrow):
    def predict(self, outputs: Any) -> Any:
        return outputs["scores"]


# --- Weights that move ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "formula"),
    [
        ("linear", lambda t: t),
        ("cosine", lambda t: math.sin(math.pi * t / 2) ** 2),
        ("step", lambda t: float(t >= 1)),
    ],
)
def test_a_weight_moves_by_its_formula(shape: str, formula: Any) -> None:
    ramp = Ramp(0.3, 0.1, over=10, after=4, shape=shape)
    assert [ramp.at(step) for step in range(5)] == [0.3] * 5
    assert [ramp.at(step) for step in (14, 15, 1000)] == [0.1] * 3
    for step in range(4, 15):
        assert ramp.at(step) == pytest.approx(0.3 - 0.2 * formula((step - 4) / 10))


def moving(**more: Any) -> dict[str, Any]:
    return {"from": 0.0, "to": 1.0, "over": "1 epoch", "after": None, "shape": "linear", **more}


def test_durations_of_weights_are_counted_in_steps() -> None:
    sections = [
        section("margin", name="a") | {"weight": moving(after="3 steps", shape="cosine")},
        section("margin", name="b") | {"weight": moving(over="50%", to=2.0)},
    ]
    losses = build_losses(sections, RunLength(8, 40), build=build)
    assert losses["a"].weight == Ramp(0.0, 1.0, over=8, after=3, shape="cosine")
    assert losses["b"].weight == Ramp(0.0, 2.0, over=20)
    assert [losses["b"].weight_at(step) for step in (0, 10, 20, None)] == [0, 1, 2, 2]


def test_the_sum_and_its_terms_go_by_the_weights_of_the_step() -> None:
    a, b, c = torch.tensor(1.0), torch.tensor(10.0), torch.tensor(math.inf)
    weighted = {
        "a": WeightedLoss("a", margin, Ramp(0.0, 1.0, 4)),
        "b": WeightedLoss("b", margin, 0.5),
        "c": WeightedLoss("c", margin, 0.0),
    }
    losses = {"a": a, "b": b, "c": c}
    assert terms(losses, weighted, 0) == {"b": 5.0}
    assert terms(losses, weighted, 1) == {"a": 0.25, "b": 5.0}
    assert terms({"a": a}, weighted, 0) == {"a": 0.0}  # something must be minimised
    assert terms({"a": a, "of_mine": b}, weighted) == {"a": 1.0, "of_mine": 10.0}
    assert terms({"loss": a, "b": b}, weighted, 1) == {"loss": 1.0}
    assert with_total(losses, weighted, 1) == {"loss": 5.25, **losses, "weight/a": 0.25}
    assert with_total(losses, weighted) == {"loss": 6.0, **losses}
    assert with_total({"b": b}, weighted, 1) == {"loss": 5.0}


MOVING = (
    "loss=[{type: cross_entropy, output: scores}, {type: mse_loss, output: squares, target: 0,"
    "weight: {to: 2.0, over: 5 steps, after: 2 steps}, name: fit}]"
)


def test_a_moving_weight_trains_as_a_loop_by_hand_and_is_logged() -> None:
    trainer = make(MOVING, trainer=Narrow)
    twin = make().model
    twin.load_state_dict(trainer.model.state_dict())
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for step, (inputs, target) in enumerate(batches(trainer)):
        entropy, fit = by_hand(twin, inputs, target)
        optimizer.zero_grad()
        (entropy + min(max(0.4 * (step - 2), 0), 2) * fit).backward()
        optimizer.step()
    values = train_in(trainer)
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(weights(trainer)[name], parameter.detach())
    assert values["train/weight/fit"] == pytest.approx((1.2 + 1.6 + 2 + 2 + 2) / 5)
    assert "train/weight/cross_entropy" not in values


def test_validation_takes_the_final_weights() -> None:
    trainer = make(MOVING, trainer=Narrow)
    inputs, target = next(iter(trainer.valid_loader.batches(0, 1)))
    entropy, fit = by_hand(trainer.model.eval(), inputs, target)
    values = trainer.evaluate(trainer.valid_loader, "valid")
    assert values["valid/loss"] == pytest.approx((entropy + 2 * fit).item())
    assert "valid/weight/fit" not in values


def test_lbfgs_takes_the_weights_of_the_step() -> None:
    lbfgs = "optimizer={type: LBFGS, args: {lr: 0.5, max_iter: 3, history_size: 2}}"
    one_step = ("trainer.epochs=null", "trainer.steps=1", lbfgs)
    moves = "weight: {from: 1.0, to: 5.0, over: 9 steps}"
    plain = make("loss={type: cross_entropy}", *one_step)
    moved = make(f"loss={{type: cross_entropy, {moves}}}", *one_step)
    train_in(plain), train_in(moved)
    assert_same(weights(moved), weights(plain))


@pytest.mark.parametrize("backward", ["sum", "separate"])
def test_moving_weights_resume_to_the_same_bits(tmp_path: Path, backward: str) -> None:
    options = (MOVING, f"trainer.backward={backward}", "memory.accumulate=2")
    assert_resumes(tmp_path, *options, trainer=Narrow)


# --- One backward pass or several -----------------------------------------------------------------


SEPARATE = "trainer.backward=separate"


class Gradients(Narrow):
    """Keeps the gradients of the first step, and forgets those of all."""

    def __init__(self, experiment: Any) -> None:
        super().__init__(experiment)
        self.gradients: dict[str, Tensor] = {}
        self.n_passes = 0
        self.model.head.bias.register_hook(self.count)

    def count(self, gradient: Tensor) -> None:
        self.n_passes += 1

    def train_step(self, batch: Any) -> Any:
        values = super().train_step(batch)
        self.gradients = self.gradients or {n: p.grad for n, p in self.model.named_parameters()}
        return values


@pytest.mark.parametrize("more", ["memory.accumulate=2", "memory.precision=bf16"])
def test_separate_backward_passes_give_the_gradients_of_the_sum(more: str) -> None:
    # Two batches make a step, so the gradients of the first batch are still there.
    options = (TWO, "trainer.epochs=1", "memory.accumulate=2", more)
    together, apart = (make(*options, *how, trainer=Gradients) for how in ([], [SEPARATE]))
    train_in(together), train_in(apart)
    rough = {"rtol": 0.05, "atol": 1e-3} if "bf16" in more else {}
    for name, gradient in together.gradients.items():
        torch.testing.assert_close(apart.gradients[name], gradient, **rough)
        torch.testing.assert_close(weights(apart)[name], weights(together)[name], **rough)
    assert (together.n_passes, apart.n_passes) == (5, 10)


def test_a_loss_of_weight_0_has_no_backward_pass() -> None:
    options = (MOVING, SEPARATE, "trainer.epochs=null", "trainer.steps=4")
    trainer = make(*options, trainer=Gradients)
    train_in(trainer)
    assert trainer.n_passes == 3 + 2  # the second loss counts from the fourth step on


def test_a_constant_among_the_losses_needs_no_backward_pass() -> None:
    class Constant(Trainer):
        def compute_losses(self, outputs: Any, batch: Any) -> Any:
            return {**super().compute_losses(outputs, batch), "constant": torch.tensor(2.0)}

    together, apart = (make(*how, trainer=Constant) for how in ([], [SEPARATE]))
    train_in(together), train_in(apart)
    assert_same(weights(apart), weights(together))


class Kept(Narrow):
    """Counts the tensors that graphs keep: before a step, shared, at most, after `backward`."""

    def __init__(self, experiment: Any) -> None:
        super().__init__(experiment)
        self.n_alive, self.n_most, self.counts = 0, 0, []

    def forward(self, batch: Any) -> Any:
        left, self.n_most = self.n_alive, 0
        outputs = super().forward(batch)
        self.counts.append([left, self.n_alive])
        return outputs

    def train_step(self, batch: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda held: held.tensor):
            return super().train_step(batch)

    def predict(self, outputs: Any) -> Any:
        self.counts[-1] += [self.n_most, self.n_alive]
        return outputs["scores"]

    def pack(self, tensor: Tensor) -> Any:
        self.n_alive += 1
        self.n_most = max(self.n_most, self.n_alive)
        return Held(self, tensor.detach())  # an output itself would hold its own graph


class Held:
    def __init__(self, owner: Kept, tensor: Tensor) -> None:
        self.owner, self.tensor = owner, tensor

    def __del__(self) -> None:
        self.owner.n_alive -= 1


@pytest.mark.parametrize("more", [[], ["trainer.loss_gradients=1 steps"]])
@pytest.mark.parametrize("how", [[], [SEPARATE]])
def test_the_graph_is_freed_in_each_step_and_memory_does_not_grow(how: Any, more: Any) -> None:
    no_validation = "data_loader.args.validation_split=0"
    trainer = make(TWO, "metrics=[accuracy]", no_validation, *how, *more, trainer=Kept)
    train_in(trainer)
    left, shared, most, after = trainer.counts[0]
    assert trainer.counts == [[left, shared, most, after]] * 12
    assert left == trainer.n_alive == 0
    assert most > shared > 0
    # What the losses share is gone; what only the first has goes with the values of the step.
    assert after <= (most - shared if how else 0)


# --- Parameters and buffers of a loss -------------------------------------------------------------


class Uncertain(nn.Module):
    def __init__(self, is_frozen: bool = False) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()), requires_grad=not is_frozen)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) * self.log_variance.exp()


def test_a_loss_with_parameters_that_no_optimizer_would_train_is_refused(monkeypatch: Any) -> None:
    monkeypatch.setitem(KNOWN, "Uncertain", Uncertain)
    with pytest.raises(ConfigError) as raised:
        build_losses([section("margin"), section("Uncertain")], build=build)
    assert str(raised.value) == (
        "loss.1: no optimizer trains log_variance of Uncertain: move trainable parameters to the "
        "model, or freeze them with `requires_grad_(False)`"
    )
    assert build_losses([section("Uncertain", is_frozen=True)], build=build)


class Running(nn.Module):
    """Divides by its own running mean; ``scale`` is the config's."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("mean", torch.ones(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(output, target)
        if self.training:
            self.mean.data.mul_(0.9).add_(0.1 * loss.detach())
        return self.scale * loss / self.mean


def test_what_a_loss_has_changed_is_resumed_and_the_rest_is_the_configs() -> None:
    old, new = WeightedLoss("x", Running(scale=2.0)), WeightedLoss("x", Running(scale=3.0))
    assert old.state_dict() == {}
    old(OUTPUT, TARGET)
    assert list(old.state_dict()) == ["mean"]
    new.load_state_dict(old.state_dict())
    assert new.function.mean == old.function.mean != 1
    assert new.function.scale == 3
    new.load_state_dict(old.state_dict())
    assert list(new.state_dict()) == ["mean"]  # what was resumed is saved again
    plain = WeightedLoss("x", margin)
    assert plain.state_dict() == {}
    plain.load_state_dict({})


def test_a_state_of_another_loss_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Unexpected key"):
        WeightedLoss("x", Running()).load_state_dict({"other": torch.zeros(())})


def test_class_weights_of_a_changed_config_are_taken_on_resume(tmp_path: Path) -> None:
    def options(*class_weights: float) -> str:
        return f"loss={{type: CrossEntropyLoss, args: {{weight: {list(class_weights)}}}}}"

    run(tmp_path, options(1, 1, 1), stop_at=3)
    trainer = run(tmp_path, options(1, 2, 4), resume=True)
    assert trainer.losses["CrossEntropyLoss"].function.weight.tolist() == [1, 2, 4]


class RunningTrainer(Trainer):
    def __init__(self, experiment: Any) -> None:
        experiment.losses = {"running": WeightedLoss("running", Running(scale=2.0))}
        super().__init__(experiment)


def test_a_loss_with_a_running_mean_resumes_to_the_same_bits(tmp_path: Path) -> None:
    assert_resumes(tmp_path, trainer=RunningTrainer)


def test_a_class_that_the_model_lacks_is_told_with_the_remedy():
    loss = WeightedLoss("classes", F.cross_entropy)
    with pytest.raises(TrainingError, match=r"Target 2 is out .*targets are 0 to 2.*n_classes"):
        loss(torch.zeros(4, 2), torch.tensor([0, 1, 2, 0]))


def test_a_loss_goes_back_to_what_it_was_built_with():
    """What a loss has not changed is not in its state; loading that must undo later changes."""
    weight = torch.tensor([1.0, 2.0, 3.0])
    loss = WeightedLoss("loss", torch.nn.CrossEntropyLoss(weight.clone()))
    early = loss.state_dict()
    assert early == {}
    loss.function.weight.mul_(7)
    late = copy.deepcopy(loss.state_dict())
    loss.load_state_dict(early)
    assert torch.equal(loss.function.weight, weight)
    loss.load_state_dict(late)
    assert torch.equal(loss.function.weight, 7 * weight)
