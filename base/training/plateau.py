"""What ReduceLROnPlateau watches, and whether lower or higher values are better."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from base.config import Config
from base.errors import ConfigError, KindlingError, nearest
from base.names.registry import find
from base.names.signatures import signature
from base.training.parameter_groups import Section


def watching(
    config: Config, keys: tuple[str, ...], section: Section, rule: str, losses: Collection[str]
) -> dict[str, Any]:
    """Return a scheduler's section with the bare name of what it watches, and its ``mode``.

    The direction is that of ``lr_scheduler.monitor``, where it says one, or of ``trainer.monitor``,
    where that names the same value; else ``args.mode``. Losses are minimised.

    Args:
        keys: the section's place in the config.
        rule: what picks the best epoch: ``"max valid/accuracy"``.
        losses: the names of the losses.

    Raises:
        ConfigError: two directions contradict each other, or nothing says one.
    """
    direction, key = split_rule(section["monitor"] or "")
    if direction and not key:
        text = f"expected 'min NAME' or 'max NAME', found {section['monitor']!r}"
        raise ConfigError([config.problem((*keys, "monitor"), text)])
    bare = {**section, "monitor": key or None}
    if not _is_plateau(section["type"]):
        return bare
    of_trainer, key_of_trainer = split_rule(rule)
    key = key or key_of_trainer
    same = of_trainer if key and key == key_of_trainer else ""
    if direction and same and direction != same:
        text = f"trainer.monitor is {rule!r}, this is {section['monitor']!r}; which is it?"
        raise ConfigError([config.problem((*keys, "monitor"), text)])
    args = dict(section["args"] or {})
    given, told = args.get("mode", ""), direction or same
    if given in ("min", "max") and told and given != told:
        source = f"{'.'.join(keys)}.monitor" if direction else "trainer.monitor"
        text = f"{given!r} contradicts {source}, which is '{told} {key}'; leave `mode` out"
        raise ConfigError([config.problem((*keys, "args", "mode"), text)])
    is_loss = key.rpartition("/")[2] in {"loss", *losses}
    mode = told or given or ("min" if is_loss else "")
    if key and not mode:
        text = f"are lower or higher values of {key!r} better? Write `monitor: min {key}` or"
        text += f" `monitor: max {key}`{_near(key, config, losses)}"
        raise ConfigError([config.problem((*keys, "monitor"), text)])
    if (
        mode
        and "mode" in signature("lr_scheduler", find("lr_scheduler", section["type"])).parameters
    ):
        args["mode"] = mode
    return {**bare, "monitor": key, "args": args}


def _near(key: str, config: Config, losses: Collection[str]) -> str:
    """Return the nearest name that is sure to be logged, where this is none of them."""
    names = ("loss", *losses, *(metric["name"] for metric in config["metrics"]))
    known = [f"{phase}/{name}" for phase in ("train", "valid") for name in names]
    return "" if key in known else nearest(key, known)


def _is_plateau(name: str) -> bool:
    try:
        named = find("lr_scheduler", name)
    except KindlingError:
        return False  # `build` says what is wrong
    return isinstance(named, type) and issubclass(named, ReduceLROnPlateau)


def split_rule(rule: str) -> tuple[str, str]:
    """Return a rule's direction and the value that it names: either may be empty."""
    mode, _, key = rule.partition(" ")
    if mode == "off" and not key:
        return mode, ""
    return (mode, key.strip()) if mode in ("min", "max") else ("", rule)
