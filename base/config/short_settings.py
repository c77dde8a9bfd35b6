"""Names settings in short, for a run's folder and for tables of runs: ``lr=1e-3_batch_size=64``."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from base.config.tree import leaves

MAX_BYTES = 80  # of the settings in the name of a folder; file systems take 255 for all of it
SAME_RESULT = re.compile(
    r"^(name|device|profile|capture)\b|^distributed\.(timeout|rank_logs)$|"
    r"^trainer\.(save_dir|save_every|keep|async_save|log_every|loss_gradients|test|tensorboard|"
    r"writers|progress|train_metrics|verbosity)\b"
)
"""Keys that change what a run writes and where, not what it learns: no part of its folder's name.

The length is one of those that change it. The name says how a run began: what a resumed run changes
is in its config.yaml and in run.json.
"""


def short_settings(changed: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> str:
    """Return changed settings in short as a part of a file's name; "" without any.

    It is at most `MAX_BYTES` long. If settings or parts of them are omitted, it ends with ``~``
    and four digits of the hash of all, so that it differs from that of other settings.

    Args:
        config: the whole config, in which other keys may end as a changed one does.
    """
    shown = {key: value for key, value in changed.items() if not SAME_RESULT.search(key)}
    names = short_keys(shown, [] if config is None else [key for key, _ in leaves(config)])
    whole = [f"{safe(names[key])}={safe(short_value(value))}" for key, value in shown.items()]
    kept = [text.encode()[: MAX_BYTES // 2].decode(errors="ignore") for text in whole]
    if kept == whole and len("_".join(kept).encode()) <= MAX_BYTES:
        return "_".join(kept)
    mark = "~" + hashlib.sha256("_".join(whole).encode()).hexdigest()[:4]
    while len(("_".join(kept) + mark).encode()) > MAX_BYTES:
        kept.pop()
    return "_".join(kept) + mark


def short_keys(keys: Iterable[str], others: Iterable[str] = ()) -> dict[str, str]:
    """Return a short name for each dotted key: its last part, or more parts if that is ambiguous.

    ``args`` and a last ``type`` are omitted: ``optimizer.args.lr`` is ``lr``, ``model.type`` is
    ``model``, and with several optimizers ``optimizers.critic.args.lr`` is ``critic.lr``.

    Args:
        others: further keys; one that differs from a key in middle parts only makes it ambiguous.
    """
    keys = list(keys)
    beside = {_ends(key) for key in keys}
    known = {*keys, *(key for key in others if _ends(key) in beside)}
    parts = {key: _telling(key) for key in known}
    n_uses = Counter(tail for each in parts.values() for tail in _tails(each))
    return {key: _first_unique(_tails(parts[key]), n_uses) for key in keys}


def short_value(value: Any, digits: int = 4) -> str:
    """Return a value in a few characters: numbers as ``1e-3``, types of sections, bare text."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return short_number(value, digits)
    if isinstance(value, Mapping):
        if isinstance(value.get("type"), str):
            return str(value["type"])
        return (
            ",".join(f"{name}:{short_value(each, digits)}" for name, each in value.items())
            or "none"
        )
    if isinstance(value, list | tuple):
        return ",".join(short_value(each, digits) for each in value) or "none"
    return str(value)


def short_number(value: float, digits: int = 4) -> str:
    """Return a number with at most this many digits, in the shorter of its two notations."""
    plain = repr(float(f"{value:.{digits}g}")).removesuffix(".0")
    if not math.isfinite(value):
        return plain
    mantissa, _, exponent = f"{Decimal(plain).normalize():e}".partition("e")
    power = f"{mantissa}e{int(exponent)}"
    return power if "e" in plain or len(power) < len(plain) else plain


def safe(text: str) -> str:
    """Return a text that every file system takes in a name: other characters become ``-``."""
    text = unicodedata.normalize("NFC", text)
    kept = (c if c in "._+,=-" or unicodedata.category(c)[0] in "LNM" else "\0" for c in text)
    return re.sub("\0+", "-", "".join(kept).strip("\0")).rstrip(".") or "none"


def _ends(key: str) -> tuple[str, int, str]:
    first, *rest = key.split(".")
    return first, len(rest), rest[-1] if rest else ""


def _telling(key: str) -> list[str]:
    """Return the parts of a key that tell it from others."""
    parts = [part for part in key.split(".") if part != "args"]
    return parts[:-1] if parts[-1] == "type" and len(parts) > 1 else parts


def _tails(parts: list[str]) -> list[str]:
    """Return the ends of a key from the shortest; an index never stands alone."""
    tails = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
    return [tail for tail in tails if not tail.split(".")[0].isdecimal()] or tails[-1:]


def _first_unique(tails: list[str], n_uses: Mapping[str, int]) -> str:
    return next((tail for tail in tails if n_uses[tail] == 1), tails[-1])
