"""What config and model tell is reported before a folder is made: in `check`, or by the build."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_networks import Pair, WganTrainer
from torch import Tensor, nn
from toy import CONFIG, NETWORKS, assert_same, make, train_in, weights

from base.callbacks import Callback
from base.config import load_config
from base.errors import ConfigError, TrainingError
from base.names.check import check_names
from base.names.registry import DATA_LOADERS, LOSSES, LR_SCHEDULERS, MODELS, OPTIMIZERS
from base.run.checks import check
from base.run.dry_run_report import dry_run
from data_loader.data_loaders import SyntheticDataLoader
from trainer.samples import GeneratedSamples
from trainer.trainer import Trainer

LBFGS = "optimizer={type: LBFGS}"
HELD_OUT = ["data_loader.args.validation_split=4", "data_loader.args.validation_split=0"]


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Pair", Pair)


def networks(*overrides: str, trainer: Any = WganTrainer) -> Any:
    return make(*overrides, trainer=trainer, text=NETWORKS)


@pytest.mark.parametrize("check_trainer", [check, dry_run])
def test_several_optimizers_with_the_step_of_one_network(check_trainer: Any) -> None:
    with pytest.raises(ConfigError, match=r"optimizers: Trainer trains one network with one opt"):
        check_trainer(networks(trainer=Trainer))


def test_an_attribute_that_hides_a_method_of_the_loop() -> None:
    """Else the first save would end the run: 'bool' object is not callable."""

    class Hides(Trainer):
        def __init__(self, experiment: Any) -> None:
            super().__init__(experiment)
            self.save = True

    with pytest.raises(ConfigError, match=r"trainer\.type: Hides sets self\.save, which hides"):
        check(make(trainer=Hides))


def test_one_of_several_sections_is_no_several() -> None:
    one = 'optimizers={all: {type: SGD, args: {lr: 0.1}, params: "*"}}'
    check(make(one, text=CONFIG.replace("optimizer: {type: SGD, args: {lr: 0.1}}", "")))


def own_step(code: Any) -> type[Trainer]:
    class Own(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            loss = self.model.critic(batch[0].flatten(1)).mean()
            code(self, loss)
            return {"loss": loss}

    return Own


@pytest.mark.parametrize("held_out", HELD_OUT)
@pytest.mark.parametrize(
    ("code", "text"),
    [
        (lambda self, loss: self.backward(loss), "say which of the networks: generator, critic"),
        (lambda self, loss: self.backward(loss, only="critc"), "did you mean 'critic'"),
        (lambda self, loss: self.update(), "say which of the networks: generator, critic"),
        (lambda self, loss: self.update("critc"), "did you mean 'critic'"),
        (lambda self, loss: self.is_due("critc"), "did you mean 'critic'"),
        (lambda self, loss: self.only("critc").__enter__(), "did you mean 'critic'"),
    ],
)
def test_a_step_of_ones_own_that_misnames_an_optimizer(code: Any, text: str, held_out: str) -> None:
    valid = {"valid_step": lambda self, batch: {"loss": batch[0].mean()}}
    trainer = networks(held_out, trainer=type("Valid", (own_step(code),), valid))
    with pytest.raises(TrainingError, match=text):
        check(trainer)
    assert trainer.progress.step == 0


def test_lbfgs_without_a_function_to_compute_the_losses_again() -> None:
    class Own(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            loss = self.compute_losses(self.forward(batch), batch)["cross_entropy"]
            self.backward(loss)
            self.update()
            return {"loss": loss}

    with pytest.raises(TrainingError, match=r"self\.update\(again="):
        check(make(LBFGS, trainer=Own))


@pytest.mark.parametrize("held_out", HELD_OUT)
def test_the_trial_of_a_step_changes_nothing(held_out: str) -> None:
    """Against a run that was not checked."""
    valid = {"valid_step": lambda self, batch: {"loss": batch[0].mean()}}
    kind = type("Valid", (WganTrainer,), valid)
    plain = networks(held_out, trainer=kind)
    train_in(plain)
    checked = networks(held_out, trainer=kind)
    check(checked)
    train_in(checked)
    assert_same(weights(checked), weights(plain))


def test_an_error_of_the_users_own_is_left_to_the_training() -> None:
    class Own(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            (self.folder / "x").touch()  # there is none yet
            return super().train_step(batch)

    check(make(trainer=Own))


# --- Losses without a gradient --------------------------------------------------------------------


def error_rate(output: Tensor, target: Tensor) -> Tensor:
    return (output.argmax(dim=1) != target).float().mean()


@pytest.mark.parametrize("held_out", HELD_OUT)
def test_a_loss_without_a_gradient(held_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES.registered, "error_rate", error_rate)
    with pytest.raises(ConfigError, match=r"loss: no gradient reaches the model from 'error_rate'"):
        check(make("loss=error_rate", held_out))
    both = "loss=[{type: cross_entropy}, {type: error_rate}]"
    trainer = make(both, held_out)
    check(trainer)
    train_in(trainer)


def test_a_model_without_gradients_in_evaluation_is_no_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Quiet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(self.training):
                return self.head(x.flatten(1))

    monkeypatch.setitem(MODELS.registered, "Quiet", Quiet)
    check(make("model={type: Quiet}"))


@pytest.mark.parametrize("held_out", HELD_OUT)
def test_a_loss_that_needs_more_samples_is_no_fault(
    held_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crowded(output: Tensor, target: Tensor) -> Tensor:
        if len(output) < 4:
            raise ValueError("too few samples")
        return output.square().mean()

    monkeypatch.setitem(LOSSES.registered, "crowded", crowded)
    check(make("loss=crowded", held_out))


def test_validation_batches_of_another_kind_are_no_fault() -> None:
    """Its validation has a step of its own, which takes no targets."""

    class Unlabelled(Trainer):
        def forward(self, batch: Any) -> Any:
            assert self.model.training, "never asked of a validation batch"
            return super().forward(batch)

        def valid_step(self, batch: Any) -> dict[str, Any]:
            return {"loss": batch[0].mean()}

    trainer = make(trainer=Unlabelled)
    batches = trainer.valid_loader.batches
    trainer.valid_loader.batches = lambda *args: (batch[:1] for batch in batches(*args))
    check(trainer)


# --- What is watched ------------------------------------------------------------------------------

PLATEAU = "lr_scheduler={type: ReduceLROnPlateau, monitor: %s}"


@pytest.mark.parametrize(
    "options",
    [
        ["trainer.monitor=min train/los"],
        ["trainer.monitor=min train/grad_norm"],
        ["trainer.monitor=max train/accuracy", "metrics=[accuracy]", "trainer.train_metrics=false"],
        ["trainer.monitor=max valid/accuracy", "metrics=[accuracy]", HELD_OUT[1]],
        [PLATEAU % "min train/los"],
        [PLATEAU % "min valid/loss", HELD_OUT[1]],
    ],
)
def test_what_training_will_not_log_cannot_be_watched(options: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"monitor: no value"):
        check(make(*options))


@pytest.mark.parametrize(
    "options",
    [
        ["trainer.monitor=min train/loss"],
        ["trainer.monitor=min train/grad_norm", "optimizer.clip_norm=1.0"],
        ["trainer.monitor=max train/accuracy", "metrics=[accuracy]"],
        ["trainer.monitor=max train/accuracy", "metrics=[accuracy]", HELD_OUT[1]],
        ["trainer.monitor=max train/Recall/macro", "metrics=[Recall]"],
        ["trainer.monitor=max train/Recall/macro", "metrics=[Recall]", HELD_OUT[1]],
        [
            "trainer.monitor=min train/grad_norm/a",
            "loss=[{type: cross_entropy, name: a}, {type: cross_entropy, name: b}]",
            "trainer.loss_gradients=1 steps",
        ],
        [
            "trainer.monitor=min train/weight/a",
            "loss=[{type: cross_entropy, name: a, weight: {from: 1, to: 2}}]",
        ],
        [PLATEAU % "min train/loss"],
    ],
)
def test_what_training_logs_can_be(options: list[str]) -> None:
    trainer = make(*options)
    check(trainer)
    train_in(trainer)


def test_a_value_of_a_step_of_ones_own_can_be_watched() -> None:
    class Own(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            return {**super().train_step(batch), "mine": torch.ones(())}

    trainer = make("trainer.monitor=min train/mine", trainer=Own)
    check(trainer)
    train_in(trainer)
    with pytest.raises(ConfigError, match="did you mean 'train/mine'"):
        check(make("trainer.monitor=min train/min", trainer=Own))


# --- Tests, callbacks, optimizers and schedulers --------------------------------------------------


def test_a_test_at_the_end_needs_test_data(monkeypatch: pytest.MonkeyPatch) -> None:
    check(make("trainer.test=true"))  # its loader has `training`

    def bare(batch_size: int, validation_split: int) -> SyntheticDataLoader:
        return SyntheticDataLoader(24, (1, 1, 5), 3, batch_size, True, validation_split)

    monkeypatch.setitem(DATA_LOADERS.registered, "bare", bare)
    section = "data_loader={type: bare, args: {batch_size: 4, validation_split: 4}}"
    plain = CONFIG[: CONFIG.index("data_loader:")] + CONFIG[CONFIG.index("optimizer:") :]
    with pytest.raises(ConfigError, match="add a `test_data_loader` section"):
        check(make("trainer.test=true", section, text=plain))


def test_callbacks_are_asked() -> None:
    class Asks(Callback):
        def check(self, trainer: Any) -> None:
            raise ConfigError([trainer.config.problem(("callbacks",), "not with this model")])

    trainer = make()
    trainer.callbacks["asks"] = Asks()
    with pytest.raises(ConfigError, match="callbacks: not with this model"):
        check(trainer)
    trainer.callbacks["asks"] = GeneratedSamples()
    with pytest.raises(ConfigError, match=r"Trainer\.generate"):
        check(trainer)


class NeedsClosure(torch.optim.SGD):
    def step(self, closure: Any) -> None:  # type: ignore[override]
        closure()


class Manual:
    """A scheduler that is asked for the value it is to follow."""

    def __init__(self, optimizer: Any) -> None: ...

    def step(self, value: float) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stateless:
    def __init__(self, optimizer: Any) -> None: ...

    def step(self) -> None: ...


@pytest.fixture
def _own_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS.registered, "NeedsClosure", NeedsClosure)
    monkeypatch.setitem(LR_SCHEDULERS.registered, "Manual", Manual)
    monkeypatch.setitem(LR_SCHEDULERS.registered, "Stateless", Stateless)


@pytest.mark.usefixtures("_own_ones")
@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("optimizer.type=NeedsClosure", "optimizer: the step of NeedsClosure requires closure"),
        ("lr_scheduler={type: Manual}", "lr_scheduler: Manual cannot be used: .*requires value"),
        ("lr_scheduler={type: Stateless}", "it has no state_dict and no load_state_dict"),
    ],
)
def test_what_could_not_make_its_first_step(section: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make(section)


def inner(part: str) -> str:
    return f"lr_scheduler={{type: ChainedScheduler, args: {{schedulers: [{part}]}}}}"


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (inner("{type: ConstantLR, every: step}"), "args.schedulers.0.every: unknown key"),
        (inner("{type: ConstantLR, arg: {factor: 1}}"), "0.arg: unknown key; did you mean 'args'"),
        (inner("{args: {gamma: 1}}"), "args.schedulers.0: expected {type: ..., args: ...}"),
        (inner("ConstantLR"), "args.schedulers.0: expected {type: ..., args: ...}, found the text"),
        (
            "lr_scheduler={type: ChainedScheduler, args: {schedulers: {type: ConstantLR}}}",
            "args.schedulers: expected a list of schedulers, found a section",
        ),
    ],
)
def test_a_scheduler_within_another_has_a_type_and_arguments_alone(section: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_names(load_config(None, [section], text=CONFIG))
    assert text in str(caught.value)


def test_a_tensor_kept_from_the_evaluation_leaves_no_gradient() -> None:
    class Keeps(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            self.kept = batch[0] * 1
            return super().train_step(batch)

        def valid_step(self, batch: Any) -> dict[str, Any]:
            self.kept = batch[0] * 1  # in inference mode
            return super().valid_step(batch)

    trainer = make(trainer=Keeps)
    check(trainer)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
