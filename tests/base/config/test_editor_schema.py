"""The schema for editors: valid draft 7, and of one mind with the loader."""

from __future__ import annotations

import jsonschema
import pytest

from base.config import json_schema

NET = {
    "type": "object",
    "properties": {"width": {"type": "integer"}, "act": {"enum": ["relu", "tanh"]}},
    "required": ["width"],
    "additionalProperties": False,
}
TYPES = {"model": [{"name": "Net", "args_schema": NET, "doc": "A net."}]}
SMALL = {
    "name": "a",
    "model": {"type": "Net", "args": {"width": 3}},
    "data_loader": "L",
    "optimizer": {"type": "SGD", "args": {"lr": 0.1}},
    "trainer": {"epochs": 1},
}


@pytest.fixture(params=[None, TYPES], ids=["plain", "with types"])
def validator(request):
    schema = json_schema(request.param)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"arch": SMALL["model"], "model": SMALL["model"]},
        {"loss": "mse", "metrics": ["a", {"type": "b", "over": "epoch"}], "callbacks": ["EMA"]},
        {"loss": {"type": "mse", "weight": 2}, "lr_scheduler": "StepLR"},
        {"loss": [{"type": "mse"}, "l1"], "batch": {"inputs": "x", "target": 1}},
        {
            "init": [
                {"match": {"type": ["A", "B"]}, "weight": "ones_", "bias": 0, "g": {"type": "x"}}
            ]
        },
        {"freeze": ["a", "re:b", {"type": "C"}], "memory": None, "metrics": None},
        {"optimizer": None, "optimizers": {"g": {"type": "Adam", "params": ["g.*"]}}},
        {"seed": "${extra.s}", "memory": "${extra.m}", "extra": {"s": 1, "anything": [None]}},
        {"model": {"type": "Net", "args": {"width": "${extra.w}"}}},
        {"model": {"type": "Another", "args": {"any": 1}}},
        {"trainer": {"steps": 5, "save_every": "5%", "monitor": "max valid/accuracy", "ema": {}}},
        {
            "inherit": ["a.yaml"],
            "lr_scheduler": {"type": "S", "warmup": "1 epoch", "every": "step"},
        },
    ],
)
def test_every_form_that_loads_is_valid(validator, more):
    validator.validate(SMALL | more)


def test_a_child_that_inherits_needs_nothing_else(validator):
    validator.validate({"inherit": "a.yaml", "seed": 1})
    assert not validator.is_valid({"seed": 1})
    for name in ("name", "data_loader", "trainer"):
        assert not validator.is_valid({key: SMALL[key] for key in SMALL if key != name})


@pytest.mark.parametrize(
    "more",
    [
        {"sede": 1},
        {"seed": "5"},
        {"seed": -1},
        {"memory": {"precision": "fp8"}},
        {"memory": {"precison": "fp16"}},
        {"trainer": {"epochs": 0}},
        {"trainer": {"epochs": 1, "save_every": 5}},
        {"trainer": {"epochs": 1, "save_every": "5 days"}},
        {"loss": 5},
        {"init": [{"match": 5}]},
        {"metrics": "accuracy"},
    ],
)
def test_slips_are_invalid(validator, more):
    assert list(validator.iter_errors(SMALL | more))


@pytest.mark.parametrize("args", [{}, {"width": "x"}, {"width": 1, "act": "gelu"}, {"widht": 1}])
def test_the_users_own_classes_are_checked(args):
    config = SMALL | {"model": {"type": "Net", "args": args}}
    assert not list(jsonschema.Draft7Validator(json_schema()).iter_errors(config))
    assert list(jsonschema.Draft7Validator(json_schema(TYPES)).iter_errors(config))


def test_names_descriptions_and_defaults_reach_the_editor():
    schema = json_schema(TYPES)
    assert {"const": "Net", "description": "A net."} in schema["definitions"]["model"][
        "properties"
    ]["type"]["anyOf"]
    assert schema["properties"]["seed"]["description"] == "Seed of all random number generators."
    assert schema["properties"]["seed"]["default"] == 42
