"""`inherit` merges files, `--set` changes single values; both keep places."""

from __future__ import annotations

import shlex

import pytest

from base.config import load_config
from base.config.loading import merge
from base.config.tree import Node
from base.errors import ConfigError

PARENT = """\
name: parent
model: {type: Net, args: {width: 8, depth: 2}}
data_loader: {type: Loader, args: {batch_size: 4, folds: [1, 2, 3]}}
optimizer: {type: SGD, args: {lr: 0.1, momentum: 0.9}, clip_norm: 1.0}
trainer: {epochs: 2, keep: 4}
"""


def error_of(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_a_child_changes_its_parent_deeply_and_places_stay(write):
    write(PARENT, "base/parent.yaml")
    child = "inherit: base/parent.yaml\nname: child\nmodel: {args: {width: 16}}\n"
    config = load_config(write(child + "data_loader: {args: {folds: [9]}}\n"))
    assert config["name"] == "child"
    assert config["model"] == {"type": "Net", "args": {"width": 16, "depth": 2}, "weights": None}
    assert config["data_loader"]["args"] == {"batch_size": 4, "folds": [9]}
    assert config["trainer"]["keep"] == 4
    assert config.where("name") == "x.yaml:2:1"
    assert config.where("model", "args", "width") == "x.yaml:3:16"
    assert config.where("model", "args", "depth") == "base/parent.yaml:2:37"
    assert config.where("trainer", "log_every") == "base/parent.yaml:5:1"


def tree(value):
    is_section = isinstance(value, dict)
    return Node({name: tree(child) for name, child in value.items()} if is_section else value)


@pytest.mark.parametrize(
    ("word", "type_", "args"),
    [
        *((word, "AdamW", {}) for word in ("AdamW", "{type: AdamW}")),
        *((word, "SGD", {"lr": 0.1, "momentum": 0.9}) for word in ("SGD", "{type: SGD}")),
    ],
)
def test_a_new_type_drops_the_arguments_of_the_old_and_the_same_keeps_them(
    write, word, type_, args
):
    write(PARENT, "p.yaml")
    optimizer = load_config(write(f"inherit: p.yaml\noptimizer: {word}\n"))["optimizer"]
    assert (optimizer["type"], optimizer["args"], optimizer["clip_norm"]) == (type_, args, 1.0)


def test_a_type_changed_deep_inside_arguments_drops_its_arguments_too():
    parent = {"t": {"type": "A", "args": {"x": 1}, "y": 2}}
    merged = merge(tree(parent), tree({"t": {"type": "B"}})).plain()
    assert merged == {"t": {"type": "B", "y": 2}}


def test_short_forms_merge_as_their_long_forms(write):
    write(PARENT.replace("{type: Net, args: {width: 8, depth: 2}}", "Net"), "p.yaml")
    config = load_config(write("inherit: p.yaml\narch: {args: {width: 1}}\n"))
    assert config["model"] == {"type": "Net", "args": {"width": 1}, "weights": None}


def test_later_parents_win_and_null_switches_off(write):
    write(PARENT, "a.yaml")
    write("seed: 1\ntrainer: {keep: 5, test: true}\n", "b.json")
    more = "trainer: {epochs: null, steps: 7}\n"
    config = load_config(write(f"inherit: [a.yaml, b.json]\n{more}", "c/../x.yaml"))
    trainer = config["trainer"]
    assert (config["seed"], trainer["keep"], trainer["test"]) == (1, 5, True)
    assert (trainer["epochs"], trainer["steps"]) == (None, 7)


def test_parents_are_found_beside_the_file_that_names_them(write):
    write(PARENT, "base/deep/a.yaml")
    write("inherit: deep/a.yaml\nseed: 3\n", "base/b.yaml")
    assert load_config(write("inherit: ../base/b.yaml\n", "exp/x.yaml"))["seed"] == 3


def test_a_missing_parent_is_named_where_it_is_asked_for(write):
    write(PARENT, "parent.yaml")
    assert error_of(write("seed: 1\ninherit: [parnt.yaml]\n")) == (
        "x.yaml:2:11: no such file: parnt.yaml; did you mean 'parent.yaml'?"
    )


def test_circles_are_refused(write):
    write("inherit: b.yaml\n", "a.yaml")
    write("inherit: c/../x.yaml\n", "b.yaml")
    write("", "c/d")
    found = error_of(write("inherit: ./a.yaml\n"))
    circle = "inherit: is circular: x.yaml -> a.yaml -> b.yaml -> x.yaml"
    assert found == f"b.yaml:1:1: {circle}"
    assert "is circular" in error_of(write("inherit: x.yaml\n"))


def test_a_flood_of_parents_is_refused(write):
    for i in range(10):
        write(f"inherit: [f{i + 1}.yaml, f{i + 1}.yaml]\n", f"f{i}.yaml")
    write("", "f10.yaml")
    assert "more than 64 files" in error_of(write("inherit: f0.yaml\n"))


@pytest.mark.parametrize("names", ["5", "{a: b}", "[a, 5]", "''", "[[a]]"])
def test_inherit_takes_file_names(write, names):
    assert "inherit" in error_of(write(f"inherit: {names}\n"))


def test_inherit_looks_nothing_up(write):
    assert error_of(write("inherit: ${name}\n")) == "x.yaml:1:1: no such file: ${name}"


def test_a_fault_in_a_parent_is_shown_there(write):
    write(PARENT + "sede: 1\nseed: 1\nseed: 2\n", "p.yaml")
    assert error_of(write("inherit: p.yaml\nnmae: x\n")).splitlines() == [
        "p.yaml:8:1: seed: duplicate key; first on line 7",
        "p.yaml:6:1: sede: unknown key; did you mean 'seed'?",
        "x.yaml:2:1: nmae: unknown key; did you mean 'name'?",
    ]


@pytest.mark.parametrize(
    ("override", "keys", "value"),
    [
        ("trainer.epochs=7", ("trainer", "epochs"), 7),
        ("optimizer.args.lr=1e-3", ("optimizer", "args", "lr"), 0.001),
        ("model.args={a: [1, {b: 2}]}", ("model", "args"), {"a": [1, {"b": 2}]}),
        ("trainer.monitor=max valid/accuracy", ("trainer", "monitor"), "max valid/accuracy"),
        ("name=no", ("name",), "no"),
        ("extra.x=a=b", ("extra", "x"), "a=b"),
        ("extra.a.b.c=", ("extra", "a", "b", "c"), None),
        ("loss=mse", ("loss", 0, "type"), "mse"),
        ("memory.precision=bf16", ("memory", "precision"), "bf16"),
        ("trainer.ema={}", ("trainer", "ema", "decay"), 0.999),
        ("trainer.save_every=5%", ("trainer", "save_every"), "5%"),
        ("extra.x='${name}s'", ("extra", "x"), "smalls"),
    ],
)
def test_an_override_sets_one_value(load, override, keys, value):
    config = load("", override)
    found = config
    for key in keys:
        found = found[key]
    assert found == value
    assert config.where(*keys) == f"--set {override}"


def test_overrides_reach_into_short_forms_and_lists(load):
    more = "loss: mse\nmetrics: [a, {type: b}]\nlr_scheduler: StepLR\n"
    overrides = ["loss.0.weight=2", "metrics.1.args.k=5", "lr_scheduler.args.gamma=0.1"]
    config = load(more, *overrides, "loss=[l1, l2]", "loss.1.name=two")
    assert [loss["name"] for loss in config["loss"]] == ["l1", "two"]
    assert config["metrics"][1]["args"] == {"k": 5}
    assert config["lr_scheduler"]["args"] == {"gamma": 0.1}


def test_a_type_set_alone_keeps_the_arguments(load):
    optimizer = load("", "optimizer.type=Adam")["optimizer"]
    assert (optimizer["type"], optimizer["args"]) == ("Adam", {"lr": 0.1})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.epochs=x", "trainer.epochs: expected a whole number of at least 1"),
        ("trainer.epohcs=1", "trainer.epohcs: unknown key; did you mean 'epochs'?"),
        ("trainer.epochs", "write it as key=value or section.key=value"),
        ("=1", "write it as key=value or section.key=value"),
        ("a..b=1", "write it as key=value or section.key=value"),
        ("a.\x00=1", "write it as key=value or section.key=value"),
        ("inherit=x.yaml", "inherit cannot be set from here"),
        ("metrics.3=a", "metrics has 1 items; there is no '3'"),
        ("metrics.x=a", "metrics has 1 items; there is no 'x'"),
        ("metrics.-1=a", "metrics has 1 items; there is no '-1'"),
        ("name.x=a", "name is the text 'small', not a section"),
        ("extra.x=[", "not valid YAML"),
        ("extra.x={a: 1, a: 2}", "a: duplicate key"),
        ("extra.x=!!python/name:os.system", "the tag"),
        ("extra.x=\udc80", r"the character '\udc80' is not allowed"),
        ("extra" + ".a" * 100 + "=1", "cannot be set from here"),
        ("extra.a=" + "[" * 64, "nested deeper than 64 levels"),
    ],
)
def test_an_override_gets_the_same_checks(faults, override, expected):
    found = faults("metrics: [a]\n", override)
    assert len(found) == 1
    assert found[0].startswith("--set ")
    assert expected in found[0]


def test_faults_of_several_overrides_come_together(faults):
    assert len(faults("", "a=1", "b=[", "c", "trainer.keep=1")) == 4


def test_null_takes_out_one_of_several_that_are_inherited(write):
    several = "a: {type: SGD, params: a.*}, b: {type: SGD, params: b.*}"
    parent = (
        f"name: p\nmodel: N\ndata_loader: D\ntrainer: {{epochs: 1}}\noptimizers: {{{several}}}\n"
    )
    write(parent, "parent.yaml")
    child = load_config(write("inherit: parent.yaml\noptimizers: {a: null}\n", "child.yaml"))
    assert list(child["optimizers"]) == ["b"]


@pytest.mark.parametrize("value", [",", "|", "@", "*", "&", "%", "{"])
def test_a_character_that_yaml_reserves_is_to_be_quoted(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"extra.sign={value}"], text=PARENT)
    shown = f"quote the character: 'extra.sign=\"{value}\"'"
    assert str(caught.value).endswith(shown)
    (word,) = shlex.split(shown.partition(": ")[2])
    assert load_config(None, [word], text=PARENT)["extra"]["sign"] == value
