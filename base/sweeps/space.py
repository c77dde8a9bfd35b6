"""What ``--sweep`` searches: values to choose from and ranges, and how they are drawn."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from base.config.command_line import SHORT_FORMS
from base.config.schema import ROOT
from base.config.tree import Where
from base.config.yaml_reader import read_text
from base.errors import ConfigError, UsageError

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\s*\.\.\s*({NUMBER})(\s+log)?")
ALMOST_RANGE = re.compile(rf"{NUMBER}\s*\.\.+.*|.*\.\.\s*{NUMBER}(\s+\w+)?")
WHOLE = re.compile(r"[-+]?\d+")
MAX_TRIALS = 10_000
CLOSING = {"[": "]", "{": "}"}
RETRIES = 1000  # of a draw that has been made before

Settings = dict[str, str]
"""The values of a trial by dotted key, each as after ``--set key=``."""


@dataclass(frozen=True)
class Choices:
    """Values to choose from, each as after ``--set key=``."""

    key: str
    values: tuple[str, ...]

    @property
    def size(self) -> float:
        """The number of values."""
        return len(self.values)

    def draw(self, source: random.Random) -> str:
        """Draw a value, all with the same probability."""
        return self.values[source.randrange(len(self.values))]


@dataclass(frozen=True)
class Range:
    """Numbers between two limits, both included; log-uniform if ``is_log``."""

    key: str
    low: float
    high: float
    is_log: bool
    is_whole: bool

    @property
    def size(self) -> float:
        """The number of values; infinite unless they are whole numbers."""
        return self.high - self.low + 1 if self.is_whole else math.inf

    def draw(self, source: random.Random) -> str:
        """Draw a number."""
        if self.is_whole and not self.is_log:
            return self.text(source.randint(int(self.low), int(self.high)))
        low, high = self.low, self.high + self.is_whole
        if self.is_log:
            low, high = math.log(low), math.log(high)
        value = low + (high - low) * source.random()
        return self.text(math.exp(value) if self.is_log else value)

    def text(self, value: float) -> str:
        """Return a number as after ``--set``: of four digits, and within the limits."""
        value = min(max(value, self.low), self.high)
        if self.is_whole:
            return str(math.floor(value))
        rounded = f"{min(max(float(f'{value:.4g}'), self.low), self.high):.15g}"
        return rounded if set(rounded) & {".", "e"} else f"{rounded}.0"


Space = list["Choices | Range"]


def parse_space(texts: Sequence[str], overrides: Sequence[str] = ()) -> Space:
    """Read what follows ``--sweep``: ``KEY=A,B,C``, ``KEY=1e-4..1e-1 log`` or ``KEY=16..256``.

    Args:
        texts: one for each key; the word ``log`` may be one of its own.
        overrides: what follows ``--set``; a sweep may not overwrite it.

    Raises:
        UsageError: a text cannot be read, or a key is given twice.
    """
    space: Space = []
    for text in _joined(texts):
        key, equals, values = text.partition("=")
        key = canonical_key(key.strip())
        if not equals or not all(key.split(".")):
            raise UsageError(f"--sweep {text}: write it as key=1,2,3 or key=1e-4..1e-1 log")
        space.append(_parse_values(key, values.strip(), f"--sweep {text}"))
    _refuse_overlaps([each.key for each in space], overrides)
    return space


def canonical_key(key: str) -> str:
    """Return a key without abbreviations: ``lr`` is ``optimizer.args.lr``, as after ``--lr``."""
    first, dot, rest = SHORT_FORMS.get(key, key).partition(".")
    return ROOT.aliases.get(first, first) + dot + rest


def grid(space: Space) -> list[Settings]:
    """Return all combinations; the last key changes fastest.

    Raises:
        UsageError: there are ranges, or too many combinations.
    """
    open_ended = [each.key for each in space if isinstance(each, Range)]
    if open_ended:
        text = "a range has no grid; add --samples N for N random trials"
        raise UsageError(f"--sweep {', '.join(open_ended)}: {text}")
    size = math.prod(each.size for each in space)
    if size > MAX_TRIALS:
        text = f"the grid has {size:,.0f} combinations, more than {MAX_TRIALS:,}"
        raise UsageError(f"--sweep: {text}; add --samples N for N of them")
    values = [each.values for each in space if isinstance(each, Choices)]
    keys = [each.key for each in space]
    return [dict(zip(keys, each, strict=True)) for each in itertools.product(*values)]


def draws(space: Space, seed: int) -> Iterator[Settings]:
    """Yield random settings without repetition, until there are no more.

    A longer search begins with the draws of a shorter one.
    """
    size = math.prod(each.size for each in space)
    seen: set[tuple[str, ...]] = set()
    while len(seen) < size:
        number, attempt = len(seen), 0
        settings = draw(space, f"{seed}/{number}/{attempt}")
        while tuple(settings.values()) in seen:
            attempt += 1
            if attempt > RETRIES * (1 + number):
                return  # of a narrow range, all numbers of four digits
            settings = draw(space, f"{seed}/{number}/{attempt}")
        seen.add(tuple(settings.values()))
        yield settings


def draw(space: Space, seed: str) -> Settings:
    """Draw settings at random, the same for the same seed."""
    source = random.Random(seed)
    return {each.key: each.draw(source) for each in space}


def split_values(text: str) -> list[str]:
    """Split a text at its commas, except those in quotes and brackets."""
    parts, part, closing = [], "", ""
    for letter in text:
        if closing[-1:] in ("'", '"') and closing:
            closing = closing[:-1] if letter == closing[-1] else closing
        elif letter in "'\"" and part.rstrip()[-1:] in ("", "[", "{", ",", ":"):
            closing += letter
        elif letter in CLOSING:
            closing += CLOSING[letter]
        elif closing and letter == closing[-1]:
            closing = closing[:-1]
        if letter == "," and not closing:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    return [*parts, part.strip()]


def _joined(texts: Sequence[str]) -> list[str]:
    """Join the word ``log`` to the text before it, which a shell has split off."""
    joined: list[str] = []
    for text in texts:
        if text == "log" and joined:
            joined[-1] += " log"
        else:
            joined.append(text)
    return joined


def _parse_values(key: str, text: str, where: str) -> Choices | Range:
    values = split_values(text)
    if "" in values:
        raise UsageError(f"{where}: a value is missing; write null or '' for an empty one")
    if len(values) == 1 and (match := RANGE.fullmatch(values[0])):
        return _parse_range(key, match, where)
    if any(map(ALMOST_RANGE.fullmatch, values)):
        text = "write a range alone, as 0.0..0.5, 16..256 or 1e-4..1e-1 log"
        raise UsageError(f"{where}: {text}; put a text of that form in quotes")
    first: dict[object, str] = {}
    for value in values:
        kind = _hashable(_plain(value, f"--sweep {key}={value}"))
        if kind in first:
            raise UsageError(f"{where}: {first[kind]} and {value} are the same value")
        first[kind] = value
    return Choices(key, tuple(values))


def _parse_range(key: str, match: re.Match[str], where: str) -> Range:
    low, high = float(match[1]), float(match[2])
    is_whole = all(WHOLE.fullmatch(match[place]) for place in (1, 2))
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        raise UsageError(f"{where}: the first limit of a range is the lower one")
    if match[3] and low <= 0:
        raise UsageError(f"{where}: a range with `log` begins above 0")
    return Range(key, low, high, bool(match[3]), is_whole)


def _plain(text: str, where: str) -> object:
    """Return a value as a config reads it."""
    problems: list[object] = []
    try:
        value = read_text(text, Where(where), problems).plain()  # type: ignore[arg-type]
    except ConfigError as error:
        raise UsageError(str(error)) from error
    if problems:
        raise UsageError(str(problems[0]))
    return value


def _hashable(value: object) -> object:
    """Return what is equal for equal values, and hashable; True is not 1."""
    if isinstance(value, dict):
        return frozenset((key, _hashable(each)) for key, each in value.items())
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    return isinstance(value, bool), value


def _refuse_overlaps(keys: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse a key that overwrites an earlier one, or one that ``--set`` gives."""
    given = [(f"--set {text}", canonical_key(text.partition("=")[0].strip())) for text in overrides]
    for key in keys:
        for origin, earlier in given:
            if f"{earlier}.".startswith(f"{key}."):
                which = f"it overwrites {origin}" if origin else f"{earlier} is swept already"
                raise UsageError(f"--sweep {key}: {which}; keep one of them")
        given.append(("", key))
