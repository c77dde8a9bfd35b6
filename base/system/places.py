"""The folders of the engine and of the project that contains it."""

from pathlib import Path

ENGINE = Path(__file__).resolve().parent.parent
"""The folder ``base/``."""

PROJECT = ENGINE.parent
"""The folder of ``base/`` and the user's own folders."""
