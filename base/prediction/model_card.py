"""Writes ``MODEL_CARD.md``: what an exported model is, how good it is, and how to load it.

Its last line holds a hash of the text, so that a card which the user has edited is not replaced.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

from base.checkpoint.data_record import data_of
from base.errors import UsageError
from base.prediction.trained_run import TrainedRun
from base.system.run_folder import STAMP, installed_version
from logger.console import format_value
from logger.files import read_file

CARD = "MODEL_CARD.md"
MARK = re.compile(r"<!-- kindling (\S+) (\w+) -->\s*$")
MOST_CLASSES = 50  # that the card lists
SECTION = re.compile(r"^### `(.+?)`\n(.*?)(?=^### `|^## |\Z)", re.MULTILINE | re.DOTALL)


def check_card(path: Path, about: Mapping[str, Any], overwrite: bool) -> None:
    """Check that a card may be written.

    Raises:
        UsageError: there is one that the user has edited or written, or that of another run.
    """
    if overwrite or not path.exists():
        return
    advice = "move it, choose another folder, or add --overwrite"
    found = MARK.search(text := _read(path))
    if found is None or found[2] != _hash(text[: found.start()]):
        raise UsageError(f"{path}: already exists, and was edited: {advice}")
    if found[1] != _origin(about):
        raise UsageError(f"{path}: already exists, and describes another run: {advice}")


def write_card(run: TrainedRun, about: Mapping[str, Any], path: Path, former: Path) -> None:
    """Write the card of an exported file.

    Args:
        former: the card to be replaced; the files of the same run that it describes stay in it.
    """
    others = _other_files(former, about)
    parts = [
        _what(run, about),
        _data(run),
        _metrics(run),
        _files(about, others),
        _training(run),
        _limits(about),
    ]
    text = "\n".join(parts)
    text += f"\n<!-- kindling {_origin(about)} {_hash(text + chr(10))} -->\n"
    path.write_text(text, encoding="utf-8")


def _origin(about: Mapping[str, Any]) -> str:
    """Return the run, without spaces."""
    return quote(f"{about['name']}/{about['run']}")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _other_files(former: Path, about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the name and the text of each other file of the same run in a card."""
    text = _read(former) if former.is_file() else ""
    found = MARK.search(text)
    if found is None or found[1] != _origin(about):
        return []
    return [
        (name, body)
        for name, body in SECTION.findall(text)
        if name != about["file"] and (former.parent / name).is_file()
    ]


def _what(run: TrainedRun, about: Mapping[str, Any]) -> str:
    task = about["task"].get("name", "other")
    does = {
        "classification": "assigns a class to each sample",
        "binary": "decides between two classes for each sample",
        "multilabel": "gives each sample any number of labels",
        "segmentation": "assigns a class to each pixel",
        "regression": "predicts numbers for each sample",
    }.get(task, "maps its inputs to its outputs")
    rows = {
        "task": task,
        "model": run.config["model"]["type"],
        "run": f"{about['name']}/{about['run']}, {_started(run)}",
        "exported": f"{date.today().isoformat()}, Kindling {about['kindling']}, "
        f"torch {about['torch']}",
        "licence": "TODO: name the licence of the weights, and check that of the data",
    }
    table = _table(("", ""), rows.items())
    return f"# {about['name']}\n\nThis model {does}.\n\n{table}\n"


def _started(run: TrainedRun) -> str:
    try:
        stamp = json.loads(read_file(run.folder / STAMP))
        return f"started {str(stamp['started'])[:10]}"
    except (OSError, ValueError, LookupError, TypeError):
        return "start unknown"


