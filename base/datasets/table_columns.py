"""Reads the columns of CSV files: numbers, with NaN for missing values, and categories."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from base.datasets.image_files import read_text
from base.datasets.labels import (
    LARGEST,
    all_numbers,
    as_number,
    raise_problems,
    read_number,
    sort_labels,
)
from base.errors import DataError, Problem, nearest

DELIMITERS = ",;\t|"
DATASET_ARGS = "data_loader.args.dataset.args"


@dataclass(frozen=True)
class Table:
    """The rows of a CSV file, as the text of each cell, and their line numbers."""

    file: str
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]
    decimal: str = "."
    delimiter: str = ","

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each column within a row."""
        return {name: place for place, name in enumerate(self.columns)}

    def texts(self, names: Sequence[str]) -> list[list[str]]:
        """Return the text of some columns, row by row."""
        places = [self.places[name] for name in names]
        return [[row[place] for place in places] for row in self.rows]

    def column(self, name: str) -> list[str]:
        """Return the text of each cell of a column."""
        place = self.places[name]
        return [row[place] for row in self.rows]

    def place(self, sample: int, name: str) -> str:
        """Return the location of a cell, by row and column."""
        return f"{self.file}:{self.lines[sample]}:{name}"

    def number_text(self, text: str) -> str:
        """Replace the decimal comma by a point if this table uses commas."""
        if self.decimal == ".":
            return text
        return f"_{text}" if "." in text else text.replace(self.decimal, ".")


def read_table(file: str, delimiter: str = ",", decimal: str = ".") -> Table:
    """Read a UTF-8 CSV file whose first line names the columns. ``# ...`` is a comment.

    Raises:
        DataError: the fields of a line do not match the columns, or there are no rows.
    """
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise DataError(f"delimiter is {delimiter!r}; give one character, as ',' or \"\\t\"")
    if decimal not in (".", ",") or decimal == delimiter:
        raise DataError(f"decimal is {decimal!r}; give '.' or ',', and another delimiter")
    lines = _Lines(read_text(file))
    columns: list[str] = []
    rows, numbers, problems = [], [], []
    try:
        for texts in _records(lines, delimiter):
            if not columns:
                columns = _column_names(texts, file, lines)
            elif lines.is_comment and len(texts) == len(columns):
                text = (
                    f"{texts[0]!r}: put a space after the # of a comment, or quotes around a value"
                )
                problems.append(Problem(f"{file}:{lines.first}", text))
            elif not lines.is_comment and len(texts) == len(columns):
                rows.append(texts)
                numbers.append(lines.first)
            elif not lines.is_comment:
                text = f"{len(texts)} fields, but {len(columns)} columns"
                problems.append(Problem(f"{file}:{lines.first}", text))
    except csv.Error as error:
        raise DataError(f"{file}:{lines.number}: {error}") from error
    _refuse_rows(file, columns, delimiter, problems)
    if not rows:
        raise DataError(f"{file}: no rows below the column names")
    return Table(file, columns, rows, numbers, decimal, delimiter)


def _refuse_rows(
    file: str, columns: Sequence[str], delimiter: str, problems: Sequence[Problem]
) -> None:
    if problems and (advice := other_delimiter(columns, delimiter)):
        raise DataError(f"{file}: {advice}")
    raise_problems(problems)


def other_delimiter(columns: Sequence[str], delimiter: str) -> str:
    """Return how to set the delimiter, if the first line looks divided by another one, else ""."""
    line = delimiter.join(columns)
    other = max(DELIMITERS.replace(delimiter, ""), key=line.count)
    if line.count(other) < len(columns):
        return ""
    return f"the first line holds {other!r}: {how_to_set('delimiter', other)}"


def how_to_set(argument: str, value: str) -> str:
    """Return how a config and a command line set an argument of the data set."""
    text = json.dumps(value)
    return f"`{argument}: {text}`, or --set '{DATASET_ARGS}.{argument}={text}'"


