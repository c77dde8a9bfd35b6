"""A resumed run that is longer or shorter: its rates from there on are those of an unbroken one."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import assert_same, make, run, train_in

from base.checkpoint.store import read
from base.config.changes import effect_of
from base.run.session import open_folder
from base.training.parameter_groups import learning_rates
from trainer.trainer import Trainer

S = torch.optim.lr_scheduler
PER_EPOCH = 5

# Each scheduler of torch with whatever length it has as a share of the training.
CASES = {
    "LambdaLR": "{lr_lambda: halve}",
    "MultiplicativeLR": "{lr_lambda: shrink}",
    "StepLR": "{step_size: 20%, gamma: 0.3}",
    "MultiStepLR": "{milestones: [20%, 60%], gamma: 0.3}",
    "ConstantLR": "{factor: 0.2, total_iters: 60%}",
    "LinearLR": "{start_factor: 0.2, end_factor: 0.7, total_iters: 100%}",
    "ExponentialLR": "{gamma: 0.7}",
    "CosineAnnealingLR": "{}",
    "CosineAnnealingWarmRestarts": "{T_0: 25%, T_mult: 2}",
    "OneCycleLR": "{max_lr: 0.4}",
    "CyclicLR": "{base_lr: 0.01, max_lr: 0.4, step_size_up: 25%, mode: triangular2}",
    "PolynomialLR": "{total_iters: 100%, power: 2}",
    "SequentialLR": "{schedulers: [{type: LinearLR, args: {start_factor: 0.2, total_iters: 20%}}, "
    "{type: CosineAnnealingLR}], milestones: [40%]}",
    "ChainedScheduler": "{schedulers: [{type: PolynomialLR, args: {total_iters: 80%}}, "
    "{type: ExponentialLR, args: {gamma: 0.9}}]}",
}
# How many epochs a run is to have, the step it is stopped at, and how many it has when resumed.
CUTS = {
    "ended": (2, None, 3), "ended, much longer": (2, None, 5), "long boundary": (3, 5, 5),
    "long middle": (3, 8, 5), "short middle": (5, 8, 3), "short boundary": (5, 10, 3),
}  # fmt: skip
# A scheduler that changes the rate each step meets every cut. One that does so each epoch, or with
# a warmup, meets one of each kind: after the end, longer in mid-epoch, shorter between epochs.
ONE_OF_EACH_KIND = ("ended, much longer", "long middle", "short boundary")
GROUPS = (
    "optimizer.args={lr: 0.1, momentum: 0.9}",
    "optimizer.param_groups=[{match: '*.bias', lr: 0.5}]",
)


@pytest.fixture(autouse=True)
def _functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for two functions that a project defines."""

    from base.names import check, construction, registry

    own = {"halve": lambda k: 0.5**k, "shrink": lambda k: 1 / (k + 1)}
    for module in (check, construction):
        monkeypatch.setattr(
            module, "find", lambda kind, name: own.get(name) or registry.find(kind, name)
        )


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Hold (lr, momentum) of all groups at each step, as the optimizer itself sees them."""
    steps: list[Any] = []
    init = Trainer.__init__

    def noting(self: Any, experiment: Any) -> None:
        init(self, experiment)
        experiment.optimizers["main"].register_step_pre_hook(note)

    def note(optimizer: Any, *_: Any) -> None:
        groups = optimizer.param_groups
        steps.append([(float(group["lr"]), group.get("momentum")) for group in groups])

    monkeypatch.setattr(Trainer, "__init__", noting)
    return steps


def section(name: str, every: str = "step", warmup: str = "") -> str:
    more = f", warmup: {warmup}" if warmup else ""
    return f"lr_scheduler={{type: {name}, every: {every}, args: {CASES[name]}{more}}}"


def epochs(n: int) -> str:
    return f"trainer.epochs={n}"


def test_all_of_torch_are_covered() -> None:
    assert {*CASES, "ReduceLROnPlateau"} == set(S.__all__) - {"LRScheduler"}


@pytest.mark.parametrize(
    ("name", "every", "warmup"),
    [
        *((name, every, "") for name in CASES for every in ("step", "epoch")),
        *((name, "step", "30%") for name in CASES),
        ("CosineAnnealingLR", "epoch", "30%"),
    ],
)
def test_from_the_resume_on_rates_are_those_of_an_unbroken_run(
    name: str, every: str, warmup: str, noted: list[Any], tmp_path: Path
) -> None:
    own = (*GROUPS, section(name, every, warmup))
    unbroken = {}
    for n in (3, 5):
        run(tmp_path / str(n), *own, epochs(n))
        unbroken[n] = noted.copy()
        noted.clear()
    meets_all = (every, warmup) == ("step", "")
    for folder in CUTS if meets_all else ONE_OF_EACH_KIND:
        at_first, stop_at, n = CUTS[folder]
        run(tmp_path / folder, *own, epochs(at_first), stop_at=stop_at)
        noted.clear()
        run(tmp_path / folder, *own, epochs(n), resume=True)
        rest = unbroken[n][-len(noted) :]
        assert len(noted) == PER_EPOCH * n - (stop_at or PER_EPOCH * at_first)
        assert noted == rest, folder  # to the bit
        ours, theirs = read(tmp_path / folder), read(tmp_path / str(n))
        assert_same(ours["schedule.main"], theirs["schedule.main"])
    if meets_all:
        run(tmp_path / "ended", *own, epochs(5), resume=True)  # a second time
        assert noted[-10:] == unbroken[5][-10:]


def test_the_closed_form_of_a_cosine(noted: list[Any], tmp_path: Path) -> None:
    """The issue's own example: epochs 3 and 4 were trained at a rate of 0."""
    cosine = "lr_scheduler={type: CosineAnnealingLR}"
    run(tmp_path, cosine, epochs(2))
    run(tmp_path, cosine, epochs(4), resume=True)
    rates = [rate for ((rate, _),) in noted]
    then = [0.05 * (1 + math.cos(math.pi * epoch / 2)) for epoch in (0, 1)]
    now = [0.05 * (1 + math.cos(math.pi * epoch / 4)) for epoch in (2, 3)]
    expected = [rate for rate in then + now for _ in range(PER_EPOCH)]
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("length", ["trainer.steps=23", "trainer.steps=9"])
def test_a_length_in_steps_is_followed_too(length: str, noted: list[Any], tmp_path: Path) -> None:
    off, own = "trainer.epochs=null", (*GROUPS, section("OneCycleLR", warmup="20%"))
    run(tmp_path / "whole", *own, off, length)
    unbroken = noted.copy()
    run(tmp_path / "cut", *own, off, "trainer.steps=14", stop_at=7)
    noted.clear()
    run(tmp_path / "cut", *own, off, length, resume=True)
    assert noted == unbroken[7:]


