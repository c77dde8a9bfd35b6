"""Names of weights that were saved through a wrapper or by an old torch, made to fit a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from base.checkpoint.restoration import shape_in_words

LOG = logging.getLogger("kindling")
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and DistributedDataParallel; of compile
COUNTER = "num_batches_tracked"


def fitted(saved: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return weights under a model's names where only a wrapper or a counter is in the way; told.

    A wrapper's prefix goes only if then everything fits. A BatchNorm from before torch 0.4.1 lacks
    a counter, which is set to 0, as torch does.
    """
    fitting = dict(saved)
    for prefix in WRAPPERS:
        bare = {name.removeprefix(prefix): value for name, value in fitting.items()}
        if all(name.startswith(prefix) for name in fitting) and _fits(bare, own):
            LOG.warning("%s: %r was taken off its names, as then all of them fit", path, prefix)
            fitting = bare
    lacking = [name for name in _lacking_counters(fitting, own) if name not in fitting]
    if lacking:
        LOG.warning("%s: set to 0, as it is older than them: %s", path, ", ".join(lacking))
    return {**fitting, **{name: torch.zeros_like(own[name]) for name in lacking}}


def _fits(saved: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    all_of_it = {**dict.fromkeys(_lacking_counters(saved, own)), **saved}
    is_same = all_of_it.keys() == own.keys()
    return is_same and all(
        shape_in_words(value) == shape_in_words(own[name]) for name, value in saved.items()
    )


def _lacking_counters(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return the counters of those BatchNorms whose averages are in the file."""
    counters = [name for name in own if name.rpartition(".")[2] == COUNTER]
    averages = {name: f"{name.removesuffix(COUNTER)}running_mean" for name in counters}
    return [name for name in counters if name not in saved and averages[name] in saved]
