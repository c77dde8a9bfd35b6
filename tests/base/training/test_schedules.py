"""Learning rates over time: each scheduler of torch as if stepped by hand, durations, warm-up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from toy import NETWORKS, assert_resumes, make, run, train_in

from base.callbacks import Callback
from base.errors import ConfigError
from base.names.registry import LR_SCHEDULERS, names
from base.training.parameter_groups import learning_rates

S = torch.optim.lr_scheduler
ABSTRACT = {"LRScheduler"}
TORCH = [name for name in names("lr_scheduler") if hasattr(S, name)]
TOTAL, PER_EPOCH = 15, 5  # steps of the toy run of three epochs

# Arguments in the config, and the same as a function of the optimizer and the number of ticks.
CASES: dict[str, tuple[str, Any]] = {
    "LambdaLR": ("{lr_lambda: halve}", lambda o, n: S.LambdaLR(o, lambda k: 0.5**k)),
    "MultiplicativeLR": (
        "{lr_lambda: shrink}",
        lambda o, n: S.MultiplicativeLR(o, lambda k: 1 / (k + 1)),
    ),
    "StepLR": ("{step_size: 2, gamma: 0.3}", lambda o, n: S.StepLR(o, 2, 0.3)),
    "MultiStepLR": (
        "{milestones: [1, 2], gamma: 0.3}",
        lambda o, n: S.MultiStepLR(o, [1, 2], 0.3),
    ),
    "ConstantLR": (
        "{factor: 0.2, total_iters: 2}",
        lambda o, n: S.ConstantLR(o, 0.2, 2),
    ),
    "LinearLR": ("{start_factor: 0.2, total_iters: 3}", lambda o, n: S.LinearLR(o, 0.2, 1.0, 3)),
    "ExponentialLR": ("{gamma: 0.7}", lambda o, n: S.ExponentialLR(o, 0.7)),
    "CosineAnnealingLR": (
        "{eta_min: 0.01}",
        lambda o, n: S.CosineAnnealingLR(o, T_max=n, eta_min=0.01),
    ),
    "CosineAnnealingWarmRestarts": (
        "{T_0: 2, T_mult: 2}",
        lambda o, n: S.CosineAnnealingWarmRestarts(o, 2, 2),
    ),
    "OneCycleLR": ("{max_lr: 0.4}", lambda o, n: S.OneCycleLR(o, 0.4, total_steps=n)),
    "CyclicLR": (
        "{base_lr: 0.01, max_lr: 0.4, step_size_up: 3, mode: triangular2}",
        lambda o, n: S.CyclicLR(o, 0.01, 0.4, 3, mode="triangular2"),
    ),
    "PolynomialLR": ("{total_iters: 4, power: 2}", lambda o, n: S.PolynomialLR(o, 4, 2)),
    "SequentialLR": (
        "{schedulers: [{type: ConstantLR, args: {factor: 0.2, total_iters: 2}}, "
        "{type: ExponentialLR, args: {gamma: 0.9}}], milestones: [2]}",
        lambda o, n: S.SequentialLR(
            o, [S.ConstantLR(o, 0.2, 2), S.ExponentialLR(o, 0.9)], milestones=[2]
        ),
    ),
    "ChainedScheduler": (
        "{schedulers: [{type: LinearLR, args: {start_factor: 0.2, total_iters: 2}}, "
        "{type: ExponentialLR, args: {gamma: 0.9}}]}",
        lambda o, n: S.ChainedScheduler([S.LinearLR(o, 0.2, 1.0, 2), S.ExponentialLR(o, 0.9)]),
    ),
}


@pytest.fixture(autouse=True)
def _functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for two functions that a project defines."""

    from base.names import check, construction, registry

    own = {"halve": lambda k: 0.5**k, "shrink": lambda k: 1 / (k + 1)}
    for module in (check, construction):
        monkeypatch.setattr(
            module, "find", lambda kind, name: own.get(name) or registry.find(kind, name)
        )


