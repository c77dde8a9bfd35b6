"""Exports a trained run: a file that works without Kindling, compared with the model, and a card.

``.pt2`` and ``.onnx`` hold a graph; ``.safetensors``, ``.pt`` and ``.pth`` hold weights with the
facts that a user of them needs.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from base.checkpoint.store import VERSION
from base.checkpoint.weights import RECORD
from base.checkpoint.weights_file import (
    safetensors_bytes,
    torch_bytes,
)
from base.errors import CheckpointError, UsageError, disk_error, why
from base.network.shapes import shape_text
from base.prediction.comparison import (
    RESIZED_TOLERANCE,
    TOLERANCE,
    ExportMismatchError,
    batches,
    compare,
    compare_with_predictions,
    relative_difference,
)
from base.prediction.export_request import ExportRequest
from base.prediction.file_loaders import (
    dataset_section,
    evaluation_section,
    image_settings,
)
from base.prediction.graph_files import (
    ABOUT,
    Running,
    run_network,
    run_onnx,
    run_pt2,
    shapes_in,
    tensors_of,
    trace,
    write_onnx,
    write_pt2,
)
from base.prediction.model_card import CARD, check_card, write_card
from base.prediction.network_inputs import (
    Inputs,
    choose_network,
    inputs_of_network,
    refuse_container,
)
from base.prediction.raw_inputs import Raw, sample_rows, with_raw_inputs
from base.prediction.tensor_facts import (
    describe,
    described,
    names_of,
    output_names,
    task_facts,
)
from base.prediction.trained_run import TrainedRun, load_trained
from base.run.build import choose_device
from base.training.task import Task
from logger.console import setup_logging

log = logging.getLogger("kindling")

AS_FLOAT32 = (
    "memory.precision=fp32", "memory.inplace=false", "memory.checkpoint_activations=[]",
    "memory.channels_last=false", "memory.offload_activations=false",
    "memory.offload_optimizer=false",
)  # fmt: skip
"""The options of a training that its exported graph does not need."""


def load_for_export(
    path: Path, device: str, ema: bool | None, overrides: Sequence[str] = ()
) -> TrainedRun:
    """Load a run in float32, with the weights that ``ema`` selects.

    Raises:
        UsageError: it has no checkpoint, or no averaged weights although they are asked for.
    """
    setup_logging(None)
    try:
        settings = [*overrides, *AS_FLOAT32]
        run = load_trained(path, choose_device(device), settings, ema=ema is not False)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    if ema and run.weights != "averaged":
        raise UsageError(f"{path}: it has no averaged weights (`trainer.ema`): omit --ema")
    return run


def export_run(run: TrainedRun, wanted: ExportRequest) -> list[str]:
    """Write the file and the model card; return lines for the user.

    Both are written to a folder beside, and moved when the file was loaded again and agreed with
    the model.

    Raises:
        UsageError: the network cannot be exported.
        ExportMismatchError: the file computes something else.
    """
    network = choose_network(run, wanted.module)
    about = facts_of(run, network, wanted)
    check_card(wanted.out.parent / CARD, about, wanted.overwrite)
    out, parent = wanted.out, wanted.out.parent
    log.info(f"exporting {about['model']} of {run.checkpoint}, {run.weights} weights")
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}-", dir=parent))
    except OSError as error:
        raise disk_error(error, f"{out}: not written: {why(error)}", UsageError) from error
    try:
        write = write_graph if wanted.is_graph else write_weights
        lines = write(run, network, wanted, temporary / out.name, about)
        write_card(run, about, temporary / CARD, parent / CARD)
        for file in sorted(temporary.iterdir(), key=lambda each: each.name == CARD):
            file.replace(parent / file.name)
    except OSError as error:
        raise disk_error(error, f"{out}: not written: {why(error)}", UsageError) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [*lines, f"{parent / CARD}: what it does, and how to load it without Kindling"]


def facts_of(run: TrainedRun, network: nn.Module, wanted: ExportRequest) -> dict[str, Any]:
    """Return the facts that an exported file has with it, as plain data."""
    record = run.record
    columns = {}
    if "table" in record:
        from base.prediction.table_facts import column_facts  # a project may leave tables out

        columns = {"columns": column_facts(run)}
    return {
        "name": run.config["name"],
        "file": wanted.out.name,
        "model": type(network).__name__,
        "module": wanted.module,
        "model_config": model_section(run),
        "run": run.folder.absolute().name,
        "checkpoint": run.checkpoint.name,
        "weights": run.weights,
        "kindling": VERSION,
        "torch": str(torch.__version__),
        "task": {},
        "classes": record.get("classes"),
        "preprocessing": preparation_of(run),
        "record": record,
        **columns,
        "inputs": [],
        "outputs": [],
    }


def model_section(run: TrainedRun) -> dict[str, Any]:
    """Return type, arguments and module of the model's class, as plain data."""
    experiment = run.trainer.experiment
    section = experiment.references.resolve("model", ("model",), run.config["model"])
    built = {"type": section["type"], "args": dict(section["args"])}
    found = {**built, "code": f"{type(run.model).__module__}.{type(run.model).__qualname__}"}
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def preparation_of(run: TrainedRun) -> dict[str, Any]:
    """Return how the validation data of a run are prepared, as plain data."""
    section, record = evaluation_section(run), run.record
    names = ("mode", "size", "white", "mean", "std")
    found: dict[str, Any] = {name: record[name] for name in names if name in record}
    if section["args"].get("valid_transforms"):
        found["transforms"] = list(section["args"]["valid_transforms"])
    if "white" not in record or len(run.input_shape) != 3:
        resize = dataset_section(section).get("args", {}).get("resize")
        return {**found, **({} if resize is None else {"resize": resize})}
    mode, resize = image_settings(run)
    n_channels = run.input_shape[0]
    if "mode" in record or n_channels in (1, 3):  # others are arrays, not image files
        is_grey = mode in ("grey", "gray", "L")
        found["channels"] = ["grey"] if is_grey else ["red", "green", "blue"]
        found["orientation"] = "turned as the EXIF orientation says"
        found["white_of_files"] = 255  # whatever that of the training's arrays
        found["value_range"] = f"0 to 1{', then normalized' if 'mean' in record else ''}"
    if resize is not None:
        found |= {"resize": resize, "resize_filter": "bilinear, antialiased"}
    return found


