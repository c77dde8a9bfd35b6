"""The manifest of a checkpoint as JSON that tells when a byte of it is another."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest as JSON with a checksum of the rest of it."""
    content = _json_ready({key: item for key, item in manifest.items() if key != "checksum"})
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps({**content, "checksum": checksum}, indent=2).encode() + b"\n"


def _json_ready(value: Any) -> Any:
    """Replace the floats that JSON lacks (nan, inf) by their names."""
    if isinstance(value, Mapping):
        return {str(key): _json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
