"""The config's JSON Schema (draft 7), with which editors complete and check a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from base.config.schema import ROOT

KINDS = (
    "model",
    "init",
    "loss",
    "metric",
    "data_loader",
    "optimizer",
    "lr_scheduler",
    "trainer",
    "callback",
)


def json_schema(
    type_schemas: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Return the schema; `type_schemas[kind]` lists {name, args_schema, doc} of what has a name."""
    reference = {"type": "string", "pattern": r"\$\{[^{}]*\}", "description": "Another value."}
    definitions = {kind: _named((type_schemas or {}).get(kind, ())) for kind in KINDS}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Kindling config",
        "definitions": {"reference": reference, **definitions},
        **ROOT.json_schema(),
    }


def _named(types: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not types:
        return {}
    known = [{"const": entry["name"], "description": entry.get("doc", "")} for entry in types]
    rules = [
        {
            "if": {"properties": {"type": {"const": entry["name"]}}, "required": ["type"]},
            "then": {"properties": {"args": _or_reference(entry["args_schema"])}},
        }
        for entry in types
    ]
    return {"properties": {"type": {"anyOf": [*known, {"type": "string"}]}}, "allOf": rules}


def _or_reference(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Let each argument be a `${reference}` instead."""
    either = {
        name: {"anyOf": [argument, {"$ref": "#/definitions/reference"}]}
        for name, argument in schema.get("properties", {}).items()
    }
    return {**schema, "properties": either}
