"""The page of a run, ``report/index.html``, from the facts in its folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from base.report.curves import draw, grid, panels_of, time_panels
from base.report.markup import (
    Raw,
    facts,
    figure,
    more,
    page,
    picture,
    section,
    shown,
    table,
    tag,
)
from base.report.prediction_sections import PART_NAMES, prediction_parts
from base.report.predictions import PARTS, read_predictions
from base.report.settings import as_text, settings_of
from base.runs.facts import RunFacts, State, read_run
from logger.files import read_file, write_whole

OWN_PICTURES = ("curves.png",)
MOST_EPOCHS = 200  # rows of the table of epochs
MOST_TEST_VALUES = 8  # at the top
MEANS = ("/mean", "/macro")


def write_report(folder: Path, note: str = "", state: State | None = None) -> Path:
    """Write ``report/index.html``: one file, without what the run does not have.

    Args:
        note: a line for the top of the page.
        state: how the run ends, if its folder does not say so yet.

    Raises:
        FileError: it cannot be written.
    """
    run = read_run(folder)
    path = folder / "report" / "index.html"
    write_whole(path, run_page(run, note, state or run.state).encode(errors="backslashreplace"))
    return path


def run_page(run: RunFacts, note: str, state: State) -> str:
    """Return the page of a run."""
    sections = {
        "curves": ("Curves", _curves(run)),
        **{
            f"predictions-{part}": (f"Predictions: {PART_NAMES[part]} data", content)
            for part, content in _predictions(run.folder).items()
        },
        "pictures": ("Samples and pictures", _pictures(run.folder)),
        "epochs": ("Epochs", _epochs(run)),
        "time": ("Time and memory", _time(run)),
        "parameters": ("Parameters", _parameters(run.folder)),
        "settings": ("Settings", _settings(run)),
        "environment": ("Environment", _environment(run.folder)),
    }
    filled = {key: one for key, one in sections.items() if any(one[1])}
    links = [tag("a", title, href=f"#{key}") for key, (title, _) in filled.items()]
    return page(
        f"{run.name}: {run.folder.name}",
        tag("h1", run.name),
        tag(
            "p",
            f"{run.folder.name}, ",
            tag("b", state, class_=f"state-{state}"),
            class_="soft",
        ),
        tag("p", note, class_="note") if note else "",
        _summary(run),
        tag("nav", *links),
        *(section(title, *content, id_=key) for key, (title, content) in filled.items()),
    )


def _summary(run: RunFacts) -> Raw:
    rows: list[tuple[str, object]] = []
    if run.best is not None and run.monitor is not None:
        rows.append((f"best {run.monitor.partition(' ')[2]}", shown(run.best)))
        rows.append(("best epoch", shown(run.best_epoch)))
    rows += [("epochs", shown(run.epoch)), ("steps", shown(run.step))]
    tested = {
        name: value
        for name, value in run.test.items()
        if isinstance(value, int | float) and ("/" not in name or name.endswith(MEANS))
    }
    rows += [
        (f"test {name}", shown(value)) for name, value in list(tested.items())[:MOST_TEST_VALUES]
    ]
    if run.rows:
        rows.append(("training time", time_of(run)))
    if run.started is not None:
        rows.append(("started", f"{run.started.astimezone():%Y-%m-%d %H:%M}"))
    changed = ", ".join(f"{key}={as_text(value)}" for key, value in run.changed.items())
    text = tag("p", f"Changed on the command line: {changed}", class_="soft") if changed else ""
    return Raw(facts(rows) + text)


def time_of(run: RunFacts) -> str:
    """Return the time that a run has trained, without validation."""
    seconds = [row.get("seconds", 0.0) for row in run.rows]
    total = sum(value for value in seconds if isinstance(value, int | float))
    return f"{total:.1f} s" if total < 60 else str(timedelta(seconds=round(total)))


def _curves(run: RunFacts) -> list[Raw]:
    panels = panels_of(run.rows, loss_names(run.config))
    if not panels:
        return []
    content = [grid(draw(panels, run.best_epoch))]
    if run.best_epoch is not None:
        text = f"Dashed: epoch {run.best_epoch}, the best by {run.monitor}. "
    else:
        text = ""
    kinds = [panel.kind for panel in panels]
    shared = [name for name, kind in (("losses", "loss"), ("scores from 0 to 1", "score"))
              if kinds.count(kind) > 1]  # fmt: skip
    if shared:
        text += f"The axes of {' and of '.join(shared)} have one range."
    return [*content, tag("p", text, class_="soft")] if text else content


def loss_names(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the losses in a config."""
    sections = config.get("loss")
    sections = sections if isinstance(sections, list) else []
    return [str(each["name"]) for each in sections if isinstance(each, dict) and "name" in each]


def _predictions(folder: Path) -> dict[str, list[Raw]]:
    found = read_predictions(folder)
    return {part: prediction_parts(folder, part, found[part]) for part in PARTS if part in found}