def _data(run: TrainedRun) -> str:
    known, record = data_of(run.manifest), run.record
    counts = [
        f"{part['n_samples']:,} {name}"
        for name, part in known.get("samples", {}).items()
        if isinstance(part, Mapping) and isinstance(part.get("n_samples"), int)
    ]
    section = run.config["data_loader"]
    rows = {"samples": ", ".join(counts) or "not counted", "loader": section["type"]}
    for key in ("dataset", "valid_dataset", "test_dataset", "data_dir", "split",
                "validation_split"):  # fmt: skip
        if section["args"].get(key) is not None:
            rows[key] = _code(section["args"][key])
    if "mean" in record:
        rows["mean, std"] = f"{_numbers(record['mean'])}; {_numbers(record['std'])}"
    classes = record.get("classes")
    if classes:
        shown = ", ".join(classes[:MOST_CLASSES])
        more = ", ... (all are in the file's metadata)" if len(classes) > MOST_CLASSES else ""
        rows[f"{len(classes)} classes"] = f"{shown}{more}"
    return f"## Data\n\n{_table(('', ''), rows.items())}\n"


def _metrics(run: TrainedRun) -> str:
    """Return the values at the epoch of the checkpoint, and those of the test."""
    values = run.manifest.get("metrics", {})
    rows = [
        (name, format_value(name, value))
        for name, value in values.items()
        if name.startswith("valid/") and isinstance(value, int | float)
    ]
    try:
        tested = json.loads(read_file(run.folder / "report" / "test.json"))
    except (OSError, ValueError):
        tested = {}
    rows += [
        (f"test/{name}", format_value(name, value))
        for name, value in (tested.items() if isinstance(tested, Mapping) else ())
        if isinstance(value, int | float)
    ]
    if not rows:
        return "## Results\n\nThe run was not evaluated.\n"
    chosen = "the best one" if run.manifest.get("is_best") else "the one that was exported"
    monitor = run.config["trainer"].get("monitor")
    by = f" by `{monitor}`" if monitor and run.manifest.get("is_best") else ""
    text = f"Of the checkpoint at epoch {run.manifest.get('epoch')}, {chosen}{by}."
    return f"## Results\n\n{text}\n\n{_table(('metric', 'value'), rows)}\n"


def _files(about: Mapping[str, Any], others: Sequence[tuple[str, str]]) -> str:
    """Return a section for each file: what it takes and returns, and how to load it."""
    body = "\n".join([*_interface(about), _load_lines(about)])
    text = "\n".join(f"### `{name}`\n{each.rstrip()}\n" for name, each in
                     [(about["file"], body), *others])  # fmt: skip
    return f"## Files, and how to load them without Kindling\n\n{text}"


