"""Whatever is given, the answer is a config or a ConfigError, soon, and nothing is made."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from faults.table import Trials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from base.config import Config, load_config
from base.config.schema import ROOT
from base.errors import ConfigError

fuzz = settings(
    max_examples=max(100, settings().max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NAMES = sorted(
    {*ROOT.keys, *ROOT.keys["trainer"].field.keys, *ROOT.keys["optimizer"].field.keys}
    | {"n_gpu", "arch", "save_period", "tensorboardX", "len_epoch", "match", "freeze", "decay"}
)
words = st.sampled_from([*NAMES, "${name}", "${extra}", "$${", "1 epoch", "5%", "min val_loss"])
texts = st.one_of(words, st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), texts, st.just(10**400)
)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=5)),
    max_leaves=25,
)
SMALL = {
    "name": "a",
    "model": "N",
    "data_loader": "L",
    "optimizer": "SGD",
    "trainer": {"epochs": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def load_or_fail(path: Path, trials: Trials, overrides=()) -> Config | None:
    """Load, and hold what is promised of every outcome."""
    trials.tried += 1
    beside = set(path.parent.iterdir())
    start = time.process_time()
    config = None
    try:
        config = load_config(path, overrides)
    except ConfigError as error:
        lines = str(error).splitlines()
        assert lines
        for line in lines:
            assert re.match(r"(--set .*|.*x\.(yaml|json)(:\d+:\d+)?): .|and \d+ more", line), line
    assert time.process_time() - start < 1
    assert set(path.parent.iterdir()) == beside
    if config is not None:
        again = load_config(None, text=config.to_yaml())
        assert again == config
        assert load_config(None, text=config.describe()) == config
        assert config.difference(again) == []
    return config


@pytest.mark.fault("F19")
@fuzz
@given(tree=trees, suffix=st.sampled_from(["json", "yaml"]))
def test_arbitrary_trees(folder, trials, tree, suffix):
    path = folder / f"x.{suffix}"
    path.write_text(json.dumps(tree))
    load_or_fail(path, trials)


@pytest.mark.fault("F19")
@fuzz
@given(more=st.dictionaries(st.sampled_from(NAMES), trees, max_size=3), indent=st.booleans())
def test_a_valid_config_with_arbitrary_changes(folder, trials, more, indent):
    path = folder / "x.json"
    path.write_text(json.dumps(SMALL | more, indent="\t" if indent else None))
    load_or_fail(path, trials)


def escaped(tree):
    """Return the tree with every text written so that it means itself."""
    if isinstance(tree, dict):
        return {name: escaped(child) for name, child in tree.items()}
    if isinstance(tree, list):
        return [escaped(child) for child in tree]
    return tree.replace("${", "$${") if isinstance(tree, str) else tree


@pytest.mark.fault("F19")
@fuzz
@given(extra=trees)
def test_any_data_in_the_open_section_survives(folder, trials, extra):
    path = folder / "x.json"
    path.write_text(json.dumps(SMALL | {"extra": {"x": escaped(extra)}}))
    config = load_or_fail(path, trials)
    assert config is not None
    assert config.extra["x"] == extra


@pytest.mark.fault("F19")
@fuzz
@given(data=st.binary(max_size=200), head=st.booleans(), suffix=st.sampled_from(["json", "yaml"]))
def test_arbitrary_bytes(folder, trials, data, head, suffix):
    path = folder / f"x.{suffix}"
    path.write_bytes((b"name: a\nextra: " if head else b"") + data)
    load_or_fail(path, trials)


@pytest.mark.fault("F19")
@fuzz
@given(text=st.text(alphabet="{}[]:,-?!&*#|>'\"%@`~<=.ab01\\xuU \n\t", max_size=60))
def test_arbitrary_yaml_marks(folder, trials, text):
    path = folder / "x.yaml"
    path.write_text(f"name: a\nextra:\n  {text}")
    load_or_fail(path, trials)


@pytest.mark.fault("F19")
@fuzz
@given(
    overrides=st.lists(
        st.one_of(
            st.text(max_size=30),
            st.builds("{}={}".format, st.lists(words, min_size=1, max_size=4).map(".".join), texts),
            st.builds("{}={}".format, st.sampled_from(NAMES), trees.map(json.dumps)),
        ),
        max_size=3,
    )
)
def test_arbitrary_overrides(folder, trials, overrides):
    path = folder / "x.yaml"
    path.write_text(json.dumps(SMALL))
    load_or_fail(path, trials, overrides)
