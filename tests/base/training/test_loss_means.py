"""Losses are means over what they count: parts of any size give what one call on all gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from toy import make, train_in

from base.base_data_loader import BaseDataLoader
from base.errors import TrainingError
from base.names.registry import DATA_LOADERS, LOSSES, MODELS
from base.training.batch_arguments import DataParameters
from base.training.denominators import SUM_REDUCTION, denominator_rule
from trainer.trainer import Trainer

N = 20
CONFIG = """
name: means
model: {type: Scores}
data_loader: {type: Given, args: {batch_size: 20}}
optimizer: {type: SGD, args: {lr: 0.0}}
loss: LOSS
trainer: {epochs: 1, tensorboard: false, progress: false, verbosity: 0}
"""


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def classes(*shape: int, n: int = 3, ignored: int | None = None) -> Tensor:
    """Return class numbers, most of the first half of which are ignored if so wished."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(n, (N, *shape), generator=generator)
    if ignored is not None:
        is_ignored = torch.rand(N, *shape, generator=generator) < 0.8
        is_ignored[N // 2 :] &= torch.rand(N // 2, *shape, generator=generator) < 0.1
        is_ignored[:3] = True  # whole parts in which nothing is counted
        target[is_ignored] = ignored
    return target


@dataclass
class Case:
    """A loss with settings, the shape of a sample's output, what is done to it, and targets."""

    name: str
    target: Tensor
    shape: tuple[int, ...] = (3,)
    settings: dict[str, Any] = field(default_factory=dict)
    last: Callable[[Tensor], Tensor] = torch.clone

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of torch itself."""
        given = {k: torch.tensor(v) if k in TENSORS else v for k, v in self.settings.items()}
        value: Tensor = getattr(F, self.name)(output, target, **given)
        return value


TENSORS = ("weight", "pos_weight")
WEIGHTS = {"weight": [0.2, 3.0, 1.0]}
LOG = functools.partial(F.log_softmax, dim=1)
SIGNS = random(N, 3).sign()
CASES = {
    "classes": Case("cross_entropy", classes()),
    "weights": Case("cross_entropy", classes(), settings=WEIGHTS),
    "ignored": Case("cross_entropy", classes(ignored=-100)),
    "another ignored": Case("cross_entropy", classes(ignored=2), settings={"ignore_index": 2}),
    "weights, ignored": Case("cross_entropy", classes(ignored=-100), settings=WEIGHTS),
    "pixels": Case("cross_entropy", classes(4, 5, ignored=255), (3, 4, 5), {"ignore_index": 255}),
    "smoothed": Case(
        "cross_entropy", classes(ignored=-100), settings={"label_smoothing": 0.2, **WEIGHTS}
    ),
    "soft": Case("cross_entropy", random(N, 3).softmax(1), settings=WEIGHTS),
    "soft pixels": Case("cross_entropy", random(N, 3, 2, 2).softmax(1), (3, 2, 2)),
    "nll": Case("nll_loss", classes(ignored=-100), settings=WEIGHTS, last=LOG),
    "mse": Case("mse_loss", random(N, 3)),
    "mse images": Case("mse_loss", random(N, 2, 3, 4), (2, 3, 4)),
    "l1": Case("l1_loss", random(N, 3)),
    "smooth l1": Case("smooth_l1_loss", random(N, 3), settings={"beta": 0.5}),
    "huber": Case("huber_loss", random(N, 3), settings={"delta": 0.5}),
    "bce": Case("binary_cross_entropy", random(N, 3).sigmoid(), last=torch.sigmoid),
    "logits": Case(
        "binary_cross_entropy_with_logits", random(N, 3).sigmoid(), settings={"pos_weight": [3.0]}
    ),
    "kl": Case("kl_div", random(N, 3).softmax(1), settings={"reduction": "batchmean"}, last=LOG),
    "poisson": Case("poisson_nll_loss", random(N, 3).abs()),
    "soft margin": Case("soft_margin_loss", SIGNS),
    "hinge": Case("hinge_embedding_loss", SIGNS),
    "multi margin": Case("multi_margin_loss", classes(), settings=WEIGHTS),
    "multilabel margin": Case("multilabel_margin_loss", classes(3)),
    "multilabel soft": Case("multilabel_soft_margin_loss", (SIGNS > 0).float(), settings=WEIGHTS),
}
SUMS = {
    f"{name}, sum": Case(
        case.name, case.target, case.shape, {**case.settings, "reduction": "sum"}, case.last
    )
    for name, case in CASES.items()
}


@pytest.fixture(params=[*CASES, *SUMS])
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    found = {**CASES, **SUMS}[request.param]
    place(monkeypatch, found)
    return found


def place(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """Let configs name a model with these outputs and a loader with these targets."""

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, int(torch.tensor(case.shape).prod()))

        def forward(self, x: Tensor) -> Tensor:
            return case.last(self.linear(x).unflatten(1, case.shape))

    class Given(BaseDataLoader):
        def __init__(self, batch_size: int) -> None:
            super().__init__(TensorDataset(random(N, 5), case.target), batch_size, False, 0, 0)

    monkeypatch.setitem(MODELS.registered, "Scores", Scores)
    monkeypatch.setitem(DATA_LOADERS.registered, "Given", Given)


def trainer_of(case: Case, *overrides: str, trainer: type[Trainer] = Trainer) -> Any:
    section = {"type": case.name, "args": case.settings}
    return make(*overrides, text=CONFIG.replace("LOSS", str(section)), trainer=trainer)


def gradients(trainer: Any) -> list[Tensor]:
    """Return what the one optimizer step of an epoch finds."""
    found: list[Tensor] = []
    trainer.optimizers["main"].register_step_pre_hook(
        lambda o, *_: found.extend(p.grad.clone() for p in o.param_groups[0]["params"])
    )
    train_in(trainer)
    return found


def on_all(trainer: Any, case: Case) -> Tensor:
    return case(trainer.model(random(N, 5)), case.target)


PARTS = ["batch_size=4 accumulate=5", "batch_size=20 micro_batch=7", "batch_size=1 accumulate=20"]
PARTS += ["batch_size=7 accumulate=3", "batch_size=8 accumulate=3 micro_batch=3"]


def settings_of(parts: str) -> list[str]:
    return [
        f"data_loader.args.{one}" if one.startswith("batch_size") else f"memory.{one}"
        for one in parts.split()
    ]


@pytest.mark.parametrize("parts", PARTS)
def test_the_gradient_of_a_window_is_that_of_all_its_samples(case: Case, parts: str) -> None:
    trainer = trainer_of(case, *settings_of(parts))
    expected = torch.autograd.grad(on_all(trainer, case), list(trainer.model.parameters()))
    found = gradients(trainer)
    assert len(found) == 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 16, 20])
def test_the_loss_of_a_phase_is_that_of_all_its_samples(case: Case, batch_size: int) -> None:
    trainer = trainer_of(case, f"data_loader.args.batch_size={batch_size}")
    found = trainer.evaluate(trainer.train_loader, "valid")["valid/loss"]
    assert found == pytest.approx(on_all(trainer, case).item(), rel=1e-5)


def test_the_loss_of_an_epoch_of_training_is_that_of_all_its_samples(case: Case) -> None:
    trainer = trainer_of(case, "memory.micro_batch=3", "data_loader.args.batch_size=7",
                         "memory.accumulate=2")  # fmt: skip
    expected = on_all(trainer, case).item()
    assert trainer.train_epoch()["train/loss"] == pytest.approx(expected, rel=1e-5)


# --- Several losses at once -----------------------------------------------------------------------

BOTH = "[{type: cross_entropy, args: {ignore_index: 2}}, {type: total_square, weight: 0.5}]"


def total_square(output: Tensor, target: Tensor) -> Tensor:
    return output.square().mean()


@pytest.mark.parametrize("backward", ["sum", "separate"])
@pytest.mark.parametrize("parts", PARTS)
def test_each_loss_of_several_has_its_own_denominator(
    parts: str, backward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("cross_entropy", classes(ignored=2), settings={"ignore_index": 2})
    place(monkeypatch, case)
    monkeypatch.setitem(LOSSES.registered, "total_square", total_square)
    trainer = make(
        *settings_of(parts), f"trainer.backward={backward}", text=CONFIG.replace("LOSS", BOTH)
    )
    output = trainer.model(random(N, 5))
    parts_of_sum = {
        "cross_entropy": case(output, case.target),
        "total_square": output.square().mean(),
    }
    total = parts_of_sum["cross_entropy"] + 0.5 * parts_of_sum["total_square"]
    expected = torch.autograd.grad(total, list(trainer.model.parameters()), retain_graph=True)
    values = trainer.evaluate(trainer.train_loader, "valid")
    assert values["valid/loss"] == pytest.approx(total.item(), rel=1e-5)
    for name, value in parts_of_sum.items():
        assert values[f"valid/{name}"] == pytest.approx(value.item(), rel=1e-5)
    for ours, theirs in zip(gradients(trainer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class Noting(Trainer):
    """Notes the sum that each step minimises, and its samples."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        values = super().train_step(batch)
        self.noted.append((values["loss"].item(), len(batch[0])))
        return values


@pytest.mark.parametrize("after", ["0 steps", "1 step", "2 steps", "100 steps"])
@pytest.mark.parametrize("start", [0, 1])
def test_a_weight_that_moves_changes_what_each_step_adds_to_the_mean(
    start: int, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of weight 0 is no part of a step's sum, but has its samples in the epoch's mean."""
    place(monkeypatch, Case("mse_loss", random(N, 3)))
    weight = f"{{from: {start}, to: {1 - start}, over: 1 step, after: {after}, shape: step}}"
    losses = (
        f"[{{type: l1_loss}}, {{type: mse_loss, weight: {weight.replace('0 steps', '1 step')}}}]"
    )
    trainer = make(
        "data_loader.args.batch_size=7", text=CONFIG.replace("LOSS", losses), trainer=Noting
    )
    trainer.noted = []
    found = trainer.train_epoch()["train/loss"]
    assert len(trainer.noted) == 3
    expected = sum(value * n for value, n in trainer.noted) / sum(n for _, n in trainer.noted)
    assert found == pytest.approx(expected, rel=1e-6)


# --- Losses of the user's own ---------------------------------------------------------------------


class PerTarget(nn.Module):
    """A mean over targets that are not 0, which it says."""

    def denominator(self, target: Tensor) -> Tensor:
        return (target != 0).sum()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        losses = F.cross_entropy(output, target, reduction="none")
        return losses[target != 0].mean()


def test_a_loss_may_say_what_it_divides_by(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("PerTarget", classes(ignored=0))
    place(monkeypatch, case)
    monkeypatch.setitem(LOSSES.registered, "PerTarget", PerTarget)
    trainer = trainer_of(case, *settings_of(PARTS[-1]))
    whole = PerTarget()(trainer.model(random(N, 5)), case.target)
    expected = torch.autograd.grad(whole, list(trainer.model.parameters()))
    found = trainer.evaluate(trainer.train_loader, "valid")["valid/loss"]
    assert found == pytest.approx(whole.item(), rel=1e-5)
    for ours, theirs in zip(gradients(trainer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class OfDict(PerTarget):
    """The same of a dict, whose entries torch's own rules do not know."""

    def denominator(self, target: Any) -> Tensor:
        return super().denominator(target["class"])

    def forward(self, output: Tensor, target: Any) -> Tensor:
        return super().forward(output, target["class"])


@pytest.mark.parametrize("parts", PARTS)
def test_a_loss_may_say_what_it_divides_by_of_a_dict(
    parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case("OfDict", classes(ignored=0))
    place(monkeypatch, case)
    monkeypatch.setitem(LOSSES.registered, "OfDict", OfDict)

    class Given(BaseDataLoader):
        def __init__(self, batch_size: int) -> None:
            samples = [
                (x, {"class": y, "name": str(n)})
                for n, (x, y) in enumerate(zip(random(N, 5), case.target, strict=True))
            ]
            super().__init__(samples, batch_size, False, 0, 0)

    monkeypatch.setitem(DATA_LOADERS.registered, "Given", Given)
    trainer = trainer_of(case, *settings_of(parts))
    whole = PerTarget()(trainer.model(random(N, 5)), case.target)
    expected = torch.autograd.grad(whole, list(trainer.model.parameters()))
    found = trainer.evaluate(trainer.train_loader, "valid")["valid/loss"]
    assert found == pytest.approx(whole.item(), rel=1e-5)
    for ours, theirs in zip(gradients(trainer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class Reducing(nn.Module):
    """As focal losses are often written: how to reduce is an attribute."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, output: Tensor, target: Any) -> Tensor:
        target = target["class"] if isinstance(target, dict) else target
        losses = F.cross_entropy(output, target, reduction="none").square()
        return getattr(losses, self.reduction)()


class ReducingByItself(Reducing):
    def denominator(self, target: Any) -> int:
        return len(target["class"] if isinstance(target, dict) else target)


def reducing(output: Tensor, target: Any, reduction: str = "mean") -> Any:
    return Reducing(reduction)(output, target)


@pytest.mark.parametrize("parts", PARTS[2:])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", [Reducing, ReducingByItself, reducing])
@pytest.mark.parametrize("is_dict", [False, True])
def test_a_loss_of_the_users_may_be_a_sum(
    parts: str, reduction: str, loss: Any, is_dict: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(loss.__name__, classes(), settings={"reduction": reduction})
    place(monkeypatch, case)
    monkeypatch.setitem(LOSSES.registered, loss.__name__, loss)
    if is_dict:

        class Given(BaseDataLoader):
            def __init__(self, batch_size: int) -> None:
                pairs = zip(random(N, 5), case.target, strict=True)
                super().__init__([(x, {"class": y}) for x, y in pairs], batch_size, False, 0, 0)

        monkeypatch.setitem(DATA_LOADERS.registered, "Given", Given)
    trainer = trainer_of(case, *settings_of(parts))
    whole = Reducing(reduction)(trainer.model(random(N, 5)), case.target)
    expected = torch.autograd.grad(whole, list(trainer.model.parameters()))
    found = trainer.evaluate(trainer.train_loader, "valid")["valid/loss"]
    assert found == pytest.approx(whole.item(), rel=1e-5)
    for ours, theirs in zip(gradients(trainer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def half_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target) / 2


@pytest.mark.parametrize(
    ("denominator", "text"),
    [
        (lambda target: target["mask"].sum(), r"denominator of loss 'half_.* fails on target \(4,"),
        (lambda target: (target != 0).float(), r"must be one number, not \(4,\)"),
        (lambda target: "many", "must be one number, not 'many'"),
    ],
)
def test_a_denominator_that_is_none_is_an_error(
    denominator: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(monkeypatch, Case("half_cross_entropy", classes()))
    monkeypatch.setitem(LOSSES.registered, "half_cross_entropy", half_cross_entropy)
    monkeypatch.setattr(half_cross_entropy, "denominator", denominator, raising=False)
    trainer = trainer_of(Case("half_cross_entropy", classes()), *settings_of(PARTS[0]))
    with pytest.raises(TrainingError, match=text):
        train_in(trainer)


def test_an_attribute_of_that_name_is_no_denominator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_cross_entropy, "denominator", 2.0, raising=False)
    assert denominator_rule(half_cross_entropy) is None


class Flattened(Trainer):
    """Gives the loss the same targets in another shape, as a language model's trainer does."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        loss = self.losses["cross_entropy"]
        return {"cross_entropy": loss(outputs.movedim(1, -1).flatten(0, -2), batch[1].flatten())}


def test_targets_may_be_flattened_by_a_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["pixels"]
    place(monkeypatch, case)
    trainer = trainer_of(case, *settings_of(PARTS[-1]), trainer=Flattened)
    expected = torch.autograd.grad(on_all(trainer, case), list(trainer.model.parameters()))
    for ours, theirs in zip(gradients(trainer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class Shifted(Trainer):
    """Compares all pixels but the first of a row, as a language model is trained."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        return {"cross_entropy": self.losses["cross_entropy"](outputs[..., 1:], batch[1][..., 1:])}


@pytest.mark.parametrize("parts", PARTS)
def test_targets_may_be_made_by_a_trainer(parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["pixels"]
    place(monkeypatch, case)
    trainer = trainer_of(case, *settings_of(parts), trainer=Shifted)
    whole = case(trainer.model(random(N, 5))[..., 1:], case.target[..., 1:])
    expected = torch.autograd.grad(whole, list(trainer.model.parameters()))
    for ours, theirs in zip(gradients(trainer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class Twice(Shifted):
    """Calls the one loss twice in a step, with a backward pass for each."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        for _ in range(2):
            losses = self.compute_losses(self.forward(batch), batch)
            self.backward(losses["cross_entropy"])
        self.update()
        return {"loss": losses["cross_entropy"]}


def test_a_loss_may_be_called_several_times_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for trainer in (Shifted, Twice):
        place(monkeypatch, CASES["pixels"])
        found.append(
            gradients(trainer_of(CASES["pixels"], *settings_of(PARTS[-1]), trainer=trainer))
        )
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(2 * one, two)


PAD = Case("cross_entropy", classes(4, 5, ignored=255), (3, 4, 5), {"ignore_index": 255})


class Heads(Trainer):
    """Has one loss in its config for two tasks, one with a target a sample and one with many."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        loss = self.losses["cross_entropy"]
        first = loss(outputs[:, :, 0, 0], batch[1][:, 0, 0].clamp(max=2))
        return {"first": first, "all": loss(outputs, batch[1].clamp(max=2))}


class HeadsInTwoPasses(Heads):
    def train_step(self, batch: Any) -> dict[str, Any]:
        losses = self.compute_losses(self.forward(batch), batch)
        self.backward(losses["first"], retain_graph=True)
        self.backward(losses["all"])
        self.update()
        return {"loss": losses["first"] + losses["all"]}


class OwnAndOthers(Trainer):
    """Compares with the batch's targets first, and with others next."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        loss, target = self.losses["cross_entropy"], batch[1].clamp(max=2)
        return {"all": loss(outputs, batch[1]), "part": loss(outputs[..., 2:], target[..., 2:])}


class OthersAndOwn(Trainer):
    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        return dict(reversed(OwnAndOthers.compute_losses(self, outputs, batch).items()))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("trainer", [Heads, HeadsInTwoPasses, OwnAndOthers, OthersAndOwn])
def test_one_loss_may_serve_several_tasks(
    trainer: type[Trainer], parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(monkeypatch, PAD)
    built = trainer_of(PAD, *settings_of(parts), trainer=trainer)
    batch = [random(N, 5), PAD.target]
    whole = sum(built.compute_losses(built.model(batch[0]), batch).values())
    expected = torch.autograd.grad(whole, list(built.model.parameters()))
    for ours, theirs in zip(gradients(built), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class Masked(Trainer):
    """Hides most targets of some samples, as masked language models are trained."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        is_hidden = batch[0][:, :1, None] > batch[0].new_tensor([-9.0, 0.0, 0.5, 1.0, 1.5])
        target = batch[1].masked_fill(is_hidden, 255)
        return {"cross_entropy": self.losses["cross_entropy"](outputs, target)}


@pytest.mark.parametrize("parts", PARTS)
def test_targets_of_the_same_shape_may_be_made_by_a_trainer(
    parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(monkeypatch, PAD)
    trainer = trainer_of(PAD, *settings_of(parts), trainer=Masked)
    batch = [random(N, 5), PAD.target]
    whole = trainer.compute_losses(trainer.model(batch[0]), batch)["cross_entropy"]
    expected = torch.autograd.grad(whole, list(trainer.model.parameters()))
    for ours, theirs in zip(gradients(trainer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class WithPenalty(Trainer):
    """Ignores every second target, and adds a penalty of the same share in each part."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        target = batch[1].clamp(max=2).clone()
        target[..., 1::2] = 255
        penalty = sum(p.square().sum() for p in self.model.parameters())
        return {"penalty": penalty, "ce": self.losses["cross_entropy"](outputs, target)}


@pytest.mark.parametrize("parts", PARTS)
def test_a_penalty_beside_made_targets_keeps_its_weight(
    parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(monkeypatch, PAD)
    trainer = trainer_of(PAD, *settings_of(parts), trainer=WithPenalty)
    batch = [random(N, 5), PAD.target]
    whole = sum(trainer.compute_losses(trainer.model(batch[0]), batch).values())
    expected = torch.autograd.grad(whole, list(trainer.model.parameters()))
    for ours, theirs in zip(gradients(trainer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class Chosen(Trainer):
    """Compares those numbers alone that a sample has, as the boxes of a detector."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        is_there = batch[1] > 0.6
        return {"l1_loss": self.losses["l1_loss"](outputs[is_there], batch[1][is_there])}


@pytest.mark.parametrize("parts", PARTS)
def test_a_part_may_have_no_target_at_all(parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("l1_loss", random(N, 3))
    case.target[:4] = 0.0  # none in the first part
    place(monkeypatch, case)
    trainer = trainer_of(case, *settings_of(parts), trainer=Chosen)
    batch = [random(N, 5), case.target]
    whole = trainer.compute_losses(trainer.model(batch[0]), batch)["l1_loss"]
    expected = torch.autograd.grad(whole, list(trainer.model.parameters()))
    for ours, theirs in zip(gradients(trainer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class NothingCounts(Trainer):
    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        target = torch.full_like(batch[1][..., 1:], 255)
        return {"cross_entropy": self.losses["cross_entropy"](outputs[..., 1:], target)}


def test_a_window_without_a_made_target_that_counts_adds_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place(monkeypatch, PAD)
    trainer = trainer_of(PAD, *settings_of(PARTS[0]), trainer=NothingCounts)
    assert all(not gradient.any() for gradient in gradients(trainer))


# --- The denominators themselves ------------------------------------------------------------------

THREE = tuple(random(N, 4 + k)[:, :4] for k in range(3))
WITH_MORE = {
    "gaussian_nll_loss": (random(N, 3), random(N, 3, 1)[..., 0], torch.ones(N, 3)),
    "cosine_embedding_loss": (*THREE[:2], SIGNS[:, 0]),
    "margin_ranking_loss": (random(N), random(N, 1)[:, 0], SIGNS[:, 0]),
    "triplet_margin_loss": THREE,
    "triplet_margin_with_distance_loss": THREE,
    "linear_cross_entropy": (random(N, 5), random(3, 5), classes(ignored=1)),
}
MORE_SETTINGS = {"linear_cross_entropy": {"ignore_index": 1}}
if not hasattr(F, "linear_cross_entropy"):  # torch 2.10
    del WITH_MORE["linear_cross_entropy"]


@pytest.mark.parametrize("name", WITH_MORE)
def test_losses_of_more_arguments_divide_their_sum(name: str) -> None:
    function = functools.partial(getattr(F, name), **MORE_SETTINGS.get(name, {}))
    args = WITH_MORE[name]
    mean, total = function(*args), function(*args, reduction="sum")
    rule = denominator_rule(function)
    assert rule is not None
    named = DataParameters.from_function(function).named(args[2:])
    assert float(rule(*args[:2], **named)) == pytest.approx(float(total / mean), rel=1e-4)


def test_ctc_is_a_mean_over_sequences() -> None:
    lengths = torch.tensor([3, 5, 2])
    args = random(9, 3, 4).log_softmax(2), classes(5, n=3)[:3] + 1, torch.tensor([9] * 3), lengths
    each = F.ctc_loss(*args, reduction="none") / lengths
    rule = denominator_rule(nn.CTCLoss())
    assert rule is not None
    number = rule(*args[:2], target_lengths=lengths)
    assert float(F.ctc_loss(*args)) == pytest.approx(float(each.sum()) / float(number))


def test_every_loss_that_a_config_can_name_has_a_rule() -> None:
    from base.names.torch_names import LOSS_FUNCTIONS

    for name in filter(functools.partial(hasattr, F), LOSS_FUNCTIONS):  # 2.10 lacks one
        assert denominator_rule(getattr(F, name)) is not None, name
    for name in dir(nn):
        has_parameters = name in ("AdaptiveLogSoftmaxWithLoss", "LinearCrossEntropyLoss")
        if name.endswith("Loss") and not has_parameters:
            assert denominator_rule(getattr(nn, name)()) is not None, name


@pytest.mark.parametrize("settings", [{"reduction": "sum"}, {"size_average": False}])
def test_a_sum_has_no_denominator(settings: dict[str, Any]) -> None:
    functions = [functools.partial(F.mse_loss, **settings)]
    if "reduction" in settings:
        functions.append(nn.MSELoss(**settings))
    for function in functions:
        rule = denominator_rule(function)
        assert rule is not None
        assert rule(random(2), random(2)) is SUM_REDUCTION


FOCAL = {
    "classes": ("FocalLoss", {"alpha": [0.2, 0.5, 0.3]}, classes(ignored=-100), (3,)),
    "pixels": ("FocalLoss", {"ignore_index": 255}, classes(4, 5, ignored=255), (3, 4, 5)),
    "soft": ("FocalLoss", {"alpha": [0.2, 0.5, 0.3]}, random(N, 3).softmax(1), (3,)),
    "labels": ("SigmoidFocalLoss", {"ignore_index": 2}, classes(3, ignored=2), (3,)),
    "one logit": ("SigmoidFocalLoss", {"gamma": 1.0}, classes(1, n=2), (1,)),
}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", FOCAL)
def test_focal_losses_have_the_gradient_of_all_samples(
    name: str, parts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, settings, target, shape = FOCAL[name]
    case = Case(kind, target, shape, settings)
    place(monkeypatch, case)
    trainer = trainer_of(case, *settings_of(parts))
    on_all_samples = trainer.losses[kind].function(trainer.model(random(N, 5)), target)
    expected = torch.autograd.grad(on_all_samples, list(trainer.model.parameters()))
    for ours, theirs in zip(gradients(trainer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
