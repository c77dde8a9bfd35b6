"""One page for several runs: curves on shared axes, differing settings, predictions in pairs."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from base.errors import UsageError
from base.report.curves import OF_TIME, PHASES, Panel, draw, grid, kind_of, points_of
from base.report.markup import Raw, page, section, shown, table, tag
from base.report.page import MEANS, loss_names, time_of
from base.report.prediction_sections import PART_NAMES
from base.report.predictions import PARTS, read_predictions, read_rows_of
from base.report.settings import differing
from base.runs.facts import RunFacts, read_run
from logger.files import read_file, write_whole

MARK = '<meta name="generator" content="Kindling, comparison of runs">'
"""In the head of each comparison, which may be replaced by another one."""
LONGEST_NAME = 120  # bytes of the name of a comparison's folder
MOST_PAIRED = 10  # runs whose predictions are compared in all pairs, whose number is the square
EXACT_UP_TO = 1000  # discordant samples; of more, the chi-squared distribution is as good


def default_output(folders: Sequence[Path]) -> Path:
    """Return the folder of a comparison beside its runs, which has their names in its own.

    The same runs have the same folder in any order, and others have another one. The name is a
    digest where the names of the runs are long, or where they do not lie beside each other.
    """
    paths = [folder.absolute() for folder in folders]
    above = Path(os.path.commonpath(paths))
    names = sorted(path.relative_to(above).as_posix() for path in paths)
    name = f"comparison_{'+'.join(names)}"
    if "/" in name or len(os.fsencode(name)) > LONGEST_NAME:
        digest = hashlib.sha256(os.fsencode("\n".join(names))).hexdigest()[:8]
        name = f"comparison_{len(names)}-runs_{digest}"
    with contextlib.suppress(ValueError):
        above = above.relative_to(Path.cwd())
    return above / name


def is_comparison(folder: Path) -> bool:
    """Return whether a folder holds a comparison."""
    try:
        return MARK.encode() in read_file(folder / "index.html")[:1000]
    except OSError:
        return False


def write_comparison(folders: Sequence[Path], out: Path, overwrite: bool = False) -> Path:
    """Write ``index.html`` into a folder, which is made if only its last part is missing.

    Args:
        overwrite: whether a file that is no comparison is replaced; a comparison always is.

    Raises:
        UsageError: the file exists, or the folder is a file.
        FileError: it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"-o {out}: a file; give the folder of the comparison")
    if (out / "index.html").exists() and not overwrite and not is_comparison(out):
        raise UsageError(
            f"-o {out}: its index.html exists already, and is no comparison;"
            " add --overwrite to replace it"
        )
    runs = [read_run(folder) for folder in folders]
    path = out / "index.html"
    write_whole(path, comparison_page(runs, out).encode(errors="backslashreplace"))
    return path


def comparison_page(runs: Sequence[RunFacts], out: Path) -> str:
    """Return the page that compares runs.

    Args:
        out: the folder of the page, to which its links are relative.
    """
    labels = labels_of(runs)
    sections = {
        "runs": ("Runs", [_overview(runs, labels, out)]),
        "settings": ("Settings that differ", [_settings(runs, labels)]),
        "curves": ("Curves", _curves(runs, labels)),
        **{
            f"predictions-{part}": (
                f"Predictions: {PART_NAMES[part]} data",
                _predictions(runs, labels, part),
            )
            for part in PARTS
        },
    }
    filled = {key: one for key, one in sections.items() if any(one[1])}
    names = list(dict.fromkeys(run.name for run in runs))
    title = f"{len(runs)} runs of {', '.join(names)}"
    return page(
        title,
        tag("h1", title),
        tag("nav", *(tag("a", title, href=f"#{key}") for key, (title, _) in filled.items())),
        *(section(title, *content, id_=key) for key, (title, content) in filled.items()),
        marks=MARK,
    )


def labels_of(runs: Sequence[RunFacts]) -> list[str]:
    """Return a short unique name of each run: its changed settings, or its folder."""
    has_names = len({run.name for run in runs}) > 1
    folders = [f"{run.name}/{run.folder.name}" if has_names else run.folder.name for run in runs]
    settings = [run.folder.name.partition("_")[2] for run in runs]
    short = folders if has_names or not all(settings) else settings
    if len(set(short)) == len(runs):
        return short
    return folders if len(set(folders)) == len(runs) else [str(run.folder) for run in runs]


