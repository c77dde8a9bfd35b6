"""Commands that documents show and that may be absent: they run as soon as they exist."""

from __future__ import annotations

from processes import ROOT

_OPTIONS = (ROOT / "base" / "config" / "command_line.py").read_text(encoding="utf-8")
_EXISTS = {
    "predict.py": (ROOT / "predict.py").is_file(),
    "export.py": (ROOT / "export.py").is_file(),
    "base.report": (ROOT / "base" / "report" / "__main__.py").is_file(),
    "base.runs": (ROOT / "base" / "runs" / "__main__.py").is_file(),
    "--sweep": '"--sweep"' in _OPTIONS,
    "--check": '"--check"' in _OPTIONS,
}


def exists(words: list[str]) -> bool:
    """Return whether a command and its options are there."""
    return all(_EXISTS.get(word, True) for word in words)
