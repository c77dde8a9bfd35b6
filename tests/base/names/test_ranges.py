"""Numbers that no optimizer, schedule or loss can use are config errors with their place."""

from __future__ import annotations

import math
from inspect import Parameter

import pytest
from toy import make

from base.errors import ConfigError
from base.names.ranges import RANGES, Range, number_fault
from base.names.registry import find, names
from base.names.signatures import signature


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("optimizer.args.lr=.nan", "optimizer.args.lr"),
        *((f"optimizer.args.lr={rate}", "optimizer.args.lr") for rate in ("nan", "inf", ".inf")),
        ("optimizer.args.lr=-.inf", "optimizer.args.lr"),
        ("optimizer.args.lr=1e999", "optimizer.args.lr"),
        ("optimizer.args.lr=-1e-3", "optimizer.args.lr"),
        ("optimizer.args.momentum=1.01", "optimizer.args.momentum"),
        ("optimizer.args.dampening=2", "optimizer.args.dampening"),
        ("optimizer.args.weight_decay=-0.1", "optimizer.args.weight_decay"),
        ("optimizer={type: Adam, args: {betas: [0.9, 1.0]}}", "optimizer.args.betas"),
        ("optimizer={type: Adam, args: {betas: [.nan, 0.9]}}", "optimizer.args.betas"),
        ("optimizer={type: Adam, args: {eps: -1e-8}}", "optimizer.args.eps"),
        ("optimizer={type: RMSprop, args: {alpha: 1.5}}", "optimizer.args.alpha"),
        ("optimizer.param_groups=[{match: '*', lr: .inf}]", "optimizer.param_groups.0.lr"),
        ("optimizer.param_groups=[{match: '*', momentum: 2}]", "optimizer.param_groups.0.momentum"),
        ("optimizer.clip_norm=.nan", "optimizer.clip_norm"),
        ("optimizer.clip_value=.inf", "optimizer.clip_value"),
        ("optimizer.layer_decay=.nan", "optimizer.layer_decay"),
        ("lr_scheduler={type: ExponentialLR, args: {gamma: .nan}}", "lr_scheduler.args.gamma"),
        ("lr_scheduler={type: ExponentialLR, args: {gamma: -0.5}}", "lr_scheduler.args.gamma"),
        ("lr_scheduler={type: StepLR, args: {step_size: 0}}", "lr_scheduler.args.step_size"),
        (
            "lr_scheduler={type: OneCycleLR, args: {max_lr: [0.1, .inf]}}",
            "lr_scheduler.args.max_lr",
        ),
        (
            "lr_scheduler={type: ChainedScheduler, args: {schedulers: [{type: ConstantLR, args: "
            "{factor: .nan}}]}}",
            "lr_scheduler.args.schedulers.0.args.factor",
        ),
        ("loss={type: cross_entropy, weight: .nan}", "loss.0.weight"),
        ("loss={type: cross_entropy, weight: {to: .inf}}", "loss.0.weight.to"),
        ("loss={type: cross_entropy, args: {weight: [1, .nan, 1]}}", "loss.0.args.weight"),
        ("loss={type: cross_entropy, args: {weight: [1, -1, 1]}}", "loss.0.args.weight"),
        ("loss={type: cross_entropy, args: {label_smoothing: 2}}", "loss.0.args.label_smoothing"),
        ("trainer.ema={decay: .nan}", "trainer.ema.decay"),
        ("model.args.n_inputs=.nan", "model.args.n_inputs"),
        ("init=[{match: '*', weight: {type: normal_, args: {std: .nan}}}]", "init.0.weight.args"),
    ],
)
def test_each_is_an_error_with_its_place(change: str, place: str) -> None:
    with pytest.raises(ConfigError, match=rf": {place}[.\w]*: .*(expected|found)"):
        make(change)


@pytest.mark.parametrize(
    "change",
    [
        "optimizer.args.lr=0",
        "optimizer.args.momentum=1",
        "optimizer={type: Adafactor}",
        "optimizer={type: Adafactor, args: {beta2_decay: -0.8, eps: [null, 0.001]}}",
        "lr_scheduler={type: ExponentialLR, args: {gamma: 1.5}}",
        "loss={type: cross_entropy, weight: -1}",
    ],
)
def test_what_has_a_meaning_passes(change: str) -> None:
    make(change)


@pytest.mark.parametrize("kind", RANGES)
def test_torchs_own_defaults_are_in_range(kind: str) -> None:
    """And each name of the table is one that some class takes."""
    known = set()
    for name in names(kind):
        parameters = signature(kind, find(kind, name)).parameters
        known |= parameters.keys()
        for key, parameter in parameters.items():
            if parameter.default is not Parameter.empty:
                fault = number_fault(kind, name, key, parameter, parameter.default)
                assert fault == "", (name, key, fault)
    assert RANGES[kind].keys() <= known


def test_infinity_stays_where_it_is_a_default_or_data() -> None:
    unlimited = Parameter("limit", Parameter.KEYWORD_ONLY, default=math.inf)
    assert number_fault("optimizer", "Own", "limit", unlimited, math.inf) == ""
    assert number_fault("optimizer", "Own", "limit", None, math.inf) != ""
    assert number_fault("model", "Own", "norm", None, math.inf) == ""
    assert number_fault("transform", "Own", "fill", None, math.nan) == ""
    assert number_fault("trainer", "Own", "temperature", None, math.nan) != ""


def test_a_range_says_what_it_holds() -> None:
    texts = {
        Range(): "a number of at least 0",
        Range(without_low=True): "a number above 0",
        Range(high=1): "a number from 0 to 1",
        Range(high=1, without_high=True): "a number from 0 to below 1",
        Range(high=1, without_low=True): "a number above 0 to 1",
    }
    for each, text in texts.items():
        assert str(each) == text
        assert [each.holds(0), each.holds(1)] == [not each.without_low, not each.without_high]
