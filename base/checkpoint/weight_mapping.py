"""Maps the weights of a file to a model by the rules of ``model.weights``."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn

from base.checkpoint.state_dicts import describe_shape
from base.errors import CheckpointError, nearest
from base.network.patterns import NoMatch, match_names

LOG = logging.getLogger("kindling")
MAX_LINES = 12  # per kind in a message
MOST_COMPARED = 500  # names among which a line suggests one; ten thousand take a second a line
WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and DistributedDataParallel; of compile
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class WeightsReport:
    """The outcome for each name of a file and of a model.

    A name in both is loaded, left out or mismatched. A name only in the model is missing, and one
    only in the file is unexpected.
    """

    file: str
    loaded: list[str]
    renamed: dict[str, str]  # name after the rules: name in the file
    missing: list[str]
    unexpected: list[str]
    mismatched: dict[str, str]  # name: both shapes
    left_out: list[str]

    def table(self) -> str:
        """Return a line per outcome with the number of names and the first few of them."""
        renamed = [f"{old} -> {new}" for new, old in self.renamed.items()]
        mismatched = [f"{name} ({shapes})" for name, shapes in self.mismatched.items()]
        kinds = {"loaded": self.loaded, "renamed": renamed, "missing": self.missing}
        kinds |= {"unexpected": self.unexpected, "mismatched": mismatched}
        kinds["left out"] = self.left_out
        return "\n".join(
            f"  {kind:10} {len(names):6,}  {', '.join(names[:3])}{', ...' * (len(names) > 3)}"
            for kind, names in kinds.items()
        ).replace("  \n", "\n")


def rename_keys(
    names: Iterable[str], strip: Sequence[str], rename: Mapping[str, str]
) -> dict[str, str]:
    """Return the names after the rules, each with its name in the file.

    Prefixes are stripped in order, then names are replaced in order. Each rule applies to the
    result of the previous one. A ``*`` in a replacement is the match of the pattern's ``*``;
    in the replacement for a ``re:`` pattern, ``\\1`` stands for its first group.

    Raises:
        NoMatch: a rule has no effect or is not valid.
        CheckpointError: two names become equal.
    """
    made = {name: name for name in names}
    for prefix in (f"{given.rstrip('.')}." for given in strip):
        if not any(name.startswith(prefix) for name in made.values()):
            parts = {
                name[: dot.end()] for name in made.values() for dot in re.finditer(r"\.", name)
            }
            raise NoMatch(
                f"`strip`: no weight starts with {prefix!r}{_suggestion(prefix, parts, made)}"
            )
        made = {old: name.removeprefix(prefix) for old, name in made.items()}
    for pattern, replacement in rename.items():
        hits = set(_matched("rename", made.values(), pattern, None))
        substitute = _substitution(pattern, replacement)
        made = {old: substitute(name) if name in hits else name for old, name in made.items()}
    sources: dict[str, str] = {}
    for old, name in made.items():
        if name in sources:
            text = f"{sources[name]!r} and {old!r} of the file would both become {name!r}"
            raise CheckpointError(f"{text}: `strip` and `rename` must keep names distinct")
        sources[name] = old
    return sources


def _suggestion(prefix: str, parts: Iterable[str], made: Mapping[str, str]) -> str:
    return nearest(prefix, parts) or f"; names look like: {', '.join([*made.values()][:3])}, ..."


def _matched(rule: str, names: Iterable[str], pattern: Any, model: nn.Module | None) -> list[str]:
    try:
        return match_names(names, pattern, model)
    except NoMatch as error:
        raise NoMatch(f"`{rule}`: {error}") from error


def _substitution(pattern: str, replacement: str) -> Callable[[str], str]:
    """Return a function that maps a name to its replacement where the pattern matches."""
    template, expression = replacement, pattern.removeprefix("re:")
    if not pattern.startswith("re:"):
        n_stars = pattern.count("*"), replacement.count("*")
        if n_stars[0] != n_stars[1]:
            text = f"`rename`: {pattern!r} has {n_stars[0]} `*`, {replacement!r} has {n_stars[1]}"
            raise NoMatch(f"{text}: use the same number, or a regular expression: 're:(.*)': '\\1'")
        numbers = count(1)
        template = re.sub(r"\*", lambda _: rf"\g<{next(numbers)}>", template.replace("\\", r"\\"))
        expression = "(.*)".join(translate(part)[4:-3] for part in pattern.split("*"))

    def expand(name: str) -> str:
        found = re.fullmatch(expression, name)
        try:
            return found.expand(template) if found else name
        except (re.error, IndexError) as error:
            raise NoMatch(f"`rename`: {pattern!r} to {replacement!r}: {error}") from error

    return expand


def match_weights(
    model: nn.Module, saved: Mapping[str, Any], section: Mapping[str, Any], file: str
) -> tuple[WeightsReport, dict[str, Any]]:
    """Return the report, and the values to load by their names in the model.

    Raises:
        NoMatch: a rule has no effect or is not valid.
        CheckpointError: a weight that is not left out is missing, unexpected or of another shape,
            or there is nothing to load.
    """
    own = model.state_dict()
    sources = rename_keys(saved, section["strip"], section["rename"])
    values = {name: saved[old] for name, old in sources.items()}
    known = list(dict.fromkeys([*own, *values]))
    only, skip = section["only"], section["skip"]
    chosen = set(_matched("only", known, only, model) if only else known)
    chosen -= set(_matched("skip", known, skip, model) if skip else ())

    mismatched = {
        name: f"{describe_shape(values[name])} in the file, {describe_shape(value)} here"
        for name, value in own.items()
        if name in chosen
        and name in values
        and describe_shape(values[name]) != describe_shape(value)
    }
    both = [name for name in own if name in values and name not in mismatched]
    report = WeightsReport(
        file=file,
        loaded=[name for name in both if name in chosen],
        renamed={name: old for name, old in sources.items() if name != old},
        missing=[name for name in own if name not in values],
        unexpected=[name for name in values if name not in own],
        mismatched=mismatched,
        left_out=[name for name in both if name not in chosen],
    )
    _check_complete(report, chosen, section["on_shape_mismatch"] == "skip")
    return report, {name: values[name] for name in report.loaded}


def _check_complete(report: WeightsReport, chosen: set[str], may_mismatch: bool) -> None:
    """Raise CheckpointError if a chosen weight cannot be loaded, or if nothing would be."""
    missing = [name for name in report.missing if name in chosen]
    unexpected = [name for name in report.unexpected if name in chosen]
    mismatched = [name for name in report.mismatched if name in chosen and not may_mismatch]
    lines = [f"{name}: {report.mismatched[name]}" for name in mismatched[:MAX_LINES]]
    for names, others, text in (
        (missing, unexpected, "not in the file"),
        (unexpected, missing, "only in the file"),
    ):
        known = others if len(others) <= MOST_COMPARED else ()
        lines += [f"{name}: {text}{nearest(name, known)}" for name in names[:MAX_LINES]]
    n_more = len(missing) + len(unexpected) + len(mismatched) - len(lines)
    lines += [f"and {n_more} more"] * (n_more > 0)
    if lines:
        advice = (
            _prefix_rule(missing, unexpected) or "list weights that should not be loaded in `skip`"
        )
        if mismatched and not missing and not unexpected:
            advice += "; `on_shape_mismatch: skip` leaves out all weights of different shape"
        text = "\n  ".join(["the file does not match the model; nothing was changed:", *lines])
        raise CheckpointError(f"{text}\n{advice}")
    if not report.loaded:
        raise CheckpointError(f"no weight of the file would be loaded:\n{report.table()}")


def _prefix_rule(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Return the rule that would match most names, if they differ only by a prefix."""
    for names, others, rule in (
        (missing, unexpected, "`strip: {0}.` removes {0!r} from the file's names"),
        (unexpected, missing, '`rename: {{"*": "{0}.*"}}` adds {0!r} to the file\'s names'),
    ):
        known = set(others)
        for name in names[:MAX_LINES]:
            longer = next((each for each in others if each.endswith(f".{name}")), name)
            prefix = longer.removesuffix(f".{name}")
            if sum(f"{prefix}.{each}" in known for each in names) * 2 > len(names):
                return f"{rule.format(prefix)}, and most would match"
    return ""