class Rates(Callback):
    """Notes the rate that each step was made with."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.after_epochs: list[float] = []

    def on_step_end(self, trainer: Any) -> None:
        # The scheduler has ticked already: the rates here are those of the next step.
        self.seen.append(next(iter(learning_rates(trainer.optimizers).values())))

    def on_epoch_end(self, trainer: Any, values: Any) -> None:
        self.after_epochs.append(next(iter(learning_rates(trainer.optimizers).values())))


def rates_of(*overrides: str, **how: Any) -> list[float]:
    """Train and return the rate of each step, the first included."""
    trainer = make("trainer.epochs=3", *overrides, **how)
    first = next(iter(learning_rates(trainer.optimizers).values()))
    noted: list[float] = []
    optimizer = next(iter(trainer.optimizers.values()))
    optimizer.register_step_pre_hook(lambda o, *_: noted.append(o.param_groups[0]["lr"]))
    train_in(trainer)
    assert noted[0] == first
    return noted


def by_hand(scheduler: Any, n_ticks: int, steps_per_tick: int, lr: float = 0.1) -> list[float]:
    """Step a torch scheduler of our own making; return the rate of each step."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=lr, momentum=0.9)
    made = scheduler(optimizer, n_ticks)
    rates = []
    for _ in range(n_ticks):
        for _ in range(steps_per_tick):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
        made.step()
    return rates


MOMENTUM = "optimizer.args={lr: 0.1, momentum: 0.9}"


def section(name: str, **more: str) -> str:
    extra = "".join(f", {key}: {value}" for key, value in more.items())
    return f"lr_scheduler={{type: {name}, args: {CASES[name][0]}{extra}}}"


def test_all_of_torch_are_covered() -> None:
    classes = set(S.__all__) - ABSTRACT
    assert classes <= set(TORCH)
    assert classes == {*CASES, "ReduceLROnPlateau"}


@pytest.mark.parametrize("name", CASES)
def test_rates_per_step_are_those_of_a_loop_by_hand(name: str) -> None:
    expected = by_hand(CASES[name][1], TOTAL, 1)
    assert rates_of(MOMENTUM, section(name, every="step")) == expected


@pytest.mark.parametrize("name", CASES)
def test_rates_per_epoch_are_those_of_a_loop_by_hand(name: str) -> None:
    expected = by_hand(CASES[name][1], TOTAL // PER_EPOCH, PER_EPOCH)
    assert rates_of(MOMENTUM, section(name)) == expected


@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("name", CASES)
def test_a_scheduler_resumes_to_the_same_bits(name: str, every: str, tmp_path: Path) -> None:
    assert_resumes(tmp_path, MOMENTUM, section(name, every=every), stop_at=6)


def test_momentum_cycles_too() -> None:
    trainer = make(MOMENTUM, "trainer.epochs=3", section("OneCycleLR", every="step"))
    noted: list[float] = []
    optimizer = trainer.optimizers["main"]
    optimizer.register_step_pre_hook(lambda o, *_: noted.append(o.param_groups[0]["momentum"]))
    train_in(trainer)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler, expected = S.OneCycleLR(optimizer, 0.4, total_steps=TOTAL), []
    for _ in range(TOTAL):
        expected.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    assert noted == expected


def test_each_group_follows_its_own_rate() -> None:
    groups = "optimizer.param_groups=[{match: '*.bias', lr: 0.5}]"
    trainer = make(groups, "lr_scheduler={type: ExponentialLR, args: {gamma: 0.5}}")
    train_in(trainer)
    assert learning_rates(trainer.optimizers) == {"lr/0": 0.1 * 0.25, "lr/1": 0.5 * 0.25}


def test_the_scheduler_steps_once_for_each_step_of_the_optimizer_under_accumulation() -> None:
    expected = by_hand(CASES["ExponentialLR"][1], 9, 1)  # windows of 2, 2 and 1 in each epoch
    assert rates_of("memory.accumulate=2", section("ExponentialLR", every="step")) == expected
    one_cycle = by_hand(CASES["OneCycleLR"][1], 9, 1)
    rates = rates_of(MOMENTUM, "memory.accumulate=2", section("OneCycleLR", every="step"))
    assert rates == one_cycle


# --- Groups of different rates --------------------------------------------------------------------

GROUPS = "optimizer.param_groups=[{match: '*.bias', lr: 0.5}]"
LEVEL = {  # arguments without a floor that is one number for all groups
    **{name: arguments for name, (arguments, _) in CASES.items()},
    "CosineAnnealingLR": "{}",
}


def rates_of_groups(*overrides: str) -> list[tuple[float, ...]]:
    """Train and return the rates of all groups at each step."""
    trainer = make("trainer.epochs=3", MOMENTUM, *overrides)
    noted: list[tuple[float, ...]] = []
    optimizer = trainer.optimizers["main"]
    optimizer.register_step_pre_hook(lambda o, *_: noted.append(_rates(o)))
    train_in(trainer)
    return [*noted, _rates(optimizer)]


def _rates(optimizer: Any) -> tuple[float, ...]:
    return tuple(float(group["lr"]) for group in optimizer.param_groups)


def groups_by_hand(scheduler: Any) -> list[tuple[float, ...]]:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.5}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    made, rates = scheduler(optimizer), []
    for _ in range(TOTAL):
        rates.append(_rates(optimizer))
        optimizer.step()
        made.step()
    return [*rates, _rates(optimizer)]


