"""Converts labels of lists and tables to targets. All errors are reported together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from base.errors import DataError, Problem, nearest

TASKS = ("classification", "regression", "multilabel")
N_SHOWN = 10  # lines of errors shown per file
N_PLACES = 3  # of one kind of error in a column
PLACE = re.compile(r"(?P<file>.+?):(?P<line>\d+)(?P<column>:.*)?", re.DOTALL)
FOUND = re.compile(r"(found|missing value|no target) [^;]*")  # what differs within a kind
MOST_CLASSES = 1_000_000  # without `classes`; a higher number is a mistake, not a class
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
LARGEST = torch.finfo(torch.float32).max

Texts = Sequence[Sequence[str]]  # (sample, column)
Place = Callable[[int, int], str]  # sample and column -> location of the label
Classes = Sequence[Any] | int | None  # names, a number, or None: taken from the labels


class ProblemsError(DataError):
    """Several problems of a file, one a line; those of one kind in a column share a line."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        groups: dict[Any, list[Problem]] = {}
        for problem in problems:
            groups.setdefault(_kind_of(problem), []).append(problem)
        shown = []
        for problem in problems:
            group = groups[_kind_of(problem)]
            if len(group) <= N_PLACES or not PLACE.fullmatch(problem.where):
                shown.append(str(problem))
            elif problem is group[0]:
                shown.append(_summary_of(group))
        more = [f"... and {len(shown) - N_SHOWN} more"] if len(shown) > N_SHOWN else []
        super().__init__("\n".join([*shown[:N_SHOWN], *more]))


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raise an error with the first ten lines of the problems and the number of the others."""
    if problems:
        raise ProblemsError(problems)


def all_of(*reads: Callable[[], Any]) -> list[Any]:
    """Return the results of functions, or raise the problems of all of them together."""
    results, problems = [], []
    for read in reads:
        try:
            results.append(read())
        except ProblemsError as error:
            problems += error.problems
    raise_problems(problems)
    return results


def _kind_of(problem: Problem) -> tuple[str, str, str] | None:
    """Return the file, the column and the kind of a problem; None if it has no line."""
    place = PLACE.fullmatch(problem.where)
    return place and (place["file"], place["column"] or "", FOUND.sub(r"\1", problem.message))


def _summary_of(group: Sequence[Problem]) -> str:
    """Return a line for the problems of one kind in a column."""
    file, column, _ = _kind_of(group[0]) or ("", "", "")
    lines = [place["line"] for each in group[:N_PLACES] if (place := PLACE.fullmatch(each.where))]
    where = f"{len(group)} rows, the first in lines {', '.join(lines)}"
    return f"{file}{column}: {where}: {group[0].message}"


def read_targets(
    texts: Texts, place: Place, task: str, classes: Classes, separator: str | None = None
) -> tuple[Tensor, list[str] | None]:
    """Return the targets of the labels, and the class names if there are classes.

    classification   one column of class names or numbers: int64 (n,); more, of numbers: (n, k)
    regression       numbers: float32 (n, k)
    multilabel       columns of 0 and 1, or names joined by `separator` in one: float32 (n, k)

    Raises:
        DataError: labels are not valid. All are listed with their locations.
    """
    if task not in TASKS:
        raise DataError(f"no task {task!r}{nearest(str(task), TASKS)} ({', '.join(TASKS)})")
    names = class_names(classes)
    if task == "multilabel" and separator:
        return _several_hot([row[0].split(separator) for row in texts], place, names)
    if task == "classification" and all(len(row) == 1 for row in texts):
        return _class_numbers([row[0] for row in texts], place, names)
    readers = {
        "classification": _class_number,
        "regression": read_number,
        "multilabel": _zero_or_one,
    }
    values, problems = [], []
    for sample, row in enumerate(texts):
        for column, text in enumerate(row):
            try:
                values.append(readers[task](text))
            except ValueError as error:
                problems.append(Problem(place(sample, column), str(error)))
    raise_problems(problems)
    dtype = torch.int64 if task == "classification" else torch.float32
    return torch.tensor(values, dtype=dtype).view(len(texts), -1), names


def class_names(classes: Classes) -> list[str] | None:
    """Return the class names of a `classes` argument: the given names, or the numbers below it."""
    if classes is None:
        return None
    if isinstance(classes, str | bool):
        raise DataError(f"classes is {classes!r}; give a list of names, or the number of classes")
    names = list(map(str, range(classes) if isinstance(classes, int) else classes))
    twice = sorted(name for name, n_uses in Counter(names).items() if n_uses > 1)
    if twice or not names:
        raise DataError(f"classes names {twice[0]!r} twice" if twice else "classes is empty")
    return names


def _class_numbers(
    column: list[str], place: Place, names: list[str] | None
) -> tuple[Tensor, list[str]]:
    numbers = {text: int(text) for text in set(column) if text.removeprefix("-").isdecimal()}
    are_numbers = len(numbers) == len(set(column))
    faults = {"": "no label"}
    values = set(map(as_number, set(column) - {""}))
    are_whole = all(value is not None and value == value // 1 for value in values)
    if names is None and are_numbers:
        names = list(map(str, range(min(MOST_CLASSES, max(numbers.values(), default=-1) + 1))))
    elif names is None and (are_whole or not numbers):
        names = sort_labels(set(column) - {""})
        faults |= _equal_numbers(names)
    elif names is None:
        names = sorted(set(column) - {""})
        n_numbers = sum(text in numbers for text in column)
        are_strange = n_numbers <= len(column) / 2
        for text in names if numbers else ():
            if (text in numbers) == are_strange:
                kinds = ("number", "names") if are_strange else ("name", "numbers")
                faults[text] = f"{text!r} is a {kinds[0]} among {kinds[1]}; `classes` may list all"
    known = {name: number for number, name in enumerate(names)}
    if are_numbers and not known.keys() >= numbers.keys():
        known = {text: number for text, number in numbers.items() if 0 <= number < len(names)}
        outside = f"is out of range, 0 to {len(names) - 1}"
        faults |= {text: f"class {text} {outside}" for text in numbers.keys() - known.keys()}
    unknown = [text for text in dict.fromkeys(column) if text not in known and text not in faults]
    for number, text in enumerate(unknown):  # looking for the nearest of all would take long
        near = nearest(text, names) if number < N_SHOWN else ""
        faults[text] = f"unknown class {text!r}{near}"
    wrong = [(sample, text) for sample, text in enumerate(column) if text in faults]
    raise_problems([Problem(place(sample, 0), faults[text]) for sample, text in wrong])
    return torch.tensor([known[text] for text in column], dtype=torch.int64), names


def _several_hot(
    labels: list[list[str]], place: Place, names: list[str] | None
) -> tuple[Tensor, list[str]]:
    """Return a multi-hot row for each sample. A sample may have no label."""
    labels = [[label.strip() for label in row if label.strip()] for row in labels]
    names = sort_labels({label for row in labels for label in row}) if names is None else names
    known = {name: number for number, name in enumerate(names)}
    places: list[tuple[int, int]] = []
    problems: list[Problem] = []
    for sample, row in enumerate(labels):
        for label in row:
            if label in known:
                places.append((sample, known[label]))
            else:
                near = nearest(label, names) if len(problems) < N_SHOWN else ""
                problems.append(Problem(place(sample, 0), f"unknown class {label!r}{near}"))
    raise_problems(problems)
    targets = torch.zeros(len(labels), len(names))
    if places:
        targets[tuple(torch.tensor(places).T)] = 1
    return targets, names


def sort_labels(labels: Iterable[str]) -> list[str]:
    """Sort labels as numbers if all are numbers, else as text, with an empty label first."""
    texts = sorted(labels)
    numbers = {text: as_number(text) for text in texts if text}
    if None in numbers.values():
        return texts
    return sorted(texts, key=lambda text: (text != "", numbers.get(text, 0.0)))


def as_number(text: str) -> float | None:
    """Parse a number; return None if the text is not one.

    Only digits with a sign, a decimal point and an exponent are valid. Python's `float` also
    accepts ``1_0``, ``nan``, ``infinity`` and digits of other scripts.
    """
    return float(text) if NUMBER.fullmatch(text) else None


def all_numbers(texts: Sequence[str]) -> Tensor | None:
    """Parse many numbers at once, float64; None if one is not valid or overflows float32."""
    if not all(map(NUMBER.fullmatch, texts)):
        return None
    numbers = torch.tensor(list(map(float, texts)), dtype=torch.float64)
    return numbers if bool((numbers.abs() <= LARGEST).all()) else None


def read_number(text: str) -> float:
    """Parse a number; raise ValueError if it is not one or overflows float32."""
    value = as_number(text)
    if value is None:
        raise ValueError(f"expected a number, found {text!r}")
    if abs(value) > LARGEST:
        raise ValueError(f"{text} overflows float32, whose maximum is {LARGEST:.3g}")
    return value


def _equal_numbers(names: Sequence[str]) -> dict[str, str]:
    """Return an error message for each label that is the same number as another one."""
    first: dict[float, str] = {}
    faults = {}
    for name in names:
        value = as_number(name)
        if value is not None and first.setdefault(value, name) != name:
            faults[name] = f"{first[value]!r} and {name!r} are the same number: write it in one way"
    return faults


def _class_number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"expected a class number (of several columns), found {text!r}")
    return int(text)


def _zero_or_one(text: str) -> float:
    value = {"false": 0.0, "true": 1.0}.get(text.lower(), as_number(text))
    if value not in (0, 1):
        raise ValueError(f"expected 0 or 1, found {text!r}")
    return float(value)