def _overview(runs: Sequence[RunFacts], labels: Sequence[str], out: Path) -> Raw:
    tested = [
        name
        for name in dict.fromkeys(name for run in runs for name in run.test)
        if "/" not in name or name.endswith(MEANS)
    ]
    head = ["run", "state", "epochs", "monitor", "best", "at epoch", *(f"test {t}" for t in tested)]
    best = _best_of(runs)
    rows = []
    for run, label in zip(runs, labels, strict=True):
        page_of_run = run.folder / "report" / "index.html"
        link = os.path.relpath(page_of_run.absolute(), out.absolute())
        name = tag("a", label, href=Path(link).as_posix()) if page_of_run.is_file() else label
        is_best = best is not None and run.best == best
        rows.append([
            name, run.state, run.epoch, run.monitor or "off",
            tag("td", shown(run.best), class_="number best" if is_best else "number"),
            run.best_epoch, *(_number(run.test.get(key)) for key in tested), time_of(run),
        ])  # fmt: skip
    return table([*head, "training time"], rows, heads=1)


def _best_of(runs: Sequence[RunFacts]) -> float | None:
    """Return the best value if all runs have the same monitor."""
    monitors = {run.monitor for run in runs}
    values = [run.best for run in runs if run.best is not None]
    if len(monitors) != 1 or not values:
        return None
    return max(values) if str(monitors.pop()).startswith("max") else min(values)


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) else None


def _settings(runs: Sequence[RunFacts], labels: Sequence[str]) -> Raw:
    found = differing([run.config for run in runs])
    found.pop("trainer.save_dir", None)
    if not found:
        return tag("p", "The settings are the same.")
    rows = [
        [key, *(tag("td", value or "not set", class_="long") for value in values)]
        for key, values in found.items()
    ]
    return table(["setting", *labels], rows, heads=1)


def _curves(runs: Sequence[RunFacts], labels: Sequence[str]) -> list[Raw]:
    """Return a chart for each column of metrics.csv with a line for each run."""
    losses = {name for run in runs for name in loss_names(run.config)}
    columns = dict.fromkeys(
        name
        for run in runs
        for row in run.rows
        for name in row
        if name.partition("/")[0] not in ("epoch", "step", *OF_TIME)
        and (name.count("/") < 2 or name.endswith(MEANS))
    )
    panels = []
    for column in columns:
        lines = {
            label: points_of(run.rows, column) for run, label in zip(runs, labels, strict=True)
        }
        lines = {label: line or [] for label, line in lines.items()}
        if any(lines.values()):
            phase, _, metric = column.partition("/")
            title = metric if phase in PHASES else column
            panels.append(Panel(column, kind_of(title, losses), lines).with_kind())
    panels.sort(key=lambda panel: panel.title.partition("/")[0] != "valid")
    return [grid(draw(panels))] if panels else []


def _predictions(runs: Sequence[RunFacts], labels: Sequence[str], part: str) -> list[Raw]:
    """Return how the predictions of two runs differ, where both have them.

    Up to `MOST_PAIRED` runs these are all pairs; of more runs, each is compared with the best.
    """
    judged: dict[int, _Judged] = {}
    for number, run in enumerate(runs):
        summary = read_predictions(run.folder).get(part)
        if summary and summary["are_ids_known"]:
            judged[number] = _judge(summary["task"], read_rows_of(run.folder, part))
    rights, gaps = [], []
    for one, other in _pairs(runs, judged):
        a, b = judged[one], judged[other]
        both = _common(a, b)
        if not both:
            continue
        row = [labels[one], labels[other]]
        if a.is_of_classes:
            rights.append([*row, *_of_classes(a, b, both)])
        else:
            gaps.append([*row, len(both), *_of_errors(a, b, both)])
    content = []
    if rights:
        head = [
            "A",
            "B",
            "samples",
            "both right",
            "only A right",
            "only B right",
            "both wrong",
            "p",
        ]
        text = (
            "Samples that both runs predicted. p: McNemar's test of whether the two differ by more"
            " than chance; small values say that they do."
        )
        content += [tag("p", text, class_="soft"), table(head, rights)]
    if gaps:
        head = ["A", "B", "samples", "mean error of A", "of B", "A closer", "B closer"]
        content.append(table(head, gaps))
    if content and len(judged) > MOST_PAIRED:
        has_best = _best_of([runs[number] for number in judged]) is not None
        text = f"A is {labels[_reference(runs, judged)]}: of more than {MOST_PAIRED} runs, each is"
        text = f"{text} compared with the {'best' if has_best else 'first'} alone."
        content.insert(0, tag("p", text, class_="soft"))
    return content


