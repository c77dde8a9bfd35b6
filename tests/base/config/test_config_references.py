"""References to built objects: kept as they are written, and refused where they cannot stand."""

from __future__ import annotations

import json

import pytest

from base.config import load_config
from base.config.references import Reference, has_reference
from base.config.yaml_writer import as_source

PLACES = [
    "model.args.n",
    "model.args.layers=[{type: Linear, args: {out_features: REF}}]",
    "loss={type: mse, args: {weight: [1, REF]}}",
    "metrics=[{type: accuracy, args: {k: REF}}]",
    "optimizer.args.lr",
    "optimizer.param_groups=[{match: x, lr: REF}]",
    "lr_scheduler={type: StepLR, args: {step_size: REF}}",
    "callbacks=[{type: X, args: {n: REF}}]",
    "init=[{match: x, bias: {type: constant_, args: {val: REF}}}]",
    "trainer.args.a.b.0={c: REF}",
    "extra.own={type: mse, args: {n: REF}}",
    "test_data_loader={type: L, args: {n: REF}}",
    "valid_data_loader={type: L, args: {n: REF}}",
]


@pytest.mark.parametrize("place", PLACES)
def test_it_stays_in_the_config_as_it_is_written(load, write, place):
    reference = "${data_loader.dataset.n_features}"
    key, _, value = place.partition("=")
    override = f"{key}={(value or 'REF').replace('REF', json.dumps(reference))}"
    override = override.replace(".0={c", "=[{c") + "]" * (".0={c" in override)
    config = load("", override)
    assert has_reference(dict(config))
    assert reference in config.describe()
    again = load_config(write(config.to_yaml(), "resolved.yaml"))
    assert again == config
    assert has_reference(dict(again))
    assert config.difference(again) == []


def test_the_whole_config_and_a_text_around(load, write):
    more = "loss: {type: mse, args: {c: '${config}', t: '${name}/${model.n}/$${x}/$$${model.n}'}}\n"
    config = load(more)
    args = config["loss"][0]["args"]
    assert args == {"c": "${config}", "t": "small/${model.n}/$${x}/$$${model.n}"}
    assert isinstance(args["t"], Reference)
    again = load_config(write(config.to_yaml(), "resolved.yaml"))
    assert again["loss"][0]["args"] == args
    swapped = load("", f"loss={json.dumps(as_source(config['loss']))}")
    assert swapped["loss"][0]["args"] == args


def test_a_plain_text_is_none(load, write):
    config = load("extra: {a: '$${data_loader.n}'}\n")
    assert type(config.extra["a"]) is str
    again = load("", f"extra={json.dumps(as_source(config.extra))}")
    assert again.extra == {"a": "${data_loader.n}"}
    assert not has_reference(again.extra)


def test_keys_of_the_section_are_looked_up_as_ever(load, faults):
    config = load("extra: {a: '${data_loader.args.batch_size}', b: '${model.type}'}\n")
    assert config.extra == {"a": 4, "b": "Net"}
    assert "no 'batchsize'" in faults("extra: {a: '${data_loader.args.batchsize}'}\n")[0]


def test_arch_is_another_name_for_the_model(load):
    assert load("loss: {type: a, args: {n: '${arch.n}'}}\n")["loss"][0]["args"] == {
        "n": "${model.n}"
    }


def test_a_reference_to_a_reference_is_judged_where_it_is_used(load, faults):
    more = "extra: {n: '${model.n}'}\n"
    assert load(more, "loss={type: a, args: {n: '${extra.n}'}}")["loss"][0]["args"] == {
        "n": "${model.n}"
    }
    assert "model.args.n: ${model.n}: the model is not built yet" in "".join(
        faults(more, "model={type: Net, args: {n: '${extra.n}'}}")
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.args.n=${model.n}", "model is not built yet where the arguments of model"),
        ("data_loader.args.n=${data_loader.n}", "data_loader is not built yet"),
        ("data_loader.args.n=${model.n}", "model is not built yet where the arguments of data_l"),
        ("valid_data_loader={type: L, args: {n: '${model.n}'}}", "model is not built yet"),
        ("test_data_loader={type: L, args: {n: '${model.n}'}}", "model is not built yet"),
        ("model.args.n=${test_data_loader.n}", "built last, for the test only"),
        ("extra.n=${test_data_loader.n}", "built last, for the test only"),
        ("model.args.n=${data_loader._n}", "'_n' is private"),
        ("model.args.n=${data_loader.n.__class__}", "'__class__' is private"),
        ("trainer.epochs=${data_loader.n}", "which is only allowed in `args`"),
        ("seed=${config}", "is the whole config, which is only allowed in `args`"),
        ("name=run-${data_loader.n}", "which is only allowed in `args`"),
        ("loss={type: a, weight: '${model.n}'}", "which is only allowed in `args`"),
        ("model.type=${data_loader.n}", "which is only allowed in `args`"),
        ("model.args.layers=[{type: '${data_loader.n}'}]", "which is only allowed in `args`"),
        ("model.args=${data_loader.n}", "which is only allowed in `args`"),
        ("loss={type: a, args: {n: '${config.name}'}}", "for one value of it write `${name}`"),
        ("model.args.n=${data_loader.}", "no ''"),
        ("model.args.n=${data_loader.a b}", "no 'a b'"),
    ],
)
def test_what_cannot_be_is_an_error_before_anything_is_built(faults, override, expected):
    (fault,) = faults("", override)
    assert expected in fault
    assert fault.startswith("--set ")