@pytest.mark.parametrize("warmup", ["", ", warmup: 4 steps"])
@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("name", LEVEL)
def test_ratios_between_groups_survive(name: str, every: str, warmup: str) -> None:
    own = f"lr_scheduler={{type: {name}, every: {every}, args: {LEVEL[name]}{warmup}}}"
    rates = rates_of_groups(GROUPS, own)
    assert len({first for first, _ in rates}) > 1, "the schedule does something"
    for first, second in rates:
        assert second == pytest.approx(5 * first, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("name", "one", "by_hand"),
    [
        ("OneCycleLR", "{max_lr: 0.4}", lambda o: S.OneCycleLR(o, [0.4, 2.0], total_steps=TOTAL)),
        (
            "CyclicLR",
            "{base_lr: 0.01, max_lr: 0.4, step_size_up: 3}",
            lambda o: S.CyclicLR(o, [0.01, 0.05], [0.4, 2.0], 3),
        ),
    ],
)
def test_one_rate_is_scaled_to_each_groups_own(name: str, one: str, by_hand: Any) -> None:
    rates = rates_of_groups(GROUPS, f"lr_scheduler={{type: {name}, every: step, args: {one}}}")
    assert rates == [pytest.approx(each, rel=1e-12) for each in groups_by_hand(by_hand)]


@pytest.mark.parametrize(
    ("name", "lists", "by_hand"),
    [
        (
            "OneCycleLR",
            "{max_lr: [0.4, 0.7], base_momentum: [0.5, 0.6], max_momentum: [0.7, 0.8]}",
            lambda o: S.OneCycleLR(
                o,
                [0.4, 0.7],
                total_steps=TOTAL,
                base_momentum=[0.5, 0.6],
                max_momentum=[0.7, 0.8],
            ),
        ),
        (
            "CyclicLR",
            "{base_lr: [0.01, 0.02], max_lr: [0.4, 0.7], step_size_up: 3}",
            lambda o: S.CyclicLR(o, [0.01, 0.02], [0.4, 0.7], 3),
        ),
        (
            "LambdaLR",
            "{lr_lambda: [halve, shrink]}",
            lambda o: S.LambdaLR(o, [lambda k: 0.5**k, lambda k: 1 / (k + 1)]),
        ),
        (
            "MultiplicativeLR",
            "{lr_lambda: [halve, shrink]}",
            lambda o: S.MultiplicativeLR(o, [lambda k: 0.5**k, lambda k: 1 / (k + 1)]),
        ),
        (
            "SequentialLR",
            "{schedulers: [{type: ConstantLR, args: {factor: 0.2, total_iters: 2}}, {type: "
            "CyclicLR, args: {base_lr: 0.01, max_lr: 0.4, step_size_up: 3}}], milestones: [2]}",
            lambda o: S.SequentialLR(
                o,
                [S.ConstantLR(o, 0.2, 2), S.CyclicLR(o, [0.01, 0.05], [0.4, 2.0], 3)],
                milestones=[2],
            ),
        ),
    ],
)
def test_a_list_gives_each_group_its_own(name: str, lists: str, by_hand: Any) -> None:
    rates = rates_of_groups(GROUPS, f"lr_scheduler={{type: {name}, every: step, args: {lists}}}")
    assert rates == [pytest.approx(each, rel=1e-12) for each in groups_by_hand(by_hand)]


