"""The settings in which runs differ, and their order."""

import random

import pytest

from base.config.tree import leaves
from base.runs import ABSENT, common_rule, differing_settings, ranked, read_run
from tests.base.runs.made import CONFIG, make_run


def runs_with(tmp_path, *configs, **stamp):
    return [read_run(make_run(tmp_path, config=config, **stamp)) for config in configs]


@pytest.mark.parametrize(
    ("configs", "differing"),
    [
        (["a: 1", "a: 1"], {}),
        (["model: {args: {a: 1, b: 2}}", "model: {args: {a: 3, b: 2}}"], {"model.args.a": [1, 3]}),
        (
            ["model: {args: {a: 1, b: null}}", "model: {args: {b: 2}}"],
            {"model.args.a": [1, ABSENT], "model.args.b": [None, 2]},
        ),
        (["o: {args: {betas: [1, 2]}}", "o: {args: {betas: [1, 3]}}"],
         {"o.args.betas": [[1, 2], [1, 3]]}),
        (["loss: [{type: a, weight: 1}, {type: b, weight: 1}]",
          "loss: [{type: a, weight: 1}, {type: b, weight: 2}]"], {"loss.1.weight": [1, 2]}),
        (["loss: [{type: a}]", "loss: [{type: a}, {type: b}]"],
         {"loss": [[{"type": "a"}], [{"type": "a"}, {"type": "b"}]]}),
        (["s: null", "s: {type: A, args: {x: 1}, every: step}"], {"s.type": [ABSENT, "A"]}),
        (["s: null", "s: {type: A, args: {x: 1}}", "s: {type: A, args: {x: 2}}"],
         {"s.type": [ABSENT, "A", "A"], "s.args.x": [ABSENT, 1, 2]}),
        (["a: 1", "a: {type: b}"], {"a": [1, {"type": "b"}]}),
        # a key that only some versions write, and settings that change no result
        (["memory: {inplace: false}", "memory: {inplace: false, fused: auto}"], {}),
        (["memory: {fused: true}", "memory: {fused: false}", "memory: {}"],
         {"memory.fused": [True, False, ABSENT]}),
        (["name: a\ntrainer: {verbosity: 1, epochs: 2}", "name: b\ntrainer: {epochs: 3}"],
         {"trainer.epochs": [2, 3]}),
        # a run without a config says nothing
        (["a: 1", "", "a: 2"], {"a": [1, ABSENT, 2]}),
        (["a: 1", "["], {}),
    ],
)  # fmt: skip
def test_only_settings_that_differ_are_shown(tmp_path, configs, differing):
    assert differing_settings(runs_with(tmp_path, *configs)) == differing


def test_what_the_command_line_changed_comes_first(tmp_path):
    texts = [f"a: {n}\nb: {n}\nc: {{d: {n}}}" for n in range(3)]
    runs = runs_with(tmp_path, *texts[:2], changed={"c": {"d": 1}, "b": 1})
    runs += runs_with(tmp_path, texts[2], changed={"c.d": 2})
    assert list(differing_settings(runs)) == ["c.d", "b", "a"]


def test_the_differences_are_those_between_the_leaves(tmp_path):
    rng = random.Random(3)
    words = [
        "\n".join(f"s{k}: {{args: {{x: {rng.randint(0, 2)}, y: {{z: {rng.randint(0, 2)}}}}}}}"
                  for k in range(6))
        for _ in range(4)
    ]  # fmt: skip
    runs = runs_with(tmp_path, *words)
    flat = [dict(leaves(run.config)) for run in runs]
    expected = {key: [one[key] for one in flat] for key in flat[0]}
    expected = {key: values for key, values in expected.items() if len(set(values)) > 1}
    assert differing_settings(runs) == expected


@pytest.mark.parametrize(
    ("mode", "order"), [("max", [1, 3, 0, 2, 4]), ("min", [2, 0, 1, 3, 4])], ids=str
)
def test_runs_are_ranked_by_the_monitor_and_those_without_a_value_come_last(tmp_path, mode, order):
    values = [[0.5], [0.9, 0.7], [0.1], [0.9, 0.8], [float("nan")]]
    config = CONFIG.replace("max valid", f"{mode} valid")
    runs = [read_run(make_run(tmp_path, each, config)) for each in values]
    order = order if mode == "max" else [2, 0, 1, 3, 4]
    assert ranked(runs[::-1], f"{mode} valid/accuracy") == [runs[index] for index in order]
    assert ranked(runs[::-1], None) == runs


def test_the_rule_is_that_of_most_runs(tmp_path):
    configs = [
        CONFIG,
        CONFIG.replace("max", "min"),
        CONFIG,
        CONFIG.replace("max valid/a", "off}  #"),
    ]
    assert common_rule(runs_with(tmp_path, *configs)) == "max valid/accuracy"
    assert common_rule(runs_with(tmp_path, configs[3])) is None