@pytest.mark.parametrize(
    "written",
    [
        "CosineAnnealingLR, every: step, args: {T_max: 10}",
        "CosineAnnealingLR, args: {T_max: 2 epochs}",
        "LinearLR, every: step, args: {total_iters: 12}",
        "StepLR, every: step, args: {step_size: 6 steps}, warmup: 1 epoch",
        "PolynomialLR, args: {total_iters: 3}",
        "OneCycleLR, every: step, args: {max_lr: 1, epochs: 4, steps_per_epoch: 5}",
        "SequentialLR, args: {milestones: [2], schedulers: [{type: ConstantLR}, {type: StepLR, "
        "args: {step_size: 1}}]}",
    ],
)
def test_lengths_given_as_numbers_stay(written: str, noted: list[Any], tmp_path: Path) -> None:
    own = (*GROUPS, f"lr_scheduler={{type: {written}}}")
    run(tmp_path / "whole", *own, epochs(4))
    unbroken = noted.copy()
    run(tmp_path / "cut", *own, epochs(2))
    state = read(tmp_path / "cut")["optimizer.main"]["param_groups"]
    noted.clear()
    run(tmp_path / "cut", *own, epochs(4), resume=True)
    assert noted == unbroken[10:]
    assert noted[0][0][0] == state[0]["lr"], "no jump"