def write_weights(
    run: TrainedRun, network: nn.Module, wanted: ExportRequest, path: Path, about: dict[str, Any]
) -> list[str]:
    """Write a state dict, and compare the file with it bit by bit; return lines for the user."""
    weights = {name: value.detach().cpu() for name, value in network.state_dict().items()
               if isinstance(value, Tensor)}  # fmt: skip
    note_shapes(run, network, wanted, about)
    if path.suffix == ".safetensors":
        metadata = {ABOUT: json.dumps(about), RECORD: json.dumps(run.record)}
        path.write_bytes(safetensors_bytes(weights, metadata, path))
        from safetensors.torch import load_file

        found = load_file(path)
    else:
        path.write_bytes(torch_bytes({"state_dict": weights, "metadata": about}, path))
        found = torch.load(path, weights_only=True)["state_dict"]
    different = [name for name in weights if not _equal_bits(weights[name], found.get(name))]
    if different or len(found) != len(weights):
        text = f"{wanted.out}: {len(different)} weights differ after loading: {different[:3]}"
        raise ExportMismatchError(f"{text}; nothing was written")
    n_bytes = path.stat().st_size
    text = f"{len(weights)} {run.weights} weights of {run.checkpoint.name}, {n_bytes:,} bytes"
    return [f"{wanted.out}: {text}; loaded again: equal bit by bit"]