def _interface(about: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words what a file takes and returns."""
    yield ""
    whole = f"The part `{about['module']}` of the model" if about["module"] else "The model"
    yield f"{whole}, with the {about['weights']} weights of {about['checkpoint']}."
    yield ""
    for what in ("inputs", "outputs"):
        for tensor in about[what]:
            shape = ", ".join(map(str, tensor["shape"]))
            yield f"- {what[:-1]} `{tensor['name']}`: {tensor['dtype']} ({shape})"
    if not about["inputs"]:
        yield "- the shapes are not recorded"
    if not about["module"]:
        yield ""
        yield from _preparation(about)
        yield ""
        yield from _meaning(about)


def _preparation(about: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words what comes before the network."""
    if "columns" in about:
        is_raw = "in_graph" in about
        yield from _raw_columns(about["columns"]) if is_raw else _encoded_columns(about)
    elif "in_graph" in about:
        if about["left_to_caller"]:
            yield f"Before the graph, apply: {', '.join(about['left_to_caller'])}."
        if "white" in about["record"] and about["inputs"][0]["dtype"] == "uint8":
            colours = "grey" if about["inputs"][0]["shape"][1] == 1 else "red, green, blue"
            yield f"The inputs are decoded pixels from 0 to 255, {colours}, rows from the top,"
            yield "turned as the EXIF orientation says."
        yield f"The graph itself does: {'; '.join(about['in_graph']) or 'nothing more'}."
    elif steps := [*_steps(about["preprocessing"])]:
        yield "Prepare the inputs as the validation data were:"
        yield ""
        yield from (f"{number}. {step}" for number, step in enumerate(steps, start=1))
    else:
        yield "The training data are passed to the model as its loader gives them."


def _steps(given: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words how images or arrays are prepared."""
    if "channels" in given:
        colours = ", ".join(given["channels"])
        yield f"decode image files to pixels, uint8 (channel, height, width): {colours}"
        yield f"the image is {given['orientation']}, rows from the top"
    if "resize" in given:
        size = given["resize"]
        wanted = "height {} and width {}".format(*size) if isinstance(size, list | tuple) else (
            f"a shorter side of {size} pixels")  # fmt: skip
        how = given.get("resize_filter", "as the data set does")
        yield f"resize to {wanted}, if it has another size: {how}"
    for each in given.get("transforms", ()):
        is_resize = isinstance(each, Mapping) and each.get("type") == "Resize"
        is_usual = is_resize and "interpolation" not in each.get("args", {})
        yield f"`{_code(each)}`{' (bilinear, antialiased)' if is_usual else ''}"
    white = given.get("white", 1)
    if "white_of_files" in given:
        arrays = f"are divided by {white:g}" if white != 1 else "stay as they are"
        other = "" if white == given["white_of_files"] else f" (arrays of the training {arrays})"
        yield f"divide integers by {given['white_of_files']:g}: values from 0 to 1{other}"
    elif white != 1:
        yield f"divide integers by {white:g}: values from 0 to 1"
    if "mean" in given:
        yield f"subtract the mean {_numbers(given['mean'])}"
        yield f"divide by the standard deviation {_numbers(given['std'])}"


DAYS = "as days since 1970-01-01 (a time of day is a fraction, in UTC)"


def _raw_columns(columns: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what goes into a graph that encodes the columns itself."""
    yield "The input has a number for each of these columns:"
    yield ""
    for number, fact in enumerate(columns):
        text = f"`{fact['name']}`"
        if fact["kind"] == "category":
            text += f": {_codes(fact['codes'])}"
        elif fact["kind"] == "date":
            text += f", a date, {DAYS}"
        if "mean" in fact:
            text += f" (mean {fact['mean']:.6g}, standard deviation {fact['std']:.6g})"
        yield f"{number}. {text}"
    yield from _gaps(columns, "NaN, an empty cell,", has_codes=True)


def _encoded_columns(about: Mapping[str, Any]) -> Iterator[str]:
    """Yield how each number of the inputs is computed from a column."""
    columns, are_codes = about["columns"], about["record"]["table"]["encode"] == "codes"
    yield "The inputs are the encoded columns of a table (`columns` in the metadata):"
    yield ""
    number = 0
    for fact in columns:
        name, is_category = fact["name"], fact["kind"] == "category"
        if is_category and are_codes:
            continue
        values = about["record"]["table"]["categories"][name] if is_category else [name]
        for value in values:
            yield f"{number}. {_encoded(fact, value)}"
            number += 1
    if are_codes:
        yield ""
        yield "The second input has the codes of the categories:"
        yield ""
        coded = [fact for fact in columns if fact["kind"] == "category"]
        for number, fact in enumerate(coded):
            yield f"{number}. `{fact['name']}`: {_codes(fact['codes'])}"
    yield from _gaps(columns, "an empty cell", are_codes)


def _encoded(fact: Mapping[str, Any], value: str) -> str:
    """Return how a number, or that of a value of a category, is computed."""
    name = f"`{fact['name']}`"
    if fact["kind"] == "category":
        if value not in fact["codes"]:
            return f"always 0: no training sample has {name} {_value(value)}"
        return f"1 if {name} is {_value(value)}, else 0"
    text = f"{name} {DAYS}" if fact["kind"] == "date" else name
    if "mean" in fact:
        text += f", minus {fact['mean']:.6g}, divided by {fact['std']:.6g}"
    return text


def _gaps(columns: Sequence[Mapping[str, Any]], gap: str, has_codes: bool) -> Iterator[str]:
    """Yield which columns may have empty cells, and what these count as.

    Args:
        gap: what stands for an empty cell.
        has_codes: whether categories are given as codes, not as zeros and ones.
    """
    yield ""
    for fact in columns:
        value = fact["missing"]
        if value is None:
            continue
        counts = f"{value:.6g}" if fact["kind"] != "category" else _value(value)
        if fact["kind"] == "category" and value not in fact["codes"]:
            counts = f"an unknown value, {'code 0' if has_codes else 'zeros'}"
        elif fact["kind"] == "category" and has_codes:
            counts += f", code {fact['codes'][value]}"
        yield f"- `{fact['name']}`: {gap} counts as {counts}"
    others = [f"`{fact['name']}`" for fact in columns if fact["missing"] is None]
    if others:
        yield f"- {gap} is not allowed, as no training sample has it: {', '.join(others)}"


def _value(value: str) -> str:
    """Return a value of a category as the card shows it."""
    return f"`{value}`" if value else "empty"


def _codes(codes: Mapping[str, int]) -> str:
    shown = [f"{code} for {_value(value)}" for value, code in codes.items()]
    more = ["... (all are in the metadata)"] if len(shown) > MOST_CLASSES else []
    return ", ".join([*shown[:MOST_CLASSES], *more, "0 for others"])


def _meaning(about: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words what the outputs are."""
    task, table = about["task"], about["record"].get("table") or {}
    is_final = "in_graph" in about
    if not task:
        return
    if task["name"] == "regression":
        names = f" of {', '.join(table['targets'])}" if table else ""
        if table.get("target_mean") and not is_final:
            means, stds = (_numbers(table[f"target_{each}"]) for each in ("mean", "std"))
            yield f"The outputs are standardized numbers{names}: multiply by {stds}, add {means}."
        else:
            yield f"The outputs are numbers{names}, in their own unit."
    elif task["has_probabilities"] and is_final:
        yield "The outputs are probabilities."
    elif task["activation"] != "none":
        yield f"The outputs are scores; their {task['activation']} are probabilities."
    if task["classes"] and task["name"] != "regression":
        shown = ", ".join(f"{n} {name}" for n, name in enumerate(task["classes"][:MOST_CLASSES]))
        yield f"Classes: {shown}{', ...' if len(task['classes']) > MOST_CLASSES else ''}."


def _load_lines(about: Mapping[str, Any]) -> str:
    """Return lines of Python that load a file and, if it is a graph, run it."""
    file = json.dumps(about["file"], ensure_ascii=False)
    suffix = Path(about["file"]).suffix
    zeros = [f"torch.zeros({_example(x)}, dtype=torch.{x['dtype']})" for x in about["inputs"]]
    if suffix == ".pt2":
        keywords = about.get("keywords", ())
        given = [*zeros[: len(zeros) - len(keywords)]]
        given += [f"{k}={zero}" for k, zero in zip(keywords, zeros[len(given) :], strict=True)]
        code = f"""\
            import json, torch
            files = {{"kindling.json": ""}}
            model = torch.export.load({file}, extra_files=files).module()
            about = json.loads(files["kindling.json"])  # classes, preprocessing, versions
            outputs = model({", ".join(given)})"""
        note = "It needs torch. `torch.export.passes.move_to_device_pass` moves it to a GPU."
    elif suffix == ".onnx":
        arrays = ", ".join(
            f'"{x["name"]}": numpy.zeros(({_example(x)}), "{x["dtype"]}")' for x in about["inputs"]
        )
        code = f"""\
            import json, numpy, onnxruntime
            session = onnxruntime.InferenceSession({file})
            about = json.loads(session.get_modelmeta().custom_metadata_map["kindling"])
            inputs = {{{arrays}}}
            outputs = session.run(None, inputs)"""
        note = "It needs onnxruntime and numpy, not torch."
    elif suffix == ".safetensors":
        code = f"""\
            import json, safetensors, safetensors.torch
            weights = safetensors.torch.load_file({file})  # name -> tensor
            with safetensors.safe_open({file}, "pt") as opened:
                about = json.loads(opened.metadata()["kindling"])
            # model.load_state_dict(weights) for a model of your own code"""
        note = _building(about)
    else:
        code = f"""\
            import torch
            saved = torch.load({file}, weights_only=True)
            weights, about = saved["state_dict"], saved["metadata"]
            # model.load_state_dict(weights) for a model of your own code"""
        note = _building(about)
    lines = "\n".join(line.removeprefix(" " * 12) for line in code.splitlines())
    return f"\n{note}\n\n```python\n{lines}\n```\n"


def _building(about: Mapping[str, Any]) -> str:
    """Return in words how to build the model whose weights a file holds."""
    built = about["model_config"]
    whole = f" and take its part `{about['module']}`" if about["module"] else ""
    return (
        f"It has no graph: the code of the model is needed too. Build `{built['code']}` with the "
        f"arguments of the run{whole}:\n\n```yaml\nmodel: "
        f"{json.dumps({x: built[x] for x in ('type', 'args')}, ensure_ascii=False)}\n```\n\n"
        "They are `model_config` in the metadata. If the model's code imports from `base`, take "
        "the folder `base/` along, with `logger/` beside it."
    )


def _example(tensor: Mapping[str, Any]) -> str:
    """Return the shape of one sample, as Python's source."""
    return ", ".join(map(str, tensor["example"]))


def _training(run: TrainedRun) -> str:
    config = run.config
    sections = [config["optimizer"]] if config["optimizer"] else [*config["optimizers"].values()]
    rows = {
        "loss": ", ".join(str(each["type"]) for each in config["loss"]),
        "optimizer": "; ".join(f"{x['type']} {_code(x['args'])}" for x in sections),
        "trained for": f"{run.manifest.get('epoch')} epochs, {run.manifest.get('step'):,} steps",
        "batch size": str(config["data_loader"]["args"].get("batch_size", "-")),
        "precision": _precision(run),
        "seed": str(config["seed"]),
        "environment": _environment(run),
    }
    return f"## Training\n\n{_table(('', ''), rows.items())}\n"


def _precision(run: TrainedRun) -> str:
    """Return the precision of the training; the exported model is in float32."""
    text = _read(run.folder / "config.yaml")
    found = re.search(r"^\s+precision: (\w+)", text, re.MULTILINE)
    return found[1] if found else "fp32"


def _environment(run: TrainedRun) -> str:
    text = _read(run.folder / "env.txt")
    known = dict(line.split(maxsplit=1) for line in text.splitlines() if len(line.split()) > 1)
    names = ("python", "torch", "torchvision", "numpy", "cuda", "devices")
    found = [f"{name} {known[name]}" for name in names if name in known]
    return ", ".join(found) or f"torch {run.manifest.get('torch_version')}"


def _limits(about: Mapping[str, Any]) -> str:
    if "columns" in about:
        others = "Values beyond those of training, other sources"
    elif "channels" in about["preprocessing"]:
        others = "Other cameras, other sources"
    else:
        others = "Other sources"
    lines = [
        "TODO: for whom it is, and for what it is not; which groups of data it has not seen.",
        "",
        f"- The results hold for data like those above. {others} and later data can give worse "
        "ones.",
    ]
    if about["task"].get("has_probabilities"):
        lines.append("- A high probability is not a proof: it is not calibrated.")
    if Path(about["file"]).suffix == ".onnx" and (version := installed_version("onnxruntime")):
        lines.append(f"- The ONNX file was compared with the model in onnxruntime {version}.")
    return "\n".join(["## Limits", "", *lines, ""])


def _table(head: tuple[str, str], rows: Any) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows if value != ""]
    return "\n".join(lines)


def _cell(text: Any) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _code(value: Any) -> str:
    """Return a value of the config in a line."""
    return json.dumps(value, default=str, ensure_ascii=False).replace('"', "")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