def test_what_the_state_has_of_its_own_stays_while_the_length_changes(
    noted: list[Any], tmp_path: Path
) -> None:
    """As the table of changes says: a rate, a factor and a floor are those that the run has."""
    then = (*GROUPS, section("LinearLR"))
    run(tmp_path / "whole", *then, epochs(4))
    unbroken = noted.copy()
    run(tmp_path / "cut", *then, epochs(2))
    now = "lr_scheduler={type: LinearLR, every: step, args: {start_factor: 0.9, total_iters: 100%}}"
    noted.clear()
    run(tmp_path / "cut", "optimizer.args={lr: 7, momentum: 0.9}", GROUPS[1], now, epochs(4),
        resume=True)  # fmt: skip
    assert noted == unbroken[10:]


def test_a_length_that_the_config_changes_is_followed(noted: list[Any], tmp_path: Path) -> None:
    def step_lr(size: str) -> str:
        return (
            f"lr_scheduler={{type: StepLR, every: step, args: {{step_size: {size}, gamma: 0.5}}}}"
        )

    run(tmp_path / "whole", step_lr("3"), epochs(3))
    unbroken = noted.copy()
    run(tmp_path / "cut", step_lr("7"), epochs(3), stop_at=6)
    noted.clear()
    run(tmp_path / "cut", step_lr("3"), epochs(3), resume=True)
    assert noted == unbroken[6:]


@pytest.mark.parametrize(
    "now",
    ["{type: ExponentialLR, every: step, args: {gamma: 0.8}}", "{type: LinearLR, args: {}}"],
)
def test_another_scheduler_is_where_it_would_be(now: str, noted: list[Any], tmp_path: Path) -> None:
    """Its state was laid over the former one's, attribute by attribute."""
    run(tmp_path / "whole", *GROUPS, f"lr_scheduler={now}", epochs(3))
    unbroken = noted.copy()
    run(tmp_path / "cut", *GROUPS, section("OneCycleLR", every="epoch"), epochs(3), stop_at=6)
    noted.clear()
    run(tmp_path / "cut", *GROUPS, f"lr_scheduler={now}", epochs(3), resume=True)
    assert noted == unbroken[6:]


class TwoOptimizers(Trainer):
    def train_step(self, batch: Any) -> Any:
        loss = self.compute_losses(self.forward(batch), batch)["cross_entropy"]
        self.backward(loss, only="one", retain_graph=True)
        self.backward(loss, only="two")
        self.update("one")
        self.update("two")
        return {"loss": loss}


def test_each_of_several_optimizers_follows(tmp_path: Path) -> None:
    one = (
        "{type: SGD, args: {lr: 0.1}, params: 'hidden.*', lr_scheduler: {type: CosineAnnealingLR}}"
    )
    two = (
        "{type: Adam, args: {lr: 0.01}, params: 'head.*', every: 2 steps, lr_scheduler: "
        "{type: OneCycleLR, every: step, args: {max_lr: 0.2}, warmup: 20%}}"
    )
    own = ("optimizer=null", f"optimizers={{one: {one}, two: {two}}}")
    run(tmp_path / "cut", *own, epochs(2), trainer=TwoOptimizers)
    run(tmp_path / "cut", *own, epochs(4), resume=True, stop_at=17, trainer=TwoOptimizers)
    run(tmp_path / "whole", *own, epochs(4), stop_at=17, trainer=TwoOptimizers)
    ours, theirs = read(tmp_path / "cut"), read(tmp_path / "whole")
    for name in ("one", "two"):
        assert_same(ours[f"schedule.{name}"], theirs[f"schedule.{name}"])
        groups = [state[f"optimizer.{name}"]["param_groups"] for state in (ours, theirs)]
        assert groups[0] == groups[1]
    assert ours["progress"]["rates"] == theirs["progress"]["rates"]


