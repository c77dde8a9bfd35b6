"""Where the engine and the project that holds it lie on disk."""

from pathlib import Path

ENGINE = Path(__file__).resolve().parent.parent
"""The folder ``base/``."""

PROJECT = ENGINE.parent
"""The folder that holds ``base/`` and the user's own folders."""