def test_one_rate_for_groups_of_equal_rates_is_taken_as_it_is() -> None:
    equal = "optimizer.param_groups=[{match: '*', lr: 0.5}, {match: '*.bias', weight_decay: 0.1}]"
    rates = rates_of_groups(equal, section("OneCycleLR", every="step"))
    expected = by_hand(CASES["OneCycleLR"][1], TOTAL, 1)
    assert rates[:-1] == [(rate, rate) for rate in expected]


def test_an_own_rate_of_zero_leaves_the_number_to_the_fastest_group() -> None:
    """Nothing is trained but what a rule gives a rate."""
    zero = "optimizer.args={lr: 0, momentum: 0.9}"
    rates = rates_of_groups(GROUPS, zero, section("OneCycleLR", every="step"))
    assert [second for _, second in rates[:-1]] == by_hand(CASES["OneCycleLR"][1], TOTAL, 1)
    assert {first for first, _ in rates} == {0.0}


@pytest.mark.parametrize(("floor", "ends"), [("0.04", (0.04, 0.2)), ("[0.04, 0.06]", (0.04, 0.06))])
def test_plateau_has_a_floor_for_each_group(floor: str, ends: tuple[float, float]) -> None:
    args = f"{{patience: 0, factor: 0.5, threshold: 10, min_lr: {floor}}}"
    rates = rates_of_groups(
        GROUPS, "trainer.epochs=5", f"lr_scheduler={{type: ReduceLROnPlateau, args: {args}}}"
    )
    assert rates[5] == (0.1 * 0.5, 0.5 * 0.5)
    assert rates[-1] == pytest.approx(ends)


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        ("{type: OneCycleLR, args: {max_lr: [1, 2, 3]}}", "max_lr has 3 values for 2"),
        ("{type: OneCycleLR, args: {max_lr: 1, base_momentum: [0.5]}}", "base_momentum has 1"),
        ("{type: CyclicLR, args: {base_lr: [0.1], max_lr: 1}}", "base_lr has 1 values for 2"),
        ("{type: ReduceLROnPlateau, args: {min_lr: [1]}}", "min_lr has 1 values for 2"),
        ("{type: LambdaLR, args: {lr_lambda: [halve]}}", "lr_lambda has 1 values for 2"),
        (
            "{type: ChainedScheduler, args: {schedulers: [{type: ConstantLR}, "
            "{type: LambdaLR, args: {lr_lambda: [halve]}}]}}",
            "lr_lambda has 1 values for 2",
        ),
        ("{type: CosineAnnealingLR, args: {eta_min: 0.2}}", "eta_min 0.2 is the minimum of all"),
        (
            "{type: CosineAnnealingWarmRestarts, args: {T_0: 2, eta_min: 0.5}}",
            "eta_min 0.5 is the minimum of all groups, and some begin below it",
        ),
    ],
)
def test_what_does_not_fit_the_groups_shows_them(scheduler: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        make(MOMENTUM, GROUPS, f"lr_scheduler={scheduler}")
    groups = "the groups are 0: lr 0.1, hidden.0.weight, head.weight; "
    assert f"{groups}1: lr 0.5, hidden.0.bias, head.bias" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_floor_that_all_groups_begin_below_or_above_is_taken() -> None:
    """So is any with one rate, where it is a line up as much as down."""
    for floor in (0.05, 0.6):
        make(
            MOMENTUM,
            GROUPS,
            f"lr_scheduler={{type: CosineAnnealingLR, args: {{eta_min: {floor}}}}}",
        )
    make(MOMENTUM, "lr_scheduler={type: CosineAnnealingLR, args: {eta_min: 0.1}}")


@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR", "SequentialLR"])
def test_scaled_rates_resume_to_the_same_bits(name: str, every: str, tmp_path: Path) -> None:
    assert_resumes(tmp_path, MOMENTUM, GROUPS, section(name, every=every), stop_at=6)


# --- ReduceLROnPlateau ----------------------------------------------------------------------------

PLATEAU = "{type: ReduceLROnPlateau, args: {patience: 0, factor: 0.5, threshold: 10}"
# A threshold of 10 (relative) is never met, so that each epoch halves the rate.


def test_plateau_follows_the_monitored_value() -> None:
    rates = rates_of(f"lr_scheduler={PLATEAU}, monitor: valid/loss}}")
    assert rates == [0.1] * 5 + [0.05] * 5 + [0.025] * 5


def test_plateau_equals_torch_stepped_with_the_logged_values() -> None:
    trainer = make(
        "trainer.epochs=6",
        "optimizer.args.lr=1.5",
        "lr_scheduler={type: ReduceLROnPlateau, monitor: valid/loss, "
        "args: {patience: 0, factor: 0.5}}",
    )
    seen: list[tuple[float, float]] = []
    trainer.callbacks["note"] = Noting(seen)
    train_in(trainer)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.5)
    scheduler = S.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    expected = []
    for loss, _ in seen:
        scheduler.step(loss)
        expected.append(optimizer.param_groups[0]["lr"])
    assert [rate for _, rate in seen] == expected


