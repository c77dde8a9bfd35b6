"""Every shipped config is valid, says how to run it, and the schema beside them is fresh."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml

from base.config import json_schema, load_config
from base.names.check import check_names
from base.names.listing import type_schemas

FOLDER = Path(__file__).resolve().parents[3] / "config"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
SCHEMA = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", CONFIGS, ids=[path.name for path in CONFIGS])
def test_config_is_valid_and_opens_with_its_command(path: Path) -> None:
    check_names(load_config(path))
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first == "# yaml-language-server: $schema=schema.json"
    assert second.startswith(f"# python train.py -c config/{path.name}")


@pytest.mark.parametrize("path", CONFIGS, ids=[path.name for path in CONFIGS])
def test_the_schema_accepts_it_and_refuses_a_slip(path: Path) -> None:
    written = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    resolved = yaml.safe_load(load_config(path).to_yaml())
    validator = jsonschema.Draft7Validator(SCHEMA)
    assert [error.message for error in validator.iter_errors(resolved)] == []
    assert list(validator.iter_errors({**resolved, "epohcs": 3}))
    (resolved["optimizer"] or next(iter(resolved["optimizers"].values())))["args"]["lrr"] = 1
    assert list(validator.iter_errors(resolved))
    assert "name" in written


def test_the_schema_file_is_fresh() -> None:
    """With another torch, or packages whose names it would hold, only what is ours is compared."""
    fresh = json_schema(type_schemas())
    stale = {key: value for key, value in SCHEMA.items() if key != "$comment"}
    has_more = importlib.util.find_spec("torchmetrics") is not None
    if has_more or SCHEMA["$comment"] != f"torch {torch.__version__}":
        fresh, stale = ({**schema, "definitions": {}} for schema in (fresh, stale))
    renew = "python train.py --schema > config/schema.json"
    assert json.loads(json.dumps(fresh)) == stale, f"renew it: {renew}"
