"""`${a.b}`: alone the value itself, in a text its text; circles and slips are named."""

from __future__ import annotations

import pytest


def test_a_reference_alone_keeps_the_type(load):
    config = load(
        "extra: {n: 5, m: '${extra.n}', f: '${optimizer.args.lr}', t: '${extra.list.1}',\n"
        "        list: [1, {a: true}], d: '${data_loader}', z: '${trainer.monitor}'}\n"
    )
    extra = config.extra
    assert (extra["m"], extra["f"], extra["t"], extra["z"]) == (5, 0.1, {"a": True}, None)
    assert extra["d"] == config["data_loader"]


def test_inside_a_text_it_is_text(load):
    more = "extra: {x: 'a-${name}-${optimizer.args.lr}-${memory.compile}-${trainer.monitor}'}\n"
    assert load(more).extra["x"] == "a-small-0.1-false-null"


def test_defaults_short_forms_and_overrides_can_be_referred_to(load):
    more = "extra: {a: '${trainer.keep}', b: '${model.type}', c: '${loss.0.weight}'}\nloss: mse\n"
    assert load(more, "trainer.keep=9").extra == {"a": 9, "b": "Net", "c": 1.0}


def test_an_escape_stays_a_plain_dollar(load):
    more = "extra: {a: '$${name}', b: 'x$${${name}}', c: '$$${name}', d: '$name $ {}'}\n"
    expected = {"a": "${name}", "b": "x${small}", "c": "$${name}", "d": "$name $ {}"}
    assert load(more).extra == expected


def test_what_comes_in_is_checked_as_if_written_there(load, faults):
    more = "extra: {n: 3, s: three, l: [mse, l1], m: {type: Big, args: {w: '${extra.n}'}}}\n"
    good = ["trainer.keep=${extra.n}", "loss=${extra.l}", "model=${extra.m}", "trainer.ema={}"]
    config = load(more, *good, "trainer.save_every=${extra.n} epochs")
    assert config["trainer"]["keep"] == 3
    assert [loss["weight"] for loss in config["loss"]] == [1.0, 1.0]
    assert config["model"] == {"type": "Big", "args": {"w": 3}, "weights": None}
    assert config["trainer"]["save_every"] == "3 epochs"

    assert faults(more, "trainer.keep=${extra.s}") == [
        "--set trainer.keep=${extra.s}: trainer.keep: expected a whole number of at least 2, "
        "found the text 'three'"
    ]
    assert "trainer.keep" in faults(more, "trainer.keep=$${a}")[0]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("{a: '${nmae}'}", "6:9: extra.a: ${nmae}: no 'nmae'; did you mean 'name'?"),
        ("{a: '${trainer.epohcs}'}", "no 'epohcs'; did you mean 'epochs'?"),
        ("{a: '${name.x}'}", "6:9: extra.a: ${name.x}: no 'x'"),
        ("{a: '${loss.0}'}", "no '0'"),
        ("{a: '${}'}", "6:9: extra.a: ${}: no ''"),
        ("{a: '${HOME}'}", "no 'HOME'"),
        ("{a: 'x ${HOME} y'}", "no 'HOME'"),
        ("{a: '${len(name)}'}", "${len(name)}: not a name such as"),
        (
            "{a: '${trainer.keep + 1}'}",
            "expressions are not evaluated: give the object an attribute",
        ),
        ("{a: '${data_loader[0]}'}", "${data_loader[0]}: not a name such as"),
        ("{a: 'x${name'}", "6:9: extra.a: '${' without '}'"),
        ("{a: 'x${model}'}", "extra.a: ${model} is a section and cannot be part of a string"),
        ("{a: '${extra.a}'}", "6:9: extra.a: is circular: extra.a -> extra.a"),
        ("{a: '${extra.b}', b: '${extra.a}'}", "is circular: extra.b -> extra.a -> extra.b"),
        ("{a: {b: '${extra.a}'}}", "is circular: extra.a -> extra.a"),
        ("{a: {b: 'x${extra}'}}", "is circular: extra -> extra"),
    ],
)
def test_each_slip_is_named(faults, more, expected):
    assert any(expected in line for line in faults(f"extra: {more}\n"))


def test_a_failed_reference_is_reported_once_and_not_as_a_wrong_kind(faults):
    assert len(faults("", "trainer.keep=${nope}")) == 1
    assert len(faults("", "trainer.save_every=${nope} steps")) == 1


def test_a_bomb_of_references_is_refused(faults):
    wide = "extra:\n  a0: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    text = "extra:\n  a0: aaaaaaaaaa\n"
    deep = "extra:\n  a0: []\n"
    for i in range(1, 200):
        wide += f"  a{i}: [{', '.join([f'${{extra.a{i - 1}}}'] * 10)}]\n".replace(
            "$", "'$"
        ).replace("}", "}'")
        text += f"  a{i}: '{f'${{extra.a{i - 1}}}' * 10}'\n"
        deep += f"  a{i}: ['${{extra.a{i - 1}}}']\n"
    for bomb in (wide, text, deep):
        found = faults(bomb)
        assert "references make the config too large or too deeply nested" in found[-1]
        assert len(found) == 1