class Noting(Callback):
    def __init__(self, seen: list[tuple[float, float]]) -> None:
        self.seen = seen

    def on_epoch_end(self, trainer: Any, values: Any) -> None:
        rate = trainer.optimizers["main"].param_groups[0]["lr"]
        self.seen.append((values["valid/loss"], rate))


def test_plateau_follows_the_loss_where_nothing_is_named() -> None:
    rates = rates_of(f"lr_scheduler={PLATEAU}}}")
    assert rates == [0.1] * 5 + [0.05] * 5 + [0.025] * 5


def test_plateau_leaves_out_epochs_without_validation() -> None:
    rates = rates_of("trainer.validate_every=2", "trainer.epochs=6", f"lr_scheduler={PLATEAU}}}")
    assert rates == [0.1] * 10 + [0.05] * 10 + [0.025] * 10


def test_plateau_resumes(tmp_path: Path) -> None:
    assert_resumes(tmp_path, "trainer.epochs=4", f"lr_scheduler={PLATEAU}}}", stop_at=11)


def test_plateau_per_step_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"lr_scheduler.*ReduceLROnPlateau.*every") as caught:
        make(f"lr_scheduler={PLATEAU}, every: step}}")
    assert "\n" not in str(caught.value)


# --- Warm-up and durations ------------------------------------------------------------------------


def warmed(rates: list[float], n: int) -> list[float]:
    """Return the closed form: a line up to the first rate, then the scheduler's own rates."""
    return [rates[0] * (k + 1) / n for k in range(n)] + rates


@pytest.mark.parametrize("n", [1, 3, 5, 7])
def test_warm_up_then_a_schedule_per_step(n: int) -> None:
    rates = rates_of(section("ExponentialLR", every="step", warmup=f"{n} steps"))
    expected = warmed(by_hand(CASES["ExponentialLR"][1], TOTAL - n, 1), n)
    assert rates == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [1, 5, 7])
def test_warm_up_shortens_the_lengths_filled_in(n: int) -> None:
    for name in ("OneCycleLR", "CosineAnnealingLR"):
        rates = rates_of(MOMENTUM, section(name, every="step", warmup=f"{n} steps"))
        expected = warmed(by_hand(CASES[name][1], TOTAL - n, 1), n)
        assert rates == pytest.approx(expected, rel=1e-12), name


