"""Losses called with keywords, and losses that give several terms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from toy import assert_resumes, make, train_in

from base.base_data_loader import BaseDataLoader
from base.errors import ConfigError, TrainingError
from base.names.registry import DATA_LOADERS, LOSSES, METRICS
from base.run.checks import check
from base.run.dry_run_report import dry_run
from base.training.denominators import SUM_REDUCTION, denominator_of
from base.training.losses import WeightedLoss
from trainer.trainer import Trainer

N = 20
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(N, 5, generator=GENERATOR)
TARGET = torch.randint(0, 3, (N,), generator=GENERATOR)
TARGET[:4] = 0  # whole parts of one class
WEIGHT = torch.tensor([0.2, 3.0, 1.0])
CONFIG = """
name: calls
seed: 1
model: {type: MLP, args: {n_inputs: 5, hidden: [], n_outputs: 3}}
data_loader: {type: Given}
optimizer: {type: SGD, args: {lr: 0.1}}
loss: cross_entropy
trainer: {epochs: 1, tensorboard: false, progress: false, verbosity: 0}
"""
PARTS = [
    ["data_loader.args.batch_size=20"],
    ["data_loader.args.batch_size=4", "memory.accumulate=5"],
    ["data_loader.args.batch_size=20", "memory.micro_batch=7"],
    ["data_loader.args.batch_size=8", "memory.accumulate=3", "memory.micro_batch=3"],
]


class Given(BaseDataLoader):
    def __init__(self, batch_size: int = 20) -> None:
        super().__init__(TensorDataset(INPUTS, TARGET), batch_size, False, 0, 0)


@pytest.fixture(autouse=True)
def _loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA_LOADERS.registered, "Given", Given)


def gradients(trainer: Any) -> list[Tensor]:
    """Return what the one optimizer step of an epoch finds."""
    found: list[Tensor] = []
    trainer.optimizers["main"].register_step_pre_hook(
        lambda o, *_: found.extend(p.grad.clone() for p in o.param_groups[0]["params"])
    )
    train_in(trainer)
    return found


def assert_gradients(trainer: Any, loss: Callable[[Tensor], Tensor]) -> None:
    """Compare a step in parts with torch's own on all samples at once."""
    expected = torch.autograd.grad(loss(trainer.model(INPUTS)), list(trainer.model.parameters()))
    for ours, theirs in zip(gradients(trainer), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# --- Keywords -------------------------------------------------------------------------------------

OUTPUT = torch.randn(N, 3, generator=GENERATOR)
CALLS: list[dict[str, Any]] = [
    {},
    {"reduction": "mean"},
    {"reduction": "sum"},
    {"weight": WEIGHT},
    {"ignore_index": 0},
    {"weight": WEIGHT, "ignore_index": 0, "label_smoothing": 0.1},
    {"size_average": False},
]


@pytest.mark.filterwarnings("ignore:size_average:UserWarning")
@pytest.mark.parametrize("given", CALLS, ids=str)
@pytest.mark.parametrize("bound", [{}, {"reduction": "sum"}, {"ignore_index": 1}], ids=str)
def test_keywords_pass_through_over_those_of_the_config(given: Any, bound: Any) -> None:
    loss = WeightedLoss(
        "x", functools.partial(F.cross_entropy, **bound) if bound else F.cross_entropy
    )
    ours, settings = loss(OUTPUT, TARGET, **given), {**bound, **given}
    assert ours.equal(F.cross_entropy(OUTPUT, TARGET, **settings))
    counted = denominator_of(ours)
    assert counted is not None
    if settings.get("reduction") == "sum" or "size_average" in given:
        assert counted.number is SUM_REDUCTION
    else:
        settings.pop("reduction", None)
        total = F.cross_entropy(OUTPUT, TARGET, reduction="sum", **settings)
        assert float(ours * counted.number) == pytest.approx(float(total), rel=1e-5)


def test_class_weights_by_position_are_known_too() -> None:
    loss = WeightedLoss("x", F.cross_entropy)
    ours = loss(OUTPUT, TARGET, WEIGHT)
    assert denominator_of(ours).number.item() == pytest.approx(WEIGHT[TARGET].sum().item())  # type: ignore[union-attr]


def test_an_unreduced_loss_comes_as_it_is() -> None:
    each = F.cross_entropy(OUTPUT, TARGET, reduction="none")
    for loss in (
        WeightedLoss("x", F.cross_entropy),
        WeightedLoss("x", functools.partial(F.cross_entropy, ignore_index=7)),
    ):
        ours = loss(OUTPUT, TARGET, reduction="none")
        assert ours.equal(each)
        assert denominator_of(ours) is None
        one = loss(OUTPUT[:1], TARGET[:1], reduction="none")
        assert one.shape == (1,)
    assert WeightedLoss("x", nn.CrossEntropyLoss(reduction="none"))(OUTPUT, TARGET).equal(each)


class Summing(nn.Module):
    def forward(self, output: Tensor, target: Tensor, scale: float = 1.0, reduction: str = "mean"):
        return scale * F.cross_entropy(output, target, reduction=reduction)


def test_modules_and_functions_of_ones_own_take_keywords() -> None:
    loss = WeightedLoss("x", Summing())
    assert loss(OUTPUT, TARGET, scale=2.0).equal(2 * F.cross_entropy(OUTPUT, TARGET))
    assert denominator_of(loss(OUTPUT, TARGET)) is None  # a mean over samples
    total = loss(OUTPUT, TARGET, reduction="sum")
    assert denominator_of(total).number is SUM_REDUCTION  # type: ignore[union-attr]
    assert loss(OUTPUT, TARGET, reduction="none").shape == (N,)


@pytest.mark.parametrize("names", [("input", "target"), ("output", "target")])
def test_output_and_target_may_be_named(names: tuple[str, str]) -> None:
    ours = WeightedLoss("x", F.cross_entropy)(**dict(zip(names, (OUTPUT, TARGET), strict=True)))
    assert ours.equal(F.cross_entropy(OUTPUT, TARGET))
    pair = WeightedLoss("x", F.cosine_embedding_loss)
    signs = torch.ones(N)
    assert pair(OUTPUT, INPUTS[:, :3], target=signs).equal(
        F.cosine_embedding_loss(OUTPUT, INPUTS[:, :3], signs)
    )
    with pytest.raises(TrainingError, match="'x' is called without its target"):
        pair(OUTPUT)


def of_parts(log_probs: Tensor, text: Tensor, text_length: Any = None, **batch: Any) -> Any:
    return {"loss": F.nll_loss(log_probs, text) * text_length, "seen": len(batch)}


def test_a_whole_batch_may_be_spread_into_a_loss() -> None:
    """As trainers do that add the outputs to the batch: ``criterion(**batch)``."""
    parts = {"text": TARGET, "log_probs": OUTPUT.log_softmax(1), "text_length": 2, "path": "a"}
    found = WeightedLoss("x", of_parts)(**parts)
    torch.testing.assert_close(found["loss"], 2 * F.cross_entropy(OUTPUT, TARGET))
    assert found["seen"] == 1

    def of_any(**batch: Any) -> Tensor:
        return F.cross_entropy(batch["output"], batch["text"])

    found = WeightedLoss("x", of_any)(output=OUTPUT, text=TARGET)
    assert found.equal(F.cross_entropy(OUTPUT, TARGET))
    norm = WeightedLoss("x", lambda output: output.square().mean())
    assert norm(OUTPUT).equal(norm(OUTPUT, TARGET))
    assert norm(output=OUTPUT).equal(OUTPUT.square().mean())


class Calling(Trainer):
    given: dict[str, Any] = {}  # noqa: RUF012

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Any]:
        return {"loss": self.losses["cross_entropy"](outputs, batch[1], **self.given)}


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("given", CALLS[:-1], ids=str)
@pytest.mark.parametrize("bound", ["{}", "{ignore_index: 1}"])
def test_a_step_in_parts_is_that_of_all_samples(
    given: Any, bound: str, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Calling, "given", given)
    text = CONFIG.replace("loss: cross", f"loss: {{type: cross_entropy, args: {bound}}} # cross")
    trainer = make(*parts, text=text, trainer=Calling)
    settings = {**({"ignore_index": 1} if bound != "{}" else {}), **given}
    whole = functools.partial(F.cross_entropy, target=TARGET, **settings)
    found = trainer.evaluate(trainer.train_loader, "valid")["valid/loss"]
    with torch.no_grad():
        assert found == pytest.approx(whole(trainer.model(INPUTS)).item(), rel=1e-5)
    assert_gradients(trainer, whole)


