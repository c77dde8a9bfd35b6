"""Settings in short, as a part of the name of a run's folder."""

import itertools
import math

import pytest

from base.config import load_config
from base.config.short_settings import MAX_BYTES, short_keys, short_settings, short_value

SEVERAL = """\
name: gan
model: Net
data_loader: {type: Loader, args: {batch_size: 4}}
optimizers:
  generator: {type: Adam, params: "generator.*", args: {lr: 0.1, betas: [0.5, 0.9]}}
  critic: {type: Adam, params: "critic.*", args: {lr: 0.1}}
loss: [{type: a, weight: 1}, {type: b, weight: 2}]
trainer: {epochs: 2}
"""


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ([], ""),
        (["optimizer.args.lr=0.001"], "lr=1e-3"),
        (["optimizer.args.lr=1e-3", "data_loader.args.batch_size=64"], "lr=1e-3_batch_size=64"),
        (["optimizer.args.lr=1", "optimizer.args.lr=2"], "lr=2"),  # the later one
        (["model=Other"], "model=Other"),
        (["model.type=Other"], "model=Other"),
        (["arch.args.width=3"], "width=3"),
        (["model={type: Other, args: {width: 3}}"], "model=Other_width=3"),
        (["model={type: Net, args: {width: 3}}", "model.args.width=4"], "model=Net_width=4"),
        (["model.args.width=4", "model={type: Other}"], "model=Other"),
        (["metrics=[accuracy, {type: top_k, args: {k: 3}}]"], "metrics=accuracy,top_k"),
        (["lr_scheduler=null"], "lr_scheduler=null"),
        (["memory.inplace=true"], "inplace=true"),
        (["trainer.epochs=7", "seed=3"], "epochs=7_seed=3"),
        (["extra.width=${extra.depth}", "extra.depth=2"], "width=2_depth=2"),  # resolved
        (["extra.a.x=1", "extra.b.x=2"], "a.x=1_b.x=2"),
        (["data_loader.args.data_dir=/data/My Set (2)"], "data_dir=data-My-Set-2"),
        (["extra.note=🙂 größer/大きい\n"], "note=größer-大きい"),
        (["extra.note=..", "extra.other=''"], "note=none_other=none"),
        (["extra.shift=-0.5"], "shift=-0.5"),
        # what a run writes and where is not what it learns
        (["name=b", "device=cpu", "trainer.verbosity=0", "trainer.save_dir=x/y"], ""),
        (["trainer.progress=false", "trainer.keep=9", "trainer.test=true", "profile={}"], ""),
    ],
)
def test_changed_settings_are_short(load, overrides, text):
    config = load("", *overrides)
    assert short_settings(config.changed, config) == text


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["optimizers.critic.args.lr=2"], "critic.lr=2"),  # the other optimizer has one too
        (["optimizers.generator.args.betas.0=0"], "betas.0=0"),
        (["loss.1.weight=3"], "loss.1.weight=3"),
        (["optimizers.critic.clip_norm=1"], "critic.clip_norm=1"),
        (["optimizers.generator.args.betas=[0, 0.99]"], "betas=0,0.99"),
    ],
)
def test_a_key_has_as_many_parts_as_the_config_needs(write, overrides, text):
    config = load_config(write(SEVERAL), overrides)
    assert short_settings(config.changed, config) == text


def test_changed_settings_are_those_of_the_command_line_as_they_stand(load):
    config = load(
        "seed: 4\nextra: {a: 1}\n", "optimizer.args={lr: 1e-2, betas: [0.5, 1]}", "seed=4"
    )
    assert config.changed == {
        "optimizer.args.lr": 0.01, "optimizer.args.betas": [0.5, 1], "seed": 4
    }  # fmt: skip
    assert load("seed: 4\n").changed == {}


def test_a_long_text_is_cut_and_differs_from_its_neighbour():
    keys = [f"extra.a_rather_long_name_{number}" for number in range(9)]
    texts = {short_settings({**dict.fromkeys(keys, 0.5), keys[8]: last}) for last in range(50)}
    assert len(texts) == 50
    for text in texts:
        assert len(text.encode()) <= MAX_BYTES
        assert text.startswith("a_rather_long_name_0=0.5_a_rather_long_name_1=0.5")
        assert text[-5] == "~"
    for value in ("x" * 999, "大" * 999, "/" * 999, "\ud800" * 40):
        assert 0 < len(short_settings({"extra.x": value}).encode()) <= MAX_BYTES


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.001, "1e-3"), (3e-4, "3e-4"), (1e-5, "1e-5"), (0.01, "0.01"), (0.05, "0.05"),
        (0.9, "0.9"), (0.9375, "0.9375"), (0.0025, "0.0025"), (2.5e-4, "2.5e-4"), (1.0, "1"),
        (100000.0, "1e5"), (0.0031622776601683795, "0.003162"), (-0.001, "-1e-3"), (0.0, "0"),
        (math.inf, "inf"), (-math.inf, "-inf"), (math.nan, "nan"), (100000, "100000"),
        (True, "true"), (None, "null"), ([], "none"), ([0.9, 0.999], "0.9,0.999"), ("SGD", "SGD"),
    ],
)  # fmt: skip
def test_values_are_short(value, text):
    assert short_value(value) == text


def test_a_short_number_is_within_a_relative_error_of_its_last_digit():
    for mantissa, power in itertools.product([1, 1.5, 9.999, 3.14159, 7], range(-30, 30)):
        value = mantissa * 10.0**power
        assert float(short_value(value)) == pytest.approx(value, rel=1e-3)
        assert len(short_value(value)) <= len(repr(value))


def test_short_keys_are_unique():
    keys = ["a.args.x", "b.x", "b.args.x", "c", "d.type", "d.0", "e.0", "x"]
    short = short_keys(keys)
    assert short["c"] == "c"
    assert short["d.type"] == "d"
    assert short["d.0"] == "d.0"
    assert short["a.args.x"] == "a.x"
