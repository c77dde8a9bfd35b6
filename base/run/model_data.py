"""What a ready model expects of its inputs: ``normalize: model``, and a warning if they differ."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from base.checkpoint.data_record import offers_record, record_of
from base.checkpoint.weights import sections_of_timm
from base.config import Config
from base.errors import ConfigError
from base.names.check import LOADERS
from base.names.registry import find
from base.network.timm_models import data_config

log = logging.getLogger("kindling")

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
KEYS = ("args", "normalize")
KINDS = ("mean", "std")


def resolve_normalize(config: Config) -> None:
    """Replace ``normalize: model`` of each loader by the mean and std that the model expects.

    Raises:
        ConfigError: the model is none of timm or torchvision.
    """
    for loader in LOADERS:
        section = config[loader]
        if section is None or (section["args"] or {}).get("normalize") != "model":
            continue
        expected = next(_expected(config), None)
        if expected is None:
            kind = config["model"]["type"]
            text = f"'model' stands for what a model of timm or torchvision expects, and {kind} is"
            problem = config.problem((loader, *KEYS), f"{text} none; give {{mean, std}} or `auto`")
            raise ConfigError([problem])
        statistics = {key: expected[key] for key in KINDS}
        config.resolve(loader, *KEYS, value=statistics)


def warn_of_other_statistics(config: Config, loader: Any) -> None:
    """Warn if images are not normalized as those that timm's own weights were trained on."""
    args = config["data_loader"]["args"] or {}
    expected = [data_config(each) for _, each in sections_of_timm(config["model"])
                if each.get("pretrained")]  # fmt: skip
    if not expected or not offers_record(loader):
        return
    given = args.get("normalize")
    found: Mapping[str, Any] | None = IMAGENET if given == "imagenet" else None
    if isinstance(given, Mapping):
        found = given
    elif given in ("auto", "inputs"):
        found = record_of(loader)
    if found is None:
        seen = "are not normalized"
    elif all(_close(found.get(key), expected[0][key]) for key in KINDS):
        return
    else:
        seen = f"are normalized with mean {found.get('mean')}, std {found.get('std')}"
    size = "x".join(map(str, expected[0]["size"]))
    text = "the weights were trained on images of size %s with mean %s, std %s; those here %s"
    log.warning(f"{text}: write `normalize: model`", size, *map(expected[0].get, KINDS), seen)


def _expected(config: Config) -> Iterator[Mapping[str, Any]]:
    """Yield what each model of timm, or the model of torchvision, in the config expects."""
    for _, args in sections_of_timm(config["model"]):
        yield data_config(args)
    named = find("model", config["model"]["type"])
    if (getattr(named, "__module__", None) or "").startswith("torchvision.models"):
        yield IMAGENET


def _close(found: Any, expected: Sequence[float]) -> bool:
    found = found if isinstance(found, list | tuple) else [found]
    is_as_long = len(found) in (1, len(expected))
    values = [*found] * (len(expected) if len(found) == 1 else 1)
    is_number = all(isinstance(value, int | float) for value in values)
    return (
        is_as_long
        and is_number
        and all(abs(value - other) < 0.01 for value, other in zip(values, expected, strict=True))
    )