class Reducing(Trainer):
    """Weighs the samples itself."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Any]:
        each = self.losses["cross_entropy"](outputs, batch[1], reduction="none")
        return {"loss": (each * batch[0][:, 0]).mean()}


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_what_a_trainer_reduces_is_a_mean_over_samples(parts: list[str]) -> None:
    trainer = make(*parts, text=CONFIG, trainer=Reducing)

    def whole(output: Tensor) -> Tensor:
        return (F.cross_entropy(output, TARGET, reduction="none") * INPUTS[:, 0]).mean()

    found = trainer.evaluate(trainer.train_loader, "valid")["valid/loss"]
    with torch.no_grad():
        assert found == pytest.approx(whole(trainer.model(INPUTS)).item(), rel=1e-5)
    assert_gradients(trainer, whole)


def test_an_unreduced_loss_that_nobody_reduces_is_an_error() -> None:
    text = CONFIG.replace("cross_entropy", "{type: cross_entropy, args: {reduction: none}}")
    with pytest.raises(
        TrainingError, match=r"'cross_entropy' must return a tensor of one number.*\(20,\)"
    ):
        check(make(text=text))


def scaled_error(output: Tensor, target: Tensor, above: int = 0) -> Tensor:
    is_counted = target > above
    return F.cross_entropy(output, target, reduction="none")[is_counted].mean()


scaled_error.denominator = lambda target, above=0: (target > above).sum()  # type: ignore[attr-defined]


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("is_in_config", [True, False])
def test_a_denominator_of_ones_own_gets_what_the_loss_gets(
    is_in_config: bool, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES.registered, "scaled_error", scaled_error)

    class Above(Trainer):
        def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Any]:
            return {"loss": self.losses["scaled_error"](outputs, batch[1], above=1)}

    section = "{type: scaled_error, args: {above: 1}}" if is_in_config else "scaled_error"
    trainer = make(
        *parts,
        text=CONFIG.replace("cross_entropy", section),
        trainer=Trainer if is_in_config else Above,
    )
    whole = functools.partial(scaled_error, target=TARGET, above=1)
    found = trainer.evaluate(trainer.train_loader, "valid")["valid/loss"]
    with torch.no_grad():
        assert found == pytest.approx(whole(trainer.model(INPUTS)).item(), rel=1e-5)
    assert_gradients(trainer, whole)


# --- Terms ----------------------------------------------------------------------------------------


def two_terms(output: Tensor, target: Tensor) -> dict[str, Any]:
    """Two terms and a number."""
    return {
        "entropy": F.cross_entropy(output, target),
        "size": output.square().mean(),
        "share": float((output.argmax(1) == target).double().mean()),
    }


def total_given(output: Tensor, target: Tensor) -> dict[str, Any]:
    terms = two_terms(output, target)
    return {"loss": terms["entropy"] + 0.1 * terms["size"], **terms}


def loss_and_logs(output: Tensor, target: Tensor) -> Any:
    terms = two_terms(output, target)
    return terms["entropy"] + 0.1 * terms["size"], terms


class OfTerms(nn.Module):
    """The same, divided by the targets that are not 0."""

    def denominator(self, target: Tensor) -> Tensor:
        return (target != 0).sum()

    def forward(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        is_counted = target != 0
        return {
            "entropy": F.cross_entropy(output, target, reduction="none")[is_counted].mean(),
            "size": output.square().sum(1)[is_counted].mean(),
            "share": float((output.argmax(1) == target)[is_counted].sum() / is_counted.sum()),
        }


@pytest.fixture(autouse=True)
def _losses(monkeypatch: pytest.MonkeyPatch) -> None:
    for named in (two_terms, total_given, loss_and_logs, OfTerms):
        monkeypatch.setitem(LOSSES.registered, named.__name__, named)


def summed(name: str, output: Tensor) -> Tensor:
    if name == "OfTerms":
        terms = OfTerms()(output, TARGET)
        return terms["entropy"] + terms["size"]
    terms = two_terms(output, TARGET)
    return terms["entropy"] + (1.0 if name == "two_terms" else 0.1) * terms["size"]


NAMES = ["two_terms", "total_given", "loss_and_logs", "OfTerms"]


class Passing(Trainer):
    """Gives on what the loss gives."""

    def compute_losses(self, outputs: Any, batch: Any) -> Any:
        return next(iter(self.losses.values()))(outputs, batch[1])


class Spreading(Trainer):
    """Adds a term of its own beside."""

    def compute_losses(self, outputs: Any, batch: Any) -> Any:
        penalty = sum(p.square().sum() for p in self.model.parameters())
        return {**super().compute_losses(outputs, batch), "penalty": penalty}


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("trainer", [Trainer, Passing, Spreading])
@pytest.mark.parametrize("name", NAMES)
def test_terms_are_summed_and_logged_as_on_all_samples(
    name: str, trainer: type[Trainer], parts: list[str]
) -> None:
    text = CONFIG.replace("cross_entropy", f"{{type: {name}, weight: 0.5}}")
    built = make(*parts, text=text, trainer=trainer)

    def whole(output: Tensor) -> Tensor:
        loss = 0.5 * summed(name, output)
        if trainer is Spreading:
            loss = loss + sum(p.square().sum() for p in built.model.parameters())
        return loss

    found = built.evaluate(built.train_loader, "valid")
    with torch.no_grad():
        output = built.model(INPUTS)
        assert found["valid/loss"] == pytest.approx(whole(output).item(), rel=1e-5)
        terms = OfTerms()(output, TARGET) if name == "OfTerms" else two_terms(output, TARGET)
    for key, value in terms.items():
        assert found[f"valid/{key}"] == pytest.approx(float(value), rel=1e-5), key
    added = {"valid/penalty"} if trainer is Spreading else set()
    if name in ("total_given", "loss_and_logs") and added:
        added |= {f"valid/{name}/loss"}  # beside another term it is no longer the sum
    assert set(found) == {"valid/loss"} | {f"valid/{key}" for key in terms} | added
    assert_gradients(built, whole)


@pytest.mark.parametrize("name", NAMES)
def test_among_several_losses_terms_have_its_name_before_theirs(name: str) -> None:
    losses = f"[{{type: {name}, name: mine, weight: 2}}, {{type: cross_entropy, weight: 0.5}}]"
    trainer = make(*PARTS[1], text=CONFIG.replace("loss: cross_entropy", f"loss: {losses}"))
    found = trainer.evaluate(trainer.train_loader, "valid")
    with torch.no_grad():
        output = trainer.model(INPUTS)
        expected = 2 * summed(name, output) + 0.5 * F.cross_entropy(output, TARGET)
    assert found["valid/loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert {"valid/mine/entropy", "valid/mine/size", "valid/cross_entropy"} < set(found)
    has_total = name in ("total_given", "loss_and_logs")
    assert ("valid/mine/loss" in found) == has_total
    assert_gradients(trainer, lambda o: 2 * summed(name, o) + 0.5 * F.cross_entropy(o, TARGET))


class TwoGroups(Trainer):
    """Names its groups itself; one is of no loss of the config."""

    def compute_losses(self, outputs: Any, batch: Any) -> Any:
        mine = self.losses["two_terms"](outputs, batch[1])
        return {"two_terms": mine, "other": {"a": outputs.abs().mean(), "b": 3.0}, "reg": 0.25}


def test_nested_dicts_of_a_trainer_are_flattened_by_the_same_rule() -> None:
    text = CONFIG.replace("cross_entropy", "{type: two_terms, weight: 0.5}")
    trainer = make(*PARTS[1], text=text, trainer=TwoGroups)
    found = trainer.evaluate(trainer.train_loader, "valid")
    with torch.no_grad():
        output = trainer.model(INPUTS)
        expected = 0.5 * summed("two_terms", output) + output.abs().mean()
    assert found["valid/loss"] == pytest.approx(expected.item(), rel=1e-5)
    names = ["loss", "reg", "other/a", "other/b"]
    names += [f"two_terms/{key}" for key in ("entropy", "size", "share")]
    assert {f"valid/{name}" for name in names} == set(found)
    assert (found["valid/other/b"], found["valid/reg"]) == (3.0, 0.25)


class Own(Trainer):
    """Sums itself, and logs the terms."""

    def compute_losses(self, outputs: Any, batch: Any) -> Any:
        terms = self.losses["two_terms"](outputs, batch[1])
        return {"loss": 3 * terms["entropy"], "terms": terms}


def test_a_total_of_the_trainers_own_is_minimised_as_it_stands() -> None:
    text = CONFIG.replace("cross_entropy", "{type: two_terms, weight: 0.5}")
    trainer = make(*PARTS[1], text=text, trainer=Own)
    found = trainer.evaluate(trainer.train_loader, "valid")
    with torch.no_grad():
        entropy = F.cross_entropy(trainer.model(INPUTS), TARGET)
    assert found["valid/loss"] == pytest.approx(3 * entropy.item(), rel=1e-5)
    assert found["valid/entropy"] == pytest.approx(entropy.item(), rel=1e-5)
    assert_gradients(trainer, lambda output: 3 * F.cross_entropy(output, TARGET))


class Returning(Trainer):
    def compute_losses(self, outputs: Any, batch: Any) -> Any:
        return self.losses["cross_entropy"](outputs, batch[1], weight=WEIGHT)


@pytest.mark.parametrize("parts", PARTS)
def test_one_tensor_is_minimised_as_it_is(parts: list[str]) -> None:
    trainer = make(*parts, text=CONFIG, trainer=Returning)
    assert [*trainer.evaluate(trainer.train_loader, "valid")] == ["valid/loss"]
    assert_gradients(trainer, lambda output: F.cross_entropy(output, TARGET, WEIGHT))


def test_ramps_separate_passes_and_gradient_norms_go_on_working(tmp_path: Any) -> None:
    weight = "{from: 0, to: 2, over: 2 steps}"
    losses = f"[{{type: two_terms, name: mine, weight: {weight}}}, {{type: cross_entropy}}]"
    text = CONFIG.replace("loss: cross_entropy", f"loss: {losses}")
    settings = ["trainer.backward=separate", "trainer.loss_gradients=1 step", "trainer.epochs=3"]
    trainer = make(*settings, text=text)
    log = train_in(trainer)
    assert log["train/weight/mine"] == 2.0
    assert {"train/grad_norm/mine/entropy", "train/grad_norm/cross_entropy"} < set(log)
    summed_up = make(*settings[2:], text=text)
    train_in(summed_up)
    for ours, theirs in zip(trainer.model.parameters(), summed_up.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_term_can_be_monitored_and_a_resumed_run_ends_the_same(tmp_path: Any) -> None:
    text = CONFIG.replace("cross_entropy", "OfTerms")
    how = ["trainer.monitor=min train/entropy", "data_loader.args.batch_size=8"]
    assert_resumes(tmp_path, *how, "trainer.epochs=2", text=text, stop_at=3)
    with pytest.raises(ConfigError, match="did you mean 'train/entropy'"):
        train_in(make(*how[1:], "trainer.monitor=min train/entrop", text=text))
    assert "entropy" in dry_run(make(*how, text=text))


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({}, "loss 'x' returns an empty dict: there is no tensor to minimise"),
        ({"a": 0.5}, "loss 'x' returns only numbers, a: there is no tensor"),
        ({"a": OUTPUT}, r"term 'a' of loss 'x' must return a tensor of one number.* \(20, 3\)"),
        ({"a": OUTPUT.sum(), "b": None}, "term 'b' of loss 'x' must be one number, not None"),
        ({"a": OUTPUT.sum(), "b": {"c": 1}}, "term 'b' of loss 'x' must .*, not a dict"),
        ({"loss": 0.5, "a": OUTPUT.sum()}, "term 'loss' of loss 'x' must be a tensor"),
        ((OUTPUT.sum(), {"loss": OUTPUT.sum()}), "loss 'x' returns two totals"),
        (
            (OUTPUT.sum(), OUTPUT.sum()),
            "loss 'x' must return a tensor of one number.* several as a dict",
        ),
        (
            [OUTPUT.sum(), OUTPUT.sum()],
            "loss 'x' must return a tensor of one number.* several as a dict",
        ),
        (None, "loss 'x' must return a tensor of one number, not None"),
    ],
)
def test_what_is_no_term_is_named(value: Any, fault: str) -> None:
    with pytest.raises(TrainingError, match=fault):
        WeightedLoss("x", lambda output, target: value)(OUTPUT, TARGET)


def test_two_of_one_name_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clashing(Trainer):
        def compute_losses(self, outputs: Any, batch: Any) -> Any:
            return {**super().compute_losses(outputs, batch), "size": outputs.mean()}

    text = CONFIG.replace("cross_entropy", "two_terms")
    with pytest.raises(TrainingError, match="have the name 'size': rename one"):
        check(make(text=text, trainer=Clashing))
    monkeypatch.setitem(METRICS.registered, "size", lambda output, target: 0.0)
    with pytest.raises(ConfigError, match=r"metrics\.0\.name: .*'size' too"):
        check(make("metrics=[size]", text=text))


def test_a_pair_can_be_unpacked_and_a_dict_indexed_by_a_trainer() -> None:
    total, logs = WeightedLoss("x", loss_and_logs)(OUTPUT, TARGET)
    assert total.equal(loss_and_logs(OUTPUT, TARGET)[0])
    assert list(logs) == ["entropy", "size", "share"]
    assert WeightedLoss("x", two_terms)(OUTPUT, TARGET)["size"].equal(OUTPUT.square().mean())


class OwnStep(Trainer):
    def train_step(self, batch: Any) -> dict[str, Any]:
        terms = self.losses["mine"](self.forward(batch), batch[1])
        self.backward(terms)
        self.update()
        total = terms["entropy"] if isinstance(terms, dict) else terms[0]
        return {"loss": total, "all": terms}


@pytest.mark.parametrize("parts", PARTS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_ones_own_minimises_the_sum_and_logs_terms(name: str, parts: list[str]) -> None:
    text = CONFIG.replace("cross_entropy", f"{{type: {name}, name: mine}}")
    assert_gradients(make(*parts, text=text, trainer=OwnStep), functools.partial(summed, name))
    if name == "two_terms":
        values = train_in(make(*parts, text=text, trainer=OwnStep))
        with torch.no_grad():
            expected = two_terms(make(text=text).model(INPUTS), TARGET)
        for key in ("entropy", "size", "share"):
            assert values[f"train/{key}"] == pytest.approx(float(expected[key]), rel=1e-5)