def _pairs(runs: Sequence[RunFacts], judged: Mapping[int, _Judged]) -> list[tuple[int, int]]:
    """Return the runs that are compared, two by two."""
    if len(judged) <= MOST_PAIRED:
        return list(combinations(judged, 2))
    reference = _reference(runs, judged)
    return [(reference, number) for number in judged if number != reference]


def _reference(runs: Sequence[RunFacts], judged: Mapping[int, _Judged]) -> int:
    """Return the best run that has predictions, or the first if they have no common monitor."""
    best = _best_of([runs[number] for number in judged])
    return next(number for number in judged if best is None or runs[number].best == best)


Row = Mapping[str, str]


class _Judged(NamedTuple):
    """The predictions of a run, each judged once, by the id of the sample."""

    task: str
    targets: dict[str, list[str]]
    values: dict[str, float]
    """Whether the class or the labels are right, or the error."""
    unknown: set[str]
    """The samples whose class is not known."""

    @property
    def is_of_classes(self) -> bool:
        return self.task in ("classification", "binary", "multilabel")


def _judge(task: str, rows: Mapping[str, Row]) -> _Judged:
    judged = _Judged(task, {}, {}, set())
    judge = _is_right if judged.is_of_classes else _error
    for name, row in rows.items():
        judged.targets[name] = _targets(row)
        judged.values[name] = judge(row)
    judged.unknown.update(name for name, row in rows.items() if not row.get("target"))
    return judged


def _common(one: _Judged, other: _Judged) -> list[str]:
    """Return the samples that both have, with the same target; none of two kinds of tasks."""
    if one.task != other.task and not (one.is_of_classes and other.is_of_classes):
        return []
    theirs = other.targets
    return [name for name, target in one.targets.items() if theirs.get(name) == target]


def _targets(row: Row) -> list[str]:
    return [value for name, value in row.items() if name.partition("/")[0] == "target" and value]


def _of_classes(one: _Judged, other: _Judged, names: Sequence[str]) -> list[Any]:
    if "multilabel" not in (one.task, other.task):
        names = [name for name in names if name not in one.unknown]
    judged = [(one.values[name], other.values[name]) for name in names]
    only_a, only_b = judged.count((True, False)), judged.count((False, True))
    counts = [judged.count((True, True)), only_a, only_b, judged.count((False, False))]
    p = tag("td", f"{mcnemar(only_a, only_b):.3g}", class_="number")
    return [len(names), *counts, p]


def _is_right(row: Row) -> bool:
    """Return whether the class is right, or all labels whose target is known are."""
    if not row.get("unknown"):
        return row["target"] == row["prediction"]
    chosen = [set(filter(None, row[name].split("|"))) for name in ("target", "prediction")]
    return chosen[0] == chosen[1] - set(row["unknown"].split("|"))


def _of_errors(one: _Judged, other: _Judged, names: Sequence[str]) -> list[Any]:
    errors = [(one.values[name], other.values[name]) for name in names]
    errors = [pair for pair in errors if all(map(math.isfinite, pair))]
    if not errors:
        return [None, None, None, None]
    means = [sum(each) / len(errors) for each in zip(*errors, strict=True)]
    closer = sum(a < b for a, b in errors), sum(b < a for a, b in errors)
    return [*means, *closer]


def _error(row: Row) -> float:
    """Return the mean absolute error of a sample's numbers, or 1 - IoU of its mask."""
    try:
        if "mean_iou" in row:
            return 1 - float(row["mean_iou"])
        if "mean_absolute_error" in row:
            return float(row["mean_absolute_error"])
        ends = [
            name[len("target") :]
            for name, value in row.items()
            if name.partition("/")[0] == "target" and value
        ]
        gaps = [abs(float(row[f"target{end}"]) - float(row[f"prediction{end}"])) for end in ends]
        return sum(gaps) / len(gaps)
    except (KeyError, ValueError, ZeroDivisionError):
        return math.nan


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's test, exact for few samples.

    Args:
        only_a, only_b: the samples that one of two models gets right and the other wrong.
    """
    total = only_a + only_b
    if total == 0:
        return 1.0
    if total > EXACT_UP_TO:
        return math.erfc(math.sqrt((only_a - only_b) ** 2 / total / 2))
    tail = sum(math.comb(total, k) for k in range(min(only_a, only_b) + 1))
    return float(min(1.0, 2 * tail / 2**total))