def _equal_bits(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.shape != other.shape or one.dtype != other.dtype:
        return False
    first, second = (each.contiguous().flatten().view(torch.uint8) for each in (one, other))
    return torch.equal(first, second)


def note_shapes(
    run: TrainedRun, network: nn.Module, wanted: ExportRequest, about: dict[str, Any]
) -> None:
    """Add the task and the shapes to the facts, as far as they are known."""
    try:
        inputs = inputs_of_network(run, network, wanted.input_shape)
        args, kwargs = inputs.random(2)
        with torch.no_grad():
            outputs = network.eval()(*args, **kwargs)
    except Exception:  # such as a container of networks; its weights are of use all the same
        return
    about["inputs"] = described(tensors_of((args, kwargs)), names_of(network, args, kwargs))
    about["outputs"] = described(tensors_of(outputs), output_names(outputs, None))
    about["task"] = task_facts(run.task(outputs))


def write_graph(
    run: TrainedRun, network: nn.Module, wanted: ExportRequest, path: Path, about: dict[str, Any]
) -> list[str]:
    """Trace, write, load again, compare; return lines for the user."""
    refuse_container(run, network)
    raw: Raw | None = None
    if wanted.preprocessing:
        raw = with_raw_inputs(run, network)
        network, inputs = raw.network, raw.inputs
    else:
        network, inputs = as_float32(network), inputs_of_network(run, network, wanted.input_shape)
    network.eval().requires_grad_(False)
    outputs, task = call_once(run, network, inputs, raw)
    names = output_names(outputs, task if raw else None)

    tolerance = TOLERANCE if raw is None or not raw.resizes else RESIZED_TOLERANCE

    def write(size_varies: bool) -> tuple[Running, str]:
        program = trace(network, inputs, size_varies)
        shapes, output_shapes = shapes_in(program)
        given = tensors_of(inputs.random(2))
        about["inputs"] = described(given, list(shapes), list(shapes.values()))
        about["outputs"] = described(tensors_of(outputs), names, output_shapes)
        about["task"], about["keywords"] = task_facts(task), list(inputs.kwargs)
        if raw is not None:
            about["in_graph"], about["left_to_caller"] = raw.steps, raw.left_to_caller
        if path.suffix == ".pt2":
            write_pt2(program, path, about)
        else:
            write_onnx(program, path, about, wanted.opset, names)
        loaded, by = (run_pt2 if path.suffix == ".pt2" else run_onnx)(path)
        tests = batches(inputs, size_varies)
        compared = compare(run_network(network), loaded, tests, wanted.out, tolerance)
        return loaded, f"compared with the model by {by}: {compared}"

    (loaded, compared), notes = write_for_sizes(network, inputs, write)
    if raw is not None and (rows := sample_rows(run, raw, path.parent / "samples")) is not None:
        compared += f"; {compare_with_predictions(loaded, rows, wanted.out, tolerance)}"
    n_bytes = sum(each.stat().st_size for each in path.parent.iterdir())
    text = f"{describe(about['inputs'])} -> {describe(about['outputs'])}, {n_bytes:,} bytes"
    return [*notes, f"{wanted.out}: {text}", compared]


def write_for_sizes(
    network: nn.Module, inputs: Inputs, write: Callable[[bool], tuple[Running, str]]
) -> tuple[tuple[Running, str], list[str]]:
    """Write a graph for images of any size if the network takes them, otherwise for one size.

    Args:
        write: traces, writes and compares; the argument is whether the size of images varies.

    Returns:
        The result of ``write``, and notes for the user.
    """
    if not takes_other_sizes(network, inputs):
        return write(False), []
    try:
        return write(True), []
    except (UsageError, ExportMismatchError):
        found = write(False)
        return found, [f"images of {_size(inputs)} only: a graph for any size cannot be written"]


def as_float32(network: nn.Module) -> nn.Module:
    """Return a network with weights in float32, instead of half precision."""
    half = (torch.float16, torch.bfloat16)
    return network.float() if any(p.dtype in half for p in network.parameters()) else network


def call_once(
    run: TrainedRun, network: nn.Module, inputs: Inputs, raw: Raw | None
) -> tuple[Any, Task]:
    """Return the outputs of a network for random inputs, and the task.

    Raises:
        UsageError: the network does not take such inputs.
    """
    args, kwargs = inputs.random(2)
    try:
        with torch.no_grad():
            outputs, again = network(*args, **kwargs), network(*args, **kwargs)
    except Exception as error:  # of the user's model
        shapes = ", ".join(shape_text(each) for each in tensors_of((args, kwargs)))
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        text = f"{type(network).__name__} cannot be called on inputs {shapes}: {text}"
        raise UsageError(f"{text}; give the shape of a sample, --input-shape 3,224,224") from error
    both = zip(tensors_of(outputs), tensors_of(again), strict=True)
    if any(relative_difference(one, other) > TOLERANCE for one, other in both):
        text = f"{type(network).__name__} returns other outputs each time, as it draws at random"
        raise UsageError(f"{text}: a graph cannot be compared with it; export weights")
    return outputs, run.task(outputs) if raw is None else raw.network.task


def takes_other_sizes(network: nn.Module, inputs: Inputs) -> bool:
    """Return whether a network takes images of another size too."""
    if inputs.other_size is None:
        return False
    args, kwargs = inputs.random(2, inputs.other_size)
    try:
        with torch.no_grad():
            network(*args, **kwargs)
    except Exception:  # of the user's model, which is for one size
        return False
    return True


def _size(inputs: Inputs) -> str:
    return " x ".join(map(str, inputs.image_size or ()))
