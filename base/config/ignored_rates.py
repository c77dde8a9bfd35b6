"""Finds settings of ``lr`` without effect, as the learning rate scheduler sets the rates itself."""

from __future__ import annotations

from collections.abc import Iterable

from base.config.config import Config
from base.config.normal_form import optimizer_keys, optimizer_sections
from base.config.tree import dotted

OWN_RATES = {"OneCycleLR": ("max_lr",), "CyclicLR": ("base_lr", "max_lr")}
"""Schedulers that replace the optimizer's ``lr``, with their arguments that are rates."""


def ignored_rates(config: Config, keys: Iterable[str]) -> dict[str, str]:
    """Return those of the keys, such as ``optimizer.args.lr``, that change nothing; each with why.

    An ``lr`` counts where the scheduler's rate follows it (``max_lr: ${optimizer.args.lr}``), and
    where groups have an ``lr`` of their own: the ratio of the two stays.
    """
    keys, ignored = set(keys), {}
    for name, section in optimizer_sections(config).items():
        key = f"{dotted(optimizer_keys(config, name))}.args.lr"
        schedule = section["lr_scheduler"] or {}
        rates = OWN_RATES.get(str(schedule.get("type")))
        if key not in keys or rates is None:
            continue
        given = [schedule["args"].get(rate) for rate in rates]
        given = [value for each in given for value in (each if isinstance(each, list) else [each])]
        has_ratios = any("lr" in group for group in section["param_groups"] or [])
        if section["args"].get("lr") not in given and not has_ratios:
            place = dotted(optimizer_keys(config, name, "lr_scheduler"))
            ignored[key] = f"{schedule['type']} replaces it; use {place}.args.{rates[-1]}"
    return ignored


def rate_warnings(config: Config) -> list[str]:
    """Return a line for each ``lr`` of the command line that changes nothing."""
    ignored = ignored_rates(config, config.changed)
    return [f"{key}={config.changed[key]} has no effect: {why}" for key, why in ignored.items()]
