"""The engine that every project shares; names are loaded on first use, so that a check of a
config need not wait for torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from base.base_data_loader import BaseDataLoader
    from base.base_model import BaseModel
    from base.base_trainer import BaseTrainer
    from base.data.endless_batches import EndlessBatches

__all__ = ["BaseDataLoader", "BaseModel", "BaseTrainer", "EndlessBatches"]

_HOMES = {
    "BaseDataLoader": "base.base_data_loader",
    "BaseModel": "base.base_model",
    "BaseTrainer": "base.base_trainer",
    "EndlessBatches": "base.data.endless_batches",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'base' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
