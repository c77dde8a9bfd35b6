"""Reading: YAML 1.2's scalars, JSON, and files that are refused with a place."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest
import yaml

from base.config import load_config
from base.config import yaml_reader as reader
from base.errors import ConfigError


@pytest.fixture(params=["libyaml", "pure Python"], autouse=True)
def parser(request, monkeypatch):
    """Both of PyYAML's parsers must give the same answers."""
    if request.param == "pure Python":
        monkeypatch.setattr(reader, "_PARSER", yaml.SafeLoader)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("+.5", 0.5),
        ("3.", 3.0),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("1_000", "1_000"),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("TRUE", True),
        ("tRUE", "tRUE"),
        ("~", None),
        ("Null", None),
        ("nULL", "nULL"),
        ("-.inf", -math.inf),
        (".Inf", math.inf),
        ("inf", "inf"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("=", "="),
        ("'1'", "1"),
        ('"true"', "true"),
        ("1e", "1e"),
        ("0b1", "0b1"),
        ("\u0661", "\u0661"),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(load, text, value):
    found = load(f"extra: {{x: {text}}}\n").extra["x"]
    assert (type(found), found) == (type(value), value)


def test_not_a_number_is_read(load):
    assert math.isnan(load("extra: {x: .nan}\n").extra["x"])


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("seed: 1\nseed: 2\n", "x.yaml:7:1: seed: duplicate key; first on line 6"),
        ("extra: {a: {b: 1, b: 2}}\n", "x.yaml:6:19: extra.a.b: duplicate key"),
        ("extra: !!python/object/apply:os.system [ls]\n", "x.yaml:6:1: extra: the tag"),
        ("extra: {a: !mine 1}\n", "x.yaml:6:9: extra.a: the tag '!mine' is not allowed"),
        ("extra: {a: !!str 1}\n", "x.yaml:6:9: extra.a: the tag"),
        ("extra: {1: a}\n", "x.yaml:6:9: extra: the key 1 is not text"),
        ("extra: {null: a}\n", "x.yaml:6:9: extra: the key null is not text"),
        ("extra: {[a]: a}\n", "x.yaml:6:9: extra: the key is not text"),
        ("extra: {? {b: c} : a}\n", "extra: the key is not text"),
        ("extra: {<<: {a: 1}}\n", "x.yaml:6:9: extra: merge keys (<<) are not supported"),
        (
            "extra: {a: *b}\n",
            "x.yaml:6:9: extra.a: the alias *b is used before or inside its anchor",
        ),
        ("extra: &a {b: *a}\n", "x.yaml:6:12: extra.b: the alias *a"),
        ("--- \nname: y\n", "x.yaml:6:1: a second document starts here"),
        (f"seed: {'9' * 5000}\n", "x.yaml:6:1: seed: a number with too many digits"),
        ("seed: [1\n", "x.yaml:7:1: not valid YAML: while parsing a flow sequence"),
        ("seed: a: b\n", "x.yaml:6:8: not valid YAML: "),
        ("seed: @a\n", "x.yaml:6:7: not valid YAML: "),
        ("seed: '\x00'\n", r"x.yaml:6:8: the character '\x00' is not allowed"),
        ("se\x07d: 1\n", r"x.yaml:6:3: the character '\x07' is not allowed"),
        (f"extra: {'[' * 65}{']' * 65}\n", "nested deeper than 64 levels"),
        ("extra: " + "[" * 200_000, "nested deeper than 64 levels"),
        ("extra: " + "{a: " * 70 + "\n", "nested deeper than 64 levels"),
        ("#" * 1_000_000, "cannot read x.yaml: it is larger than 1 MB"),
    ],
)
def test_what_a_config_may_not_hold_is_refused_with_its_place(faults, more, expected):
    found = faults(more)
    assert any(expected in line for line in found), found
    assert all(line.isprintable() and len(line) < 400 for line in found)


def test_the_number_of_values_is_bounded(faults, monkeypatch):
    monkeypatch.setattr(reader, "MAX_VALUES", 1000)
    found = faults("extra: [" + "1," * 1000 + "]\n")
    assert len(found) == 1
    assert re.match(r"x.yaml:6:\d+: more than 1,000 values", found[0])


def test_depth_of_64_is_allowed(load):
    assert load(f"extra: {{a: {'[' * 60}{']' * 60}}}\n").extra["a"]


