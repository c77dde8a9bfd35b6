"""What the page shows of predictions: scores, confusions, calibration, residuals, mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from base.report.drawings import histogram, reliability_diagram, scatter
from base.report.markup import (
    NONE,
    Raw,
    escape,
    facts,
    figure,
    more,
    percent,
    picture,
    shown,
    table,
    tag,
)
from base.report.pictures import class_color
from base.report.scores import (
    ClassScore,
    Pair,
    accuracy_of,
    class_scores,
    expected_calibration_error,
    mean_of,
)

PART_NAMES = {"valid": "validation", "test": "test"}
LARGEST_MATRIX = 25  # classes; of more classes the most confused pairs are shown
MOST_PAIRS = 30
MOST_CLASSES = 40  # rows of the table of classes that are not folded
MOST_LISTED = 1000  # rows of the folded one


def prediction_parts(folder: Path, part: str, found: Mapping[str, Any]) -> list[Raw]:
    """Return what is known of the predictions for one part of the data."""
    task, names = found["task"], found["names"]
    content: list[Raw] = [_origin(found)]
    calibration = _calibration(found.get("calibration"))
    if task in ("classification", "binary", "segmentation"):
        scores = class_scores(found["pairs"], names)
        content += [
            _summary_of_classes(found, scores),
            _beside(
                _confusions(found["pairs"], names, unit="pixels" if task == "segmentation" else ""),
                _class_table(scores, is_of_pixels=task == "segmentation"),
                calibration,
            ),
        ]
    elif task == "multilabel":
        scores = [
            ClassScore(name, *counts) for name, counts in zip(names, found["labels"], strict=True)
        ]
        n_judged = found.get("n_judged", found["n_samples"])
        exact = found["n_exact"] / max(n_judged, 1)
        content += [
            facts(
                [
                    ("samples", shown(found["n_samples"])),
                    *_without_target(found["n_samples"] - n_judged),
                    ("all labels right", percent(exact)),
                    ("mean F1", shown(mean_of([each.f1 for each in scores]))),
                ]
            ),
            _beside(_class_table(scores, title="Labels"), calibration),
        ]
    else:
        content += [_residuals(each) for each in found["targets"]]
    return [*content, _mistakes(folder, found)]


def _beside(*parts: Raw) -> Raw:
    """Return parts that stand beside each other where the page is wide enough."""
    return tag("div", *(tag("div", part) for part in parts if part), class_="beside")


def _origin(found: Mapping[str, Any]) -> Raw:
    text = f"{found['n_samples']:,} samples, predicted by {found['checkpoint'] or 'the model'}"
    if found.get("epoch"):
        text += f" (epoch {found['epoch']})"
    return tag("p", f"{text}; each one is in report/predictions.csv.", class_="soft")


def _summary_of_classes(found: Mapping[str, Any], scores: Sequence[ClassScore]) -> Raw:
    rows: list[tuple[str, object]] = [("samples", shown(found["n_samples"]))]
    if found["task"] == "segmentation":
        rows += [
            ("pixels", shown(sum(count for *_, count in found["pairs"]))),
            ("pixel accuracy", percent(accuracy_of(found["pairs"]))),
            ("mean IoU", shown(mean_of([each.iou for each in scores]))),
        ]
    else:
        n_wrong = sum(count for true, chosen, count in found["pairs"] if true != chosen)
        n_judged = sum(count for *_, count in found["pairs"])
        rows += [
            *_without_target(found["n_samples"] - n_judged),
            ("accuracy", percent(accuracy_of(found["pairs"]))),
            ("mistakes", shown(n_wrong)),
        ]
    rows.append(("mean F1", shown(mean_of([each.f1 for each in scores]))))
    return facts(rows)


def _without_target(n_samples: int) -> list[tuple[str, object]]:
    return [("without a known target", shown(n_samples))] if n_samples > 0 else []


def _confusions(pairs: Sequence[Pair], names: Sequence[str], unit: str) -> Raw:
    title = f"Confusion matrix{f', in {unit}' if unit else ''}"
    if len(names) > LARGEST_MATRIX:
        return _most_confused(pairs, names)
    counts = {(true, chosen): count for true, chosen, count in pairs}
    sums = [sum(counts.get((true, n), 0) for n in range(len(names))) for true in range(len(names))]
    head = ["true \\ predicted", *names, "sum"]
    rows = []
    for true, name in enumerate(names):
        cells = [
            _heat(counts.get((true, chosen), 0), sums[true], true == chosen)
            for chosen in range(len(names))
        ]
        rows.append([name, *cells, sums[true]])
    matrix = table(head, rows, class_="matrix", heads=1)
    note = tag("p", "The shade of a cell is its share of the row.", class_="soft")
    return Raw(tag("h3", title) + matrix + note)


def _heat(count: int, whole: int, is_right: bool) -> Raw:
    share = count / whole if whole else 0
    style = f"--share: {0.7 * share:.3f}"
    text = shown(count) if count else "·"
    title = f"{100 * share:.1f} % of the row"
    return tag("td", text, class_="right" if is_right else "heat", style=style, title=title)


def _most_confused(pairs: Sequence[Pair], names: Sequence[str]) -> Raw:
    wrong = sorted((p for p in pairs if p[0] != p[1]), key=lambda pair: -pair[2])
    if not wrong:
        return Raw("")
    support = [0] * len(names)
    for true, _, count in pairs:
        support[true] += count
    rows = [
        [names[true], names[chosen], count, percent(count / support[true])]
        for true, chosen, count in wrong[:MOST_PAIRS]
    ]
    head = ["true", "predicted", "samples", "of the true class"]
    title = f"Most confused classes ({min(len(wrong), MOST_PAIRS)} of {len(wrong):,} pairs)"
    return Raw(tag("h3", title) + table(head, rows))


def _class_table(
    scores: Sequence[ClassScore], title: str = "Classes", is_of_pixels: bool = False
) -> Raw:
    head = ["class", "support", "predicted", "precision", "recall", "F1"]
    head += ["IoU"] if is_of_pixels else []

    def row(number: int, each: ClassScore) -> list[object]:
        mark = None
        if is_of_pixels and number:
            red, green, blue = class_color(number)
            mark = f"--mark: rgb({red} {green} {blue})"
        name = tag("span", each.name, class_="swatch" if mark else None, style=mark)
        values = [each.precision, each.recall, each.f1, *([each.iou] if is_of_pixels else [])]
        return [name, each.support, each.predicted, *(_score(value) for value in values)]

    rows = [row(number, each) for number, each in enumerate(scores)]
    if len(scores) <= MOST_CLASSES:
        return Raw(tag("h3", title) + table(head, rows, heads=1))
    order = sorted(range(len(scores)), key=lambda n: (scores[n].f1 is None, scores[n].f1 or 0))
    worst = table(head, [rows[number] for number in order[:MOST_CLASSES]], heads=1)
    text = f"{title}: the {MOST_CLASSES} of {len(scores):,} with the lowest F1"
    if len(scores) <= MOST_LISTED:
        everything = more(f"all {len(scores):,}", table(head, rows, heads=1))
    else:
        more_rows = [rows[number] for number in order[:MOST_LISTED]]
        everything = more(f"the lowest {MOST_LISTED:,}", table(head, more_rows, heads=1))
    return Raw(tag("h3", text) + worst + everything)


def _score(value: float | None) -> Raw:
    return tag("td", NONE if value is None else f"{value:.3f}", class_="number")


def _calibration(bins: Mapping[str, Any] | None) -> Raw:
    error = None if bins is None else expected_calibration_error(dict(bins))
    if bins is None or error is None:
        return Raw("")
    drawing = reliability_diagram("accuracy by confidence", bins)
    mean = sum(n * c for n, c in zip(bins["counts"], bins["confidence"], strict=True))
    accuracy = sum(n * a for n, a in zip(bins["counts"], bins["accuracy"], strict=True))
    total = sum(bins["counts"])
    side = "too high" if mean > accuracy else "too low"
    text = (
        f"Expected calibration error (ECE) {100 * error:.2f} %. The mean confidence is"
        f" {100 * mean / total:.1f} %, the accuracy {100 * accuracy / total:.1f} %: the"
        f" probabilities are {side} on average. Fainter bars have fewer predictions."
    )
    return Raw(tag("h3", "Calibration") + figure(drawing, text, class_="panel single"))


def _residuals(found: Mapping[str, Any]) -> Raw:
    title = tag("h3", found["name"])
    rows: list[tuple[str, object]] = [("samples", shown(found["n"]))]
    names = {"mae": "mean absolute error", "rmse": "root mean square", "bias": "bias", "r2": "R²"}
    rows += [(text, shown(found[key])) for key, text in names.items() if key in found]
    if found["n_nonfinite"]:
        rows.append(("not finite", shown(found["n_nonfinite"])))
    if not found["n"]:
        return Raw(title + facts(rows))
    unit = found["name"]
    points = scatter("predictions", found["points"], f"target: {unit}", "prediction")
    bars = histogram("residuals", found["counts"], found["edges"], "prediction - target")
    n_points = len(found["points"])
    of = "" if n_points == found["n"] else f"{n_points:,} of {found['n']:,} samples; "
    drawings = [
        figure(points, f"{of}dashed: prediction = target"),
        figure(bars, "in the unit of the target"),
    ]
    return Raw(title + facts(rows) + tag("div", *drawings, class_="grid"))


def _mistakes(folder: Path, found: Mapping[str, Any]) -> Raw:
    worst: Sequence[Mapping[str, Any]] = found["mistakes"]
    if not worst:
        return Raw("")
    is_wrong = found["task"] in ("classification", "binary", "multilabel")
    title = tag("h3", f"{len(worst)} worst {'mistakes' if is_wrong else 'predictions'}")
    if not any(each["pictures"] for each in worst):
        return Raw(title + _mistake_table(worst, are_named=is_wrong))
    if found["task"] == "segmentation":
        rows = [_masks(folder, each) for each in worst]
        legend = tag("p", "Red: pixels of a wrong class.", class_="soft")
        return Raw(title + legend + tag("div", *rows, class_="rows"))
    tiles = [
        figure(
            picture(folder / "report" / each["pictures"][""], each["id"]), _caption(each, is_wrong)
        )
        for each in worst
        if each["pictures"]
    ]
    return Raw(title + tag("div", *tiles, class_="tiles"))


def _caption(one: Mapping[str, Any], are_named: bool) -> Raw:
    values, lines = one["values"], []
    if "probability" in values:
        lines.append(
            f"<b>{escape(values['prediction'])}</b> {_share(values['probability'])}, is"
            f" {escape(values['target'])} {_share(values['target_probability'])}"
        )
    elif are_named:
        lines.append(
            f"<b>{escape(values['prediction'] or 'none')}</b>, is"
            f" {escape(values['target'] or 'none')}"
        )
    else:
        lines += [
            f"{escape(name.replace('_', ' '))} {_number(value)}" for name, value in values.items()
        ]
    lines.append(escape(one["place"] or one["id"]))
    return Raw("<br>".join(lines))


def _number(text: str) -> str:
    return escape(shown(float(text) if text else None))


def _share(text: str) -> str:
    try:
        return f"{100 * float(text):.0f} %"
    except ValueError:
        return ""


def _masks(folder: Path, one: Mapping[str, Any]) -> Raw:
    pictures = [
        tag("div", picture(folder / "report" / path, kind), tag("span", kind))
        for kind, path in one["pictures"].items()
    ]
    values = ", ".join(
        f"{name.replace('_', ' ')} {float(text):.3f}"
        for name, text in one["values"].items()
        if text
    )
    caption = f"{one['place'] or one['id']}: {values}"
    return figure(tag("div", *pictures, class_="four"), caption)


def _mistake_table(worst: Sequence[Mapping[str, Any]], are_named: bool) -> Raw:
    """Return the worst predictions as a table.

    Args:
        are_named: whether targets and predictions are classes, whose names may be digits.
    """
    values = list(dict.fromkeys(name for each in worst for name in each["values"]))
    columns = list(dict.fromkeys(name for each in worst for name in each["columns"]))
    rows = [
        [
            Path(each["place"] or each["id"]).name,
            *(
                each["values"].get(name, "")
                if are_named and name in ("target", "prediction", "unknown")
                else _number_or_text(each["values"].get(name, ""))
                for name in values
            ),
            *(_number_or_text(each["columns"].get(name, ""), is_exact=True) for name in columns),
        ]
        for each in worst
    ]
    head = ["sample", *(name.replace("_", " ") for name in values), *columns]
    return table(head, rows, heads=1)


def _number_or_text(text: str, is_exact: bool = False) -> Any:
    """Return a cell; numbers on the right, as elsewhere on the page, or as they are in the data."""
    try:
        value = float(text)
    except ValueError:
        return text
    return tag("td", text if is_exact else shown(value), class_="number")
