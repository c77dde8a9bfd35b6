"""The config that the program sees: places, text that loads again, differences."""

from __future__ import annotations

import pytest

from base.config import Config, load_config
from base.errors import ConfigError, Problem

RICH = """\
metrics: [a, {type: b, args: {k: [1, [2, {c: d}], []]}}]
init: [{match: {type: [Conv2d, Linear]}, weight: ones_}]
extra:
  yes: no
  "1": "1"
  text: "a: b # c"
  lines: "a\\nb\\t\\x85\\u2028 é 😀"
  escaped: "$${x}"
  floats: [1e-7, 1e22, .inf, -.inf, 2.0, 3]
  words: ["true", "null", "~", "", " x", "1e-3", "0o10", "-", "5%", "1 epoch", "a b", "=", "<<"]
  "": {"key: #": {}}
"""


def test_it_is_a_mapping_of_plain_values(load):
    config = load()
    assert isinstance(config, Config)
    assert list(config)[:3] == ["name", "seed", "deterministic"]
    assert len(config) == len(dict(config))
    assert config.path is not None
    assert config.path.name == "x.yaml"
    assert (config.is_template, config.notes) == (False, [])
    assert repr(config) == "Config('x.yaml', name='small')"
    with pytest.raises(KeyError):
        config["nothing"]


def test_where_is_the_entry_or_the_nearest_around_it(load):
    config = load("loss: [l1, {type: mse}]\n", "trainer.keep=5")
    assert config.where() == "x.yaml:1:1"
    assert config.where("optimizer", "args", "lr") == "x.yaml:4:31"
    assert config.where("optimizer", "args", "lrr") == "x.yaml:4:24"
    assert config.where("loss", 0, "type") == "x.yaml:6:8"
    assert config.where("loss", 1, "weight") == "x.yaml:6:12"
    assert config.where("memory", "precision") == "x.yaml:1:1"
    assert config.where("trainer", "keep") == "--set trainer.keep=5"
    problem = config.problem(("optimizer", "args", "lr"), "too large")
    assert str(problem) == "x.yaml:4:31: optimizer.args.lr: too large"
    assert str(config.problem((), "bad")) == "x.yaml:1:1: bad"


@pytest.mark.parametrize("write_out", [Config.to_yaml, Config.describe])
def test_its_text_loads_again_as_it_is(load, write_out):
    config = load(RICH)
    text = write_out(config)
    again = load_config(None, text=text)
    assert again == config
    assert str(dict(again)) == str(dict(config))
    assert write_out is Config.describe or again.to_yaml() == text
    assert text.isascii() or "é" in text


def test_plain_yaml_1_1_readers_see_the_same_values(load):
    import yaml

    config = load(RICH)
    values = yaml.safe_load(config.to_yaml())
    assert values["extra"]["escaped"] == "$${x}"  # still to be looked up by ours
    values["extra"]["escaped"] = "${x}"
    assert values == dict(config)


def test_describe_says_where_each_value_was_set(load, write):
    write("trainer: {keep: 7}\n", "p.yaml")
    text = load("inherit: p.yaml\nloss: mse\n", "seed=3").describe()
    lines = text.splitlines()
    for line in (
        "name: small  # x.yaml:1",
        "seed: 3  # --set seed=3",
        "deterministic: false  # default",
        "    lr: 0.1  # x.yaml:4",
        "  - type: mse  # x.yaml:7",
        "    weight: 1.0  # default",
        "  keep: 7  # p.yaml:1",
    ):
        assert line in lines
    assert all("  # " in line or line.endswith(":") for line in lines)


def test_difference_lists_dotted_keys(load):
    old = load("loss: [l1]\nextra: {a: 1, same: [1, 2]}\n")
    new = load("loss: [l1, mse]\nextra: {b: 1, same: [1, 2]}\n", "optimizer.args.lr=0.2")
    assert old.difference(new) == [
        ("optimizer.args.lr", 0.1, 0.2),
        ("extra.a", 1, None),
        ("loss.1.type", None, "mse"),
        ("loss.1.args", None, {}),
        ("loss.1.weight", None, 1.0),
        ("loss.1.name", None, "mse"),
        ("extra.b", None, 1),
    ]
    assert old.difference(old) == []
    assert old.difference(dict(old)) == []


def test_errors_that_name_a_key_get_its_place(load):
    config = load("loss:\n  - nll\n  - mse\n")
    problems = [Problem("loss.1.output", "is not there"), Problem("", "alone"), Problem("x y", "z")]
    with pytest.raises(ConfigError) as raised, config.placed():
        raise ConfigError(problems)
    first, *others = map(str, raised.value.problems)
    assert first == f"{config.where('loss', 1)}: loss.1.output: is not there"
    assert config.where("loss", 1).endswith(":5")
    assert others == ["alone", "x y: z"]