def test_aliases_are_shared_values_but_counted_as_often_as_used(load, faults):
    assert load("extra: {a: &x [1, 2], b: *x}\n").extra["b"] == [1, 2]
    bomb = "extra:\n  a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    for i in range(1, 9):
        bomb += f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n"
    assert "more than 100,000 values" in faults(bomb)[0]


def test_aliases_cannot_nest_deeper_than_text(faults):
    deep = "extra:\n  a0: &a0 []\n"
    for i in range(1, 80):
        deep += f"  a{i}: &a{i} [*a{i - 1}]\n"
    assert "nested deeper than 64 levels" in faults(deep)[0]


def test_faults_of_reading_and_of_structure_come_together(faults):
    found = faults("seed: 1\nseed: 2\nmodle: 3\nextra: {a: !x 1}\n")
    assert [line.split(": ")[0] for line in found] == ["x.yaml:7:1", "x.yaml:9:9", "x.yaml:8:1"]


def test_json_with_tabs_and_escapes_reads_as_json_does(write):
    tree = {
        "name": 'né "ß"',
        "model": {"type": "Net", "args": {}},
        "data_loader": {"type": "L", "args": {"x": [1, -2.5, 1e-7, True, None, ""], "é\n": "/\\"}},
        "optimizer": {"type": "SGD", "args": {"lr": 1e-05}},
        "trainer": {"epochs": 1},
        "extra": {"emoji": "a 😀 b", "slash": "no"},
    }
    for text in (
        json.dumps(tree, indent="\t"),
        json.dumps(tree, separators=(",", ":")),
        json.dumps(tree, ensure_ascii=False, indent=4).replace("\n", "\r\n"),
        json.dumps(tree).replace("/", "\\/"),
    ):
        config = load_config(write(text, "x.json"))
        assert {key: config[key] for key in ("name", "extra")} == {
            key: tree[key] for key in ("name", "extra")
        }
        assert config["data_loader"] == tree["data_loader"]
        assert config["optimizer"]["args"] == {"lr": 1e-05}


def test_a_fault_in_json_has_its_line_and_column(write):
    with pytest.raises(ConfigError, match=r"^c/x.json:3:3: seed: expected a whole number"):
        load_config(write('{\n\t"name": "a",\n\t\t"seed": "1"}', "c/x.json"))


def test_a_byte_order_mark_is_skipped(write):
    text = b"\xef\xbb\xbfname: a\nmodel: {type: N\n"
    with pytest.raises(ConfigError, match=r"^x.yaml:3:1: not valid YAML"):
        load_config(write(text))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"name: a\nseed: \xff\n", "x.yaml:2:1: not UTF-8"),
        ("name: a\n".encode("utf-16"), "x.yaml:1:1: not UTF-8"),
        (b"", "x.yaml:1:1: name: missing"),
        (b"# nothing\n", "x.yaml:1:1: name: missing"),
        (b"- a\n", "x.yaml:1:1: a config is a section of keys, found a list"),
        (b"a", "x.yaml:1:1: a config is a section of keys, found the text 'a'"),
        (b'a: "\\ud800"', "x.yaml:1:"),
        (b'a: "\\UFFFFFFFF"', "x.yaml:1:"),
        (b"%YAML 9.9\n---\na", "x.yaml:1:1: "),
        (b"!<%ff> a: 1", "x.yaml:1:"),
    ],
)
def test_bytes_that_are_no_config_are_refused(write, data, expected):
    with pytest.raises(ConfigError) as caught:
        load_config(write(data))
    assert str(caught.value).startswith(expected)


def test_a_missing_file_names_the_nearest_one(write):
    write("", "config/digits.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config(Path("config/digit.yaml"))
    expected = "no such file; did you mean 'digits.yaml'?"
    assert str(caught.value) == f"config/digit.yaml: {expected}"


@pytest.mark.parametrize("name", ["folder", "a\0b", "x" * 300, "x/" * 2500, "fifo", "loop"])
def test_what_is_no_readable_file_is_a_clear_error(write, name):
    write("", "folder/x.yaml")
    os.mkfifo("fifo")
    Path("loop").symlink_to("loop")
    with pytest.raises(ConfigError) as caught:
        load_config(Path(name))
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_name_of_any_characters_gives_one_line_errors(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write("a: 1", "ein\nName 中.yaml"))
    assert str(caught.value).startswith("ein\\nName 中.yaml:1:1: a: unknown key")