def _pictures(folder: Path) -> list[Raw]:
    """Return the PNG files that callbacks and tests wrote into report/."""
    report = folder / "report"
    paths = sorted(report.glob("*.png")) if report.is_dir() else []
    found = [(path, picture(path, path.stem, class_="sheet")) for path in paths
             if path.name not in OWN_PICTURES]  # fmt: skip
    figures = [figure(image, path.name) for path, image in found if image]
    return [tag("div", *figures, class_="rows")] if figures else []


def _epochs(run: RunFacts) -> list[Raw]:
    """Return the values of each epoch as a table; of long runs every n-th, and the best."""
    columns = [
        name
        for name in dict.fromkeys(name for row in run.rows for name in row)
        if not name.startswith(("time/", "samples_per_second", "memory_mb"))
        and (name.count("/") < 2 or name.endswith(MEANS))
    ]
    step, best_epoch = -(-len(run.rows) // MOST_EPOCHS) or 1, run.best_epoch
    kept = [
        row
        for number, row in enumerate(run.rows, start=1)
        if number % step == 0 or number in (1, len(run.rows)) or row.get("epoch") == best_epoch
    ]
    rows = []
    for row in kept:
        is_best = best_epoch is not None and row.get("epoch") == best_epoch
        class_ = "number best" if is_best else "number"
        rows.append([tag("td", shown(row.get(name)), class_=class_) for name in columns])
    if not rows:
        return []
    text = f"{len(run.rows):,} epochs"
    if step > 1:
        text += f": the first, the last, the best and each multiple of {step} are shown"
    return [more(text, table(columns, rows))]


def _time(run: RunFacts) -> list[Raw]:
    panels = time_panels(run.rows)
    return [grid(draw(panels))] if panels else []


def _parameters(folder: Path) -> list[Raw]:
    """Return the groups in parameters.csv, and below them each parameter."""
    rows = _csv_rows(folder / "parameters.csv")
    if not rows:
        return []
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    keys = ("group", "lr", "weight_decay", "trainable")
    for row in rows:
        groups.setdefault(tuple(row.get(key) or "" for key in keys), []).append(row)
    lines = []
    for key, members in groups.items():
        inits = list(dict.fromkeys(row.get("init", "") for row in members))
        names = [row.get("name", "") for row in members]
        lines.append([
            key[0] or "none", _number(key[1]), _number(key[2]), key[3], len(members),
            sum(_whole(row.get("numbers")) for row in members),
            tag("td", ", ".join(inits[:4]), class_="long"),
            tag("td", ", ".join(names[:3]) + (" …" if len(names) > 3 else ""), class_="long"),
        ])  # fmt: skip
    head = [
        "group",
        "learning rate",
        "weight decay",
        "trained",
        "tensors",
        "numbers",
        "init",
        "such as",
    ]
    total = sum(_whole(row.get("numbers")) for row in rows)
    trained = sum(_whole(row.get("numbers")) for row in rows if row.get("trainable") != "no")
    text = f"{total:,} numbers in {len(rows):,} tensors, {trained:,} of them trained."
    shown_columns = [name for name in rows[0] if any(row.get(name) for row in rows)]
    every = table(
        shown_columns, [[row.get(name, "") for name in shown_columns] for row in rows[:2000]]
    )
    return [tag("p", text), table(head, lines), more("each tensor", every)]


def _settings(run: RunFacts) -> list[Raw]:
    settings = settings_of(run.config)
    if not settings:
        return []
    changed = [each for each in settings if each.is_changed]
    by_command = set(run.changed)
    rows = [
        [
            each.key,
            tag("td", each.value, class_="long"),
            "" if each.default is None else each.default,
            "command line" if each.key in by_command else "",
        ]
        for each in changed
    ]
    head = ["setting", "value", "default", ""]
    text = "Settings that differ from their defaults, or have none:"
    everything = [
        tag(
            "tr",
            tag("th", each.key, scope="row"),
            tag("td", each.value, class_="long"),
            class_="changed" if each.is_changed else None,
        )
        for each in settings
    ]
    whole = tag("div", tag("table", tag("tbody", *everything)), class_="wide")
    return [
        tag("p", text),
        table(head, rows, heads=1),
        more(f"all {len(settings)} settings, with these marked", whole),
    ]


def _environment(folder: Path) -> list[Raw]:
    try:
        text = read_file(folder / "env.txt").decode(errors="replace").strip()
    except OSError:
        return []
    pairs = [line.partition(" ") for line in text.splitlines()]
    rows = [[name, tag("td", value.strip(), class_="long")] for name, _, value in pairs]
    return [table([], rows, heads=1)]


def _csv_rows(path: Path) -> list[dict[str, str]]:
    try:
        text = read_file(path).decode(errors="replace")
        return [dict(row) for row in csv.DictReader(io.StringIO(text))]
    except (OSError, csv.Error):
        return []


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text or None


def _whole(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
