"""The JSON Schema (draft 7) of configs, for completion and checks in editors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from base.config.fields import REQUIRED
from base.config.schema import ROOT


def json_schema(
    type_schemas: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Return the schema. `type_schemas[kind]` lists names of a kind: {name, args_schema, doc}."""
    root = ROOT.json_schema()
    kinds = sorted({*re.findall(r"#/definitions/(\w+)", str(root))} - {"reference"})
    named = {kind: _named((type_schemas or {}).get(kind, ())) for kind in kinds}
    reference = {"type": "string", "pattern": r"\$\{[^{}]*\}", "description": "Another value."}
    needed = [name for name, key in ROOT.keys.items() if key.default is REQUIRED]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Kindling config",
        "definitions": {"reference": reference, **named},
        # A file that inherits may omit any key, and `arch` is an alias of `model`.
        "anyOf": [{"required": ["inherit"]}, {"required": sorted({*needed} - {"model"})}],
        **root,
    }


def _named(types: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the schema of a section whose `type` is one of these, with its arguments."""
    known = [{"const": entry["name"], "description": entry.get("doc", "")} for entry in types]
    rules = [
        {
            "if": {"properties": {"type": {"const": entry["name"]}}, "required": ["type"]},
            "then": {"properties": {"args": _or_reference(entry["args_schema"])}},
        }
        for entry in types
    ]
    names = {"properties": {"type": {"anyOf": [*known, {"type": "string"}]}}}
    return {**names, "allOf": rules} if types else {}


def _or_reference(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Allow a `${reference}` in place of each argument."""
    reference = {"$ref": "#/definitions/reference"}
    arguments = schema.get("properties", {}).items()
    return {**schema, "properties": {name: {"anyOf": [a, reference]} for name, a in arguments}}