@pytest.mark.parametrize("n", [1, 3, 5, 7, 10])
@pytest.mark.parametrize("name", ["ExponentialLR", "CosineAnnealingLR", "OneCycleLR"])
def test_warm_up_then_a_schedule_per_epoch(name: str, n: int) -> None:
    """The scheduler ticks at the end of each epoch that had a step beyond the warm-up."""
    rates = rates_of(MOMENTUM, section(name, warmup=f"{n} steps"))
    n_ticks = -(-(TOTAL - n) // PER_EPOCH)
    of_epochs = by_hand(CASES[name][1], n_ticks, 1)
    line = [of_epochs[0] * (k + 1) / n for k in range(n)]
    first = n // PER_EPOCH  # the epoch of the first step beyond the warm-up
    rest = [of_epochs[step // PER_EPOCH - first] for step in range(n, TOTAL)]
    assert rates == pytest.approx(line + rest, rel=1e-12)


def test_warm_up_for_all_of_training() -> None:
    rates = rates_of(section("ExponentialLR", warmup="100%"))
    assert rates == pytest.approx([0.1 * (k + 1) / TOTAL for k in range(TOTAL)])


@pytest.mark.parametrize("stop_at", [2, 6, 8])
def test_warm_up_resumes(stop_at: int, tmp_path: Path) -> None:
    warm = section("CosineAnnealingLR", warmup="6 steps", every="step")
    assert_resumes(tmp_path, "trainer.epochs=3", warm, stop_at=stop_at)


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("StepLR, every: step, args: {step_size: 1 epoch}",
         "StepLR, every: step, args: {step_size: 5}"),
        ("StepLR, args: {step_size: 10 steps}", "StepLR, args: {step_size: 2}"),
        ("MultiStepLR, every: step, args: {milestones: [20%, 2 epochs]}",
         "MultiStepLR, every: step, args: {milestones: [3, 10]}"),
        ("LinearLR, every: step, args: {total_iters: 100%}",
         "LinearLR, every: step, args: {total_iters: 15}"),
        ("CosineAnnealingLR, every: step, args: {T_max: 2 epochs}",
         "CosineAnnealingLR, every: step, args: {T_max: 10}"),
        ("CosineAnnealingWarmRestarts, every: step, args: {T_0: 1 epoch}",
         "CosineAnnealingWarmRestarts, every: step, args: {T_0: 5}"),
        ("OneCycleLR, every: step, args: {max_lr: 1, total_steps: 3 epochs}",
         "OneCycleLR, every: step, args: {max_lr: 1}"),
        ("CyclicLR, every: step, args: {base_lr: 0.1, max_lr: 1, step_size_up: 1 epoch}",
         "CyclicLR, every: step, args: {base_lr: 0.1, max_lr: 1, step_size_up: 5}"),
    ],
)  # fmt: skip
def test_durations_become_ticks(written: str, plain: str) -> None:
    rates = [rates_of(MOMENTUM, f"lr_scheduler={{type: {text}}}") for text in (written, plain)]
    assert rates[0] == rates[1]


def test_lengths_inside_a_sequence_are_those_of_their_part() -> None:
    parts = (
        "schedulers: [{type: LinearLR, args: {start_factor: 0.1, total_iters: 5}}, "
        "{type: CosineAnnealingLR}], milestones: [1 epoch]"
    )
    rates = rates_of(f"lr_scheduler={{type: SequentialLR, every: step, args: {{{parts}}}}}")
    expected = by_hand(
        lambda o, n: S.SequentialLR(
            o,
            [S.LinearLR(o, 0.1, total_iters=5), S.CosineAnnealingLR(o, T_max=TOTAL - 5)],
            milestones=[5],
        ),
        TOTAL,
        1,
    )
    assert rates == expected


PARTS = (
    "{type: SequentialLR, every: step, args: {milestones: [1 epoch], schedulers: "
    "[{type: ConstantLR}, {type: CosineAnnealingLR, args: {eta_min: 0.01}}]}}"
)


@pytest.mark.parametrize(
    "cosine", [section("CosineAnnealingLR", every="step"), f"lr_scheduler={PARTS}"]
)
def test_a_longer_run_on_an_old_state_takes_the_new_length(cosine: str, tmp_path: Path) -> None:
    run(tmp_path, "trainer.epochs=2", cosine, stop_at=4)
    longer = run(tmp_path, "trainer.epochs=3", cosine, resume=True)
    assert learning_rates(longer.optimizers)["lr"] == pytest.approx(0.01)


# --- Several networks, misuse ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ("{type: OneCycleLR}", "needs argument max_lr"),
        ("{type: OneCycleLR, args: {max_lr: 1, pct_start: 2}}", "pct_start"),
        ("{type: OneCycleLR, args: {max_lr: 1, total_steps: 4}, every: step}", "total_steps"),
        ("{type: StepLR, args: {step_size: 2, optimizer: 1}}", "passed by Kindling"),
        ("{type: StepLR, args: {step_size: 2 parsecs}}", "duration"),
        ("{type: StepLRR, args: {step_size: 2}}", "did you mean 'StepLR'"),
        ("{type: LambdaLR, args: {lr_lambda: no_such_function}}", "no_such_function"),
        ("{type: SequentialLR, args: {schedulers: [{type: ConstantLR}], milestones: [1, 2]}}",
         "milestones"),
        ("{type: SequentialLR, args: {schedulers: [{type: ConstantLR}, "
         "{type: ReduceLROnPlateau}], milestones: [1]}}", "ReduceLROnPlateau"),
        ("{type: ChainedScheduler, args: {schedulers: []}}", "at least one"),
        ("{type: ChainedScheduler, args: {schedulers: [{type: ConstantLR}, "
         "{type: ReduceLROnPlateau}]}}", "ReduceLROnPlateau"),
        ("{type: SequentialLR, args: {schedulers: [{type: ConstantLR}, {type: ConstantLR}], "
         "milestones: 2}}", "milestones|int"),
        ("{type: LRScheduler}", "LRScheduler"),
        ("{type: SequentialLR, args: {schedulers: [ConstantLR], milestones: []}}",
         r"expected \{type: .*\}, found the text 'ConstantLR'"),
        ("{type: ChainedScheduler, args: {schedulers: [{args: {factor: 2}}]}}",
         r"expected \{type: .*\}, found"),
    ],
)  # fmt: skip
def test_misuse_is_one_clear_error_with_its_place(scheduler: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(f"lr_scheduler={scheduler}")
    assert "lr_scheduler" in str(caught.value).replace("--set lr_scheduler=", "")
    assert "\n" not in str(caught.value)


def test_a_place_in_several_networks_names_the_network() -> None:
    text = NETWORKS.replace(
        "type: Pair", "type: MLP, args: {n_inputs: 2, hidden: [2], n_outputs: 2}"
    )
    sections = (
        "optimizers={one: {type: SGD, args: {lr: 1}, params: 'hidden.*'}, two: {type: SGD, "
        "args: {lr: 1}, params: 'head.*', lr_scheduler: {type: OneCycleLR, args: {max_lr: -1, "
        "pct_start: 2}}}}"
    )
    with pytest.raises(ConfigError, match=r"optimizers\.two\.lr_scheduler"):
        make(sections, text=text)


def test_a_scheduler_of_the_project_with_code_in_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(S.LRScheduler):
        def __init__(self, optimizer: Any, power: float) -> None:
            self.power, self.curve = power, lambda k: (k + 1) ** -power
            super().__init__(optimizer)

        def get_lr(self) -> list[float]:
            return [base * self.curve(self.last_epoch) for base in self.base_lrs]

    monkeypatch.setitem(LR_SCHEDULERS.registered, "Own", Own)
    own = "lr_scheduler={type: Own, args: {power: 0.5}, every: step}"
    assert rates_of(own) == pytest.approx([0.1 * (k + 1) ** -0.5 for k in range(TOTAL)])
    assert_resumes(tmp_path, own)
