"""Sweeps: several runs of one config with other settings, and a table of what they give.

``train.py --sweep`` calls `run_sweep`. Each trial is an ordinary run in a process of its own; the
process of the sweep draws the settings, starts the trials and reads their folders, without torch.
"""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.sweeps.sweep import run_sweep as run_sweep
else:
    __getattr__, __all__ = lazy_imports(__name__)