class _Lines(Iterator[str]):
    """Iterates over the lines of a CSV file, skipping comments between records.

    Lines within quotes are not comments. ``#`` not followed by a space may also start a value:
    below the column names, such a line is yielded and marked.
    """

    def __init__(self, text: str) -> None:
        self.lines = text.removesuffix("\n").split("\n")
        self.number = self.first = 0  # current line, and first line of the record
        self.is_within = self.is_comment = self.is_below_names = False
        self.comments: list[str] = []  # above the column names

    def __next__(self) -> str:
        while self.number < len(self.lines):
            line = self.lines[self.number]
            self.number += 1
            if not self.is_within:
                self.first, self.is_comment = self.number, line.startswith("#")
                if self.is_comment and not (self.is_below_names and line[1:2].strip(" \t#")):
                    self.comments += [] if self.is_below_names else [line]
                    continue
            self.is_within = True
            return f"{line}\n"
        raise StopIteration


def _records(lines: _Lines, delimiter: str) -> Iterator[list[str]]:
    """Yield the stripped fields of each record, skipping empty lines."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    for record in reader:
        lines.is_within = False
        texts = [text.strip() for text in record]
        if texts not in ([], [""]):
            lines.is_below_names = True
            yield texts


def _column_names(texts: list[str], file: str, lines: _Lines) -> list[str]:
    """Return the column names in the first line.

    Raises:
        DataError: a name occurs twice, or all names are numbers.
    """
    twice = sorted(name for name, n in Counter(texts).items() if name and n > 1)
    if twice:
        raise DataError(f"{file}: two columns are named {twice[0]!r}")
    if all(as_number(text) is not None for text in texts):
        hint = f": are they in the comment {lines.comments[-1]!r}?" if lines.comments else ""
        text = "expected column names in the first line, found only numbers"
        raise DataError(f"{file}:{lines.first}: {text}{hint}")
    return texts


log = logging.getLogger("kindling")

Rule = str | float  # how to handle a missing value
RULES = ("error", "drop", "mean", "median")
# Missing numbers and dates, in lower case: pandas' markers and UCI's question mark.
MISSING = frozenset(("", "nan", "na", "n/a", "#n/a", "<na>", "null", "none", "?"))
BOOLEANS = {"false": 0.0, "true": 1.0}
DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}(\D.*)?", re.ASCII)
EXACT = 2**24  # float32 represents all integers up to here
ADVICE = "`missing` can fill it in or drop the row"


class Categories(NamedTuple):
    """The sorted values of a categorical column, and the value of each row."""

    values: list[str]
    numbers: Tensor  # int64 (row,)


def text_columns(table: Table, inputs: Sequence[str], dates: Sequence[str]) -> list[str]:
    """Return the text columns among the inputs, which ``auto`` treats as categories.

    A column with any numeric value is not included, as its text may be a mistake.

    Raises:
        DataError: almost all values of a column are distinct.
    """
    chosen, problems, are_dates = [], [], set(dates)
    for name in inputs:
        texts = [text for text in table.column(name) if text.lower() not in MISSING]
        are_text = not any(
            as_number(table.number_text(text)) is not None or DATE.fullmatch(text) for text in texts
        )
        are_booleans = set(map(str.lower, texts)) <= BOOLEANS.keys()
        if name in are_dates or not are_text or are_booleans:
            continue
        if len(texts) > 20 and len(set(texts)) > len(texts) / 2:
            text = (
                f"{len(set(texts))} distinct texts in {len(texts)} rows are too many for categories"
            )
            advice = f"leave the column out, `ignore: [{name}]`, or list it in `categories`"
            problems.append(Problem(f"{table.file}:{name}", f"{text}: {advice}"))
        chosen.append(name)
    raise_problems(problems)
    return chosen


def rules_by_column(missing: Rule | Mapping[Any, Rule]) -> dict[str, Rule]:
    """Return the rules of a `missing` argument by column, with ``"*"`` for the others."""
    if not isinstance(missing, Mapping):
        return {"*": missing}
    return {str(name): rule for name, rule in missing.items()}


def missing_rules(
    file: str,
    by_column: Mapping[str, Rule],
    inputs: Sequence[str],
    categories: Sequence[str],
    targets: Sequence[str],
) -> dict[str, Rule]:
    """Return the rule for missing values of each column.

    Means and numbers fill in numeric columns. A missing category then becomes a separate
    category. Targets are never filled in.

    Raises:
        DataError: a rule does not exist, or does not apply to its column.
    """
    given = dict(by_column)
    general = given.pop("*", "error")
    are_coded, are_targets = set(categories), set(targets)
    rules: dict[str, Rule] = {}
    faults = {"missing": _fault_of_numbers(general)}
    for name in dict.fromkeys((*inputs, *targets)):
        rule, where = given.get(name, general), f"missing.{name}"
        if name in are_targets:
            if name in given and rule not in ("error", "drop"):
                faults[where] = f"targets cannot be filled in: use error or drop, not {rule!r}"
            rules[name] = "drop" if rule == "drop" else "error"
        elif name in are_coded:
            if name in given and rule in ("mean", "median"):
                faults[where] = f"categories do not support {rule}: use error, drop or a value"
            is_general = name not in given and rule not in ("error", "drop")
            rules[name] = "" if is_general else str(rule)
        else:
            rules[name] = rule
            faults |= {where: _fault_of_numbers(rule)} if name in given else {}
    raise_problems([Problem(f"{file}: {where}", text) for where, text in faults.items() if text])
    return rules


def _fault_of_numbers(rule: Any) -> str:
    """Return an error message for a rule of a numeric column, or ""."""
    if rule in RULES or _is_number(rule):
        return ""
    return f"one of {', '.join(RULES)} or a number, not {rule!r}{nearest(str(rule), RULES)}"


def drop_rows(table: Table, rules: Mapping[str, Rule], texts: Sequence[str]) -> Table:
    """Drop the rows with missing values in columns whose rule is to drop.

    Args:
        texts: the columns in which only empty cells are missing: categories and class names.
    """
    dropping = {name: table.places[name] for name in rules if rules[name] == "drop"}
    if not dropping:
        return table
    are_texts = set(texts)
    n_missing: Counter[str] = Counter()
    kept = []
    for number, row in enumerate(table.rows):
        lacks = [
            name for name, place in dropping.items() if is_missing(row[place], name in are_texts)
        ]
        n_missing.update(lacks)
        if not lacks:
            kept.append(number)
    if not n_missing:
        return table
    n_dropped, counts = (
        len(table.rows) - len(kept),
        ", ".join(f"{n} {c}" for n, c in n_missing.items()),
    )
    text = f"dropped {n_dropped} of {len(table.rows)} rows with missing values ({counts})"
    if not kept:
        raise DataError(f"{table.file}: {text}; no row is left: fill a column in, or `ignore` it")
    log.info(f"{table.file}: {text}")
    rows, lines = [table.rows[i] for i in kept], [table.lines[i] for i in kept]
    return replace(table, rows=rows, lines=lines)


def is_missing(text: str, is_text: bool) -> bool:
    """Return whether a cell has no value."""
    return not text if is_text else text.lower() in MISSING


def read_inputs(
    table: Table,
    names: Sequence[str],
    categories: Sequence[str],
    dates: Sequence[str],
    rules: Mapping[str, Rule],
) -> tuple[dict[str, Tensor], dict[str, Categories]]:
    """Return the numeric columns, including dates, and the categorical columns.

    Raises:
        DataError: cells are not valid. All are listed with line and column.
    """
    numbers, values, problems = {}, {}, []
    are_coded, are_dates = set(categories), set(dates)
    for name in names:
        if name in are_coded:
            values[name], faults = read_categories(table, name, rules[name])
        else:
            read = read_dates if name in are_dates else read_numbers
            numbers[name], faults = read(table, name, rules[name])
        problems += faults
    raise_problems(problems)
    return numbers, values


def read_numbers(table: Table, name: str, rule: Rule) -> tuple[Tensor, list[Problem]]:
    """Return a numeric column, float64 (row,) with NaN for missing values, and its problems."""
    texts = table.column(name)
    plain = texts if table.decimal == "." else list(map(table.number_text, texts))
    numbers = all_numbers(plain)
    problems: list[Problem] = []
    if numbers is None:
        are_missing = [text.lower() in MISSING for text in texts]
        present = [text for text, lacks in zip(texts, are_missing, strict=True) if not lacks]
        if present and {text.lower() for text in present} <= BOOLEANS.keys():
            values, problems = _each(table, name, rule, lambda text: BOOLEANS[text.lower()])
        elif present and not any(
            as_number(table.number_text(text)) is not None for text in present
        ):
            return torch.empty(0), [_no_numbers(table, name)]
        else:
            values, problems = _each(table, name, rule, partial(_number, table))
        numbers = torch.tensor(values, dtype=torch.float64)
    _note_inexact(table, name, numbers)
    return numbers, problems


def read_dates(table: Table, name: str, rule: Rule) -> tuple[Tensor, list[Problem]]:
    """Return a date column as days since 1970-01-01, float64 (row,), and its problems."""
    values, problems = _each(table, name, rule, _days)
    return torch.tensor(values, dtype=torch.float64), problems


def _each(
    table: Table, name: str, rule: Rule, read: Callable[[str], float]
) -> tuple[list[float], list[Problem]]:
    """Read the cells of a column one by one, with NaN for missing values."""
    values, problems = [], []
    for row, text in enumerate(table.column(name)):
        value = math.nan
        try:
            if text.lower() not in MISSING:
                value = read(text)
            elif rule == "error":
                raise ValueError(f"missing value{f' ({text})' if text else ''}; {ADVICE}")
        except ValueError as error:
            problems.append(Problem(table.place(row, name), str(error)))
        values.append(value)
    return values, problems


def _number(table: Table, text: str) -> float:
    try:
        return read_number(table.number_text(text))
    except ValueError as error:
        message = str(error).replace(repr(table.number_text(text)), repr(text))
        raise ValueError(message + _hint(table, text)) from error


def read_categories(table: Table, name: str, rule: Rule) -> tuple[Categories, list[Problem]]:
    """Return a categorical column and its problems. ``1.0`` equals ``1``."""
    texts = [re.sub(r"^(-?\d+)\.0+$", r"\1", text) for text in table.column(name)]
    problems = []
    if rule in ("error", "drop"):
        missing = [row for row, text in enumerate(texts) if not text]
        advice = f"missing value; {ADVICE}, or make it a separate category"
        problems = [Problem(table.place(row, name), advice) for row in missing]
    else:
        texts = [text or str(rule) for text in texts]
    values = sort_labels(set(texts))
    known = {value: number for number, value in enumerate(values)}
    return Categories(values, torch.tensor([known[text] for text in texts])), problems


def _days(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        wanted = "expected a date such as 2024-03-31 or 2024-03-31T18:30"
        raise ValueError(f"{wanted}, found {text!r}") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return (moment - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds() / 86400


def _no_numbers(table: Table, name: str) -> Problem:
    """Return the problem of a column that contains no number."""
    texts = table.column(name)
    row = next(row for row, text in enumerate(texts) if text.lower() not in MISSING)
    if _hint(table, texts[row]):
        advice = _hint(table, texts[row]).removeprefix("; ")
    else:
        advice = f"for text, `categories: [{name}]`, or leave it out: `ignore: [{name}]`"
    return Problem(table.place(row, name), f"expected a number, found {texts[row]!r}; {advice}")


def _hint(table: Table, text: str) -> str:
    if as_number(table.number_text(text)) is not None or text.lower() in MISSING:
        return ""
    if DATE.fullmatch(text):
        return "; a date: `dates` lists such columns"
    if table.decimal == "." and as_number(text.replace(",", ".", 1)) is not None:
        return '; a decimal comma: `decimal: ","`'
    return ""


def _note_inexact(table: Table, name: str, numbers: Tensor) -> None:
    """Warn about integers that float32 rounds, as ids would collide."""
    are_large = numbers.abs() > EXACT
    if not are_large.any():
        return
    are_changed = are_large & (numbers == numbers.floor()) & (numbers.float() != numbers)
    rows = are_changed.nonzero()[:, 0].tolist()
    if rows:
        value = numbers[rows[0]]
        text = f"{table.place(rows[0], name)}: {value:.0f} is {value.float():.0f} in float32"
        log.warning(f"{text} ({len(rows)} such values); remove ids from the inputs")


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= LARGEST