def test_a_group_that_thaws_later_has_its_rate(noted: list[Any], tmp_path: Path) -> None:
    """Shares in `freeze:` and in the weights of losses are of the new length too."""
    own = (
        *GROUPS, section("LinearLR"), "freeze=[{match: '*.bias', until: 50%}]",
        "loss={type: cross_entropy, weight: {from: 1, to: 3, over: 100%}}",
    )  # fmt: skip
    run(tmp_path / "whole", *own, epochs(4))
    unbroken = noted.copy()
    run(tmp_path / "cut", *own, epochs(2), stop_at=7)
    assert make(*own, epochs(2)).losses["cross_entropy"].weight_at(7) == pytest.approx(2.4)
    noted.clear()
    made = run(tmp_path / "cut", *own, epochs(4), resume=True, stop_at=9)
    assert made.losses["cross_entropy"].weight_at(9) == pytest.approx(1 + 2 * 9 / 20)
    biases = [p.requires_grad for n, p in made.model.named_parameters() if n.endswith("bias")]
    assert not any(biases), "trained from step 10 of 20 on"
    run(tmp_path / "cut", *own, epochs(4), resume=True)
    assert noted == unbroken[7:]


# --- ReduceLROnPlateau: what it has measured cannot be computed again -----------------------------

# A threshold of 10 (relative) is never met, so that each epoch halves the rate.
PLATEAU = "type: ReduceLROnPlateau, args: {patience: 0, factor: 0.5, threshold: 10}"


@pytest.mark.parametrize("warmup", ["", ", warmup: 20%"])
def test_a_plateau_goes_on_from_its_rate(warmup: str, noted: list[Any], tmp_path: Path) -> None:
    own = f"lr_scheduler={{{PLATEAU}{warmup}}}"
    run(tmp_path, own, epochs(3))
    noted.clear()
    run(tmp_path, own, epochs(20), resume=True)  # whose warm-up takes 4 epochs
    rates = [rate for ((rate, _),) in noted]
    assert rates[::PER_EPOCH] == pytest.approx([0.1 * 0.5**k for k in range(3, 20)])


def test_a_plateau_in_its_warm_up_takes_the_new_one(noted: list[Any], tmp_path: Path) -> None:
    own = f"lr_scheduler={{{PLATEAU}, warmup: 60%}}"
    run(tmp_path / "whole", own, epochs(4))
    unbroken = noted.copy()
    run(tmp_path / "cut", own, epochs(2), stop_at=4)
    noted.clear()
    run(tmp_path / "cut", own, epochs(4), resume=True)
    assert noted == unbroken[4:]


# --- What a user sees -----------------------------------------------------------------------------