# --- Names saved by a wrapper or an old version of torch ------------------------------------------


def adapt_saved_names(
    saved: Mapping[str, Any], own: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Return weights without a wrapper's prefix and with the counters that old files lack.

    The prefix is removed only if all names and shapes match the model without it. A BatchNorm that
    was saved before torch 0.4.1 lacks a counter, which is set to 0, as torch does. Both are logged.
    """
    adapted = dict(saved)
    for prefix in WRAPPERS:
        bare = {name.removeprefix(prefix): value for name, value in adapted.items()}
        if all(name.startswith(prefix) for name in adapted) and _matches(bare, own):
            LOG.warning(
                "%s: removed the prefix %r from all names, which then match the model", path, prefix
            )
            adapted = bare
    missing = [name for name in _missing_counters(adapted, own) if name not in adapted]
    if missing:
        LOG.warning("%s: set counters to 0 that this old file lacks: %s", path, ", ".join(missing))
    return {**adapted, **{name: torch.zeros_like(own[name]) for name in missing}}


def _matches(saved: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    completed = {**dict.fromkeys(_missing_counters(saved, own)), **saved}
    is_same = completed.keys() == own.keys()
    return is_same and all(
        describe_shape(value) == describe_shape(own[name]) for name, value in saved.items()
    )


def _missing_counters(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Return the counters missing from a file that has the running averages of their BatchNorms."""
    counters = [name for name in own if name.rpartition(".")[2] == COUNTER]
    averages = {name: f"{name.removesuffix(COUNTER)}running_mean" for name in counters}
    return [name for name in counters if name not in saved and averages[name] in saved]