def test_fewer_epochs_than_were_trained_say_that_nothing_is_left(
    noted: list[Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = (*GROUPS, section("OneCycleLR"))
    run(tmp_path / "ended", *own, epochs(3))
    run(tmp_path / "cut", *own, epochs(3), stop_at=8)
    noted.clear()
    with caplog.at_level(logging.INFO, "kindling"):
        run(tmp_path / "ended", *own, epochs(1), resume=True)
        assert "training is complete: step 15 of 5" in caplog.text
        caplog.clear()
        run(tmp_path / "cut", *own, epochs(1), resume=True)
        assert "training is complete: step 8 of 5" in caplog.text
    assert noted == []
    run(tmp_path / "ended", *own, epochs(4), resume=True)
    run(tmp_path / "whole", *own, epochs(4))
    assert noted[:5] == noted[-5:]


@pytest.mark.parametrize(
    ("key", "effect"),
    [
        ("lr_scheduler.args.gamma", "the saved state has its own"),
        ("lr_scheduler.args.schedulers.0.args.gamma", "the saved state has its own"),
        ("optimizers.critic.lr_scheduler.args.eta_min", "the saved state has its own"),
        ("lr_scheduler.args.step_size", "applied"),
        ("lr_scheduler.args.milestones.1", "applied"),
        ("lr_scheduler.args.schedulers.1.args.schedulers.0.args.total_iters", "applied"),
        ("lr_scheduler.args.schedulers.0.type", "applied"),
        ("lr_scheduler.type", "applied"),
        ("lr_scheduler.warmup", "applied"),
        ("lr_scheduler.args.mode", "applied"),
    ],
)
def test_a_changed_key_says_what_comes_of_it(key: str, effect: str) -> None:
    assert effect_of(key) == effect


def test_the_table_of_changes_shows_the_rates(tmp_path: Path) -> None:
    text = (tmp_path / "saved", *GROUPS, "lr_scheduler={type: CosineAnnealingLR}")
    overrides = [f"trainer.save_dir={text[0]}", *text[1:], "trainer.verbosity=2"]
    trainer = make(*overrides)
    with open_folder(trainer.config) as folder:
        train_in(trainer, folder)
    trainer = make(*overrides, epochs(4))
    with open_folder(trainer.config, folder) as folder:
        train_in(trainer, folder, folder)
    log = (folder / "log.txt").read_text()
    table = log[log.rindex("changed since the run began") :].splitlines()[1:5]
    rows = [line.split() for line in table]
    assert rows[1:] == [
        ["trainer.epochs", "2", "4", "applied"],
        ["lr/0", "at", "step", "11", "0", "0.05", "follows", "the", "new", "schedule"],
        ["lr/1", "at", "step", "11", "0", "0.25", "follows", "the", "new", "schedule"],
    ]


@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("name", ["ExponentialLR", "LinearLR", "SequentialLR"])
def test_a_state_from_before_tells_of_its_warm_up(name: str, every: str) -> None:
    """Six of ten steps, two of them of the warm-up; of forty they are eight."""
    own = (section(name, every, "20%"), epochs(2))
    old, new, whole = make(*own), make(own[0], epochs(8)), make(own[0], epochs(8))
    for schedule in (old.schedules["main"], whole.schedules["main"]):
        schedule.scheduler.optimizer._opt_called = True
        for step in range(1, 7):
            schedule.after_step()
            if step == 5:
                schedule.after_epoch({})
    state = old.schedules["main"].state_dict()
    kept = {key: state[key] for key in ("n_steps", "targets", "scheduler")}
    new.schedules["main"].load_state_dict(kept)
    new.optimizers["main"].load_state_dict(old.optimizers["main"].state_dict())
    new.schedules["main"].follow_new_length()
    assert new.schedules["main"].state_dict() == whole.schedules["main"].state_dict()
    assert learning_rates(new.optimizers) == learning_rates(whole.optimizers)
    assert learning_rates(new.optimizers) != learning_rates(old.optimizers)


def test_another_mode_of_a_cycle_is_followed(noted: list[Any], tmp_path: Path) -> None:
    def cyclic(mode: str) -> str:
        args = f"{{base_lr: 0.01, max_lr: 0.4, step_size_up: 2, mode: {mode}}}"
        return f"lr_scheduler={{type: CyclicLR, every: step, args: {args}}}"

    run(tmp_path / "whole", GROUPS[0], cyclic("triangular2"), epochs(3))
    unbroken = noted.copy()
    run(tmp_path / "cut", GROUPS[0], cyclic("triangular"), epochs(3), stop_at=6)
    noted.clear()
    run(tmp_path / "cut", GROUPS[0], cyclic("triangular2"), epochs(3), resume=True)
    assert noted == unbroken[6:]


def test_a_checkpoint_from_before_lengths_were_saved_follows_too(
    noted: list[Any], tmp_path: Path
) -> None:
    """The frozen run of format 1: step 7 of 10, OneCycleLR; taken to 4 epochs."""
    frozen = Path(__file__).resolve().parents[2] / "data" / "format_1"
    text = (frozen / "config.yaml").read_text(encoding="utf-8")
    shutil.copytree(frozen / "checkpoints", tmp_path / "checkpoints")
    before = read(tmp_path)["optimizer.main"]["param_groups"][0]["lr"]
    trainer = run(tmp_path, epochs(4), text=text, resume=True, stop_at=8)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduler, rates = S.OneCycleLR(optimizer, 0.05, total_steps=20), []
    for _ in range(9):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert trainer.progress.rates == {"lr": rates[7]} != {"lr": before}
    assert learning_rates(trainer.optimizers) == {"lr": rates[8]}
