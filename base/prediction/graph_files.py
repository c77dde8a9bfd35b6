"""Traces a network, and writes and runs the files of its graph: ``.pt2`` and ``.onnx``.

A running file is a function of positional and keyword arguments that returns all tensors of the
outputs, in order.
"""

from __future__ import annotations

import io
import json
import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_leaves

from base.errors import UsageError
from base.names.discovery import project_root
from base.prediction.network_inputs import Inputs
from base.system.places import ENGINE

Running = Callable[[tuple[Any, ...], dict[str, Any]], list[Tensor]]
ABOUT = "kindling"  # the key of the facts in the metadata of a file
EXTRA = f"{ABOUT}.json"  # the name of the facts in a .pt2 file
LARGEST = 2**31 - 2**20  # bytes of an ONNX file; larger weights are written beside it
WEIGHTS = "export its weights, -o model.safetensors"
INSTEAD = "replace it in the model, or write -o model.pt2"


def run_network(network: nn.Module) -> Running:
    """Return a function that calls a network, without gradients."""

    def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        with torch.no_grad():
            return tensors_of(network(*args, **kwargs))

    return call


def tensors_of(outputs: Any) -> list[Tensor]:
    """Return the tensors of outputs, in order."""
    return [each for each in tree_leaves(outputs) if isinstance(each, Tensor)]


def trace(network: nn.Module, inputs: Inputs, size_varies: bool) -> ExportedProgram:
    """Trace a network for any number of samples.

    Args:
        size_varies: whether height and width of images may vary too.

    Raises:
        UsageError: the network cannot be traced; the text has the reason and the line of code.
    """
    # A size of 1, also that of a map within the network, would be taken for a constant.
    args, kwargs = inputs.random(2, inputs.other_size if size_varies else None)
    batch = Dim("batch")
    dynamic = torch.export.ShapesCollection()
    for tensor in tree_leaves((args, kwargs)):
        is_image = size_varies and tensor.dim() == 4
        dynamic[tensor] = {0: batch, **({2: Dim.DYNAMIC, 3: Dim.DYNAMIC} if is_image else {})}
    try:
        with torch.no_grad(), silence():
            return torch.export.export(network, args, kwargs, dynamic_shapes=dynamic)
    except Exception as error:
        name, where = type(network).__name__, line_of(error)
        text = f"torch.export cannot trace {name}{where}: {reason(error)}"
        raise UsageError(f"{text}; change this code, or {WEIGHTS}") from error


def line_of(error: Exception) -> str:
    """Return the innermost line of the user's code in a traceback, or ""."""
    root = project_root()
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.line and "site-packages" not in frame.filename
        if not Path(frame.filename).is_relative_to(ENGINE) and frame.filename[:1] != "<"
    ]
    inner = [each for each in theirs if Path(each.filename) != ENGINE.parent / "export.py"]
    if not inner:
        return ""
    path = Path(inner[-1].filename)
    shown = path.relative_to(root) if path.is_relative_to(root) else path.name
    return f" ({shown}:{inner[-1].lineno}: `{inner[-1].line}`)"


def reason(error: BaseException) -> str:
    """Return the exporter's reason in a line."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "specialized it to be a constant" in str(error):
        return "the number of samples is a constant in it"
    first = re.sub(r" \(unhinted: .*| For more information.*", "", lines[0]).rstrip(".")
    if first.startswith("Could not guard on data-dependent"):
        return "a branch or a Python number depends on values of a tensor (torch.where, torch.cond)"
    if first.startswith("Constraints violated") and len(lines) > 1:
        first = lines[1].lstrip("- ").rstrip(".")
    return first[:200]


@contextmanager
def silence() -> Iterator[None]:
    """Return a context in which the exporters print, log and warn nothing."""
    former = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(former)


def shapes_in(program: ExportedProgram) -> tuple[dict[str, list[Any]], list[list[Any]]]:
    """Return the shape of each input by name, and of each output.

    A size that varies is ``batch``, ``height`` or ``width``, or ``varies`` if it depends on them.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    names: dict[str, str] = {}

    def shape_of(value: Any, is_input: bool) -> list[Any]:
        shape: list[Any] = []
        for place, size in enumerate(value.shape):
            if is_input and not isinstance(size, int):
                usual = {0: "batch", 2: "height", 3: "width"}.get(place, "varies")
                names.setdefault(str(size), usual)
            shape.append(size if isinstance(size, int) else names.get(str(size), "varies"))
        return shape

    taken = {str(name): shape_of(values[name], True) for name in program.graph_signature.user_inputs
             if isinstance(values.get(str(name)), Tensor)}  # fmt: skip
    given = [values.get(str(name)) for name in program.graph_signature.user_outputs]
    return taken, [shape_of(value, False) for value in given if isinstance(value, Tensor)]


def write_pt2(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
    """Write a traced network as ``torch.export.load`` reads it."""
    with silence():
        torch.export.save(program, path, extra_files={EXTRA: json.dumps(about)})


def run_pt2(path: Path) -> tuple[Running, str]:
    """Load a ``.pt2`` file; return it with the name of what runs it."""
    with silence():
        module = torch.export.load(path).module()
    return run_network(module), "torch.export.load"


def write_onnx(
    program: ExportedProgram,
    path: Path,
    about: Mapping[str, Any],
    opset: int | None,
    names: list[str],
) -> None:
    """Write a traced network as ONNX, and check the file.

    Args:
        opset: the version of ONNX's operators; None for that of torch.
        names: of the outputs.

    Raises:
        UsageError: ONNX lacks an operation; the text names it and the module that calls it.
    """
    import onnx

    try:
        with silence():
            converted = torch.onnx.export(
                program, dynamo=True, verbose=False, opset_version=opset, output_names=names
            )
            assert converted is not None
            written = converted.model.opset_imports.get("")
            converted.model.metadata_props[ABOUT] = json.dumps(about)
            name_sizes(converted.model)
            n_bytes = sum(value.nbytes for value in program.state_dict.values())
            converted.save(path, external_data=n_bytes > LARGEST)
            onnx.checker.check_model(path)
    except Exception as error:
        raise UsageError(explain_conversion(error, program)) from error
    if opset not in (None, written):
        raise UsageError(f"--opset {opset}: torch writes this network with opset {written}")


def name_sizes(model: Any) -> None:
    """Name the sizes that vary ``batch``, ``height`` and ``width``, in inputs and outputs."""
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for place, size in enumerate(value.shape):
            if not isinstance(size, int):
                usual = {0: "batch", 2: "height", 3: "width"}.get(place, f"size_{place}")
                names.setdefault(str(size.value), usual)
    for value in (*model.graph.inputs, *model.graph.outputs):
        for place, size in enumerate(value.shape or ()):
            if not isinstance(size, int) and str(size.value) in names:
                value.shape[place] = names[str(size.value)]


def explain_conversion(error: BaseException, program: ExportedProgram) -> str:
    """Return why a network cannot be written as ONNX, in a line."""
    chain: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in chain:
        chain.append(each)
        each = each.__cause__ or each.__context__
    text = " ".join(str(each) for each in chain)
    lacking = re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'", text)
    if lacking is not None:
        name = lacking[1].replace("::", ".")
        return f"ONNX has no operation for {name}{calling_module(name, program)}; {INSTEAD}"
    failed = re.search(r"translating node .*?target=torch\.ops\.([\w.]+)", text)
    name = failed[1].removesuffix(".default") if failed else ""
    what = f"{name}{calling_module(name, program)}" if failed else "this network"
    return f"torch.onnx cannot write {what}: {reason(chain[-1])}; {INSTEAD}"


def calling_module(operation: str, program: ExportedProgram) -> str:
    """Return the module and the line of code that call an operation, or ""."""
    with silence():
        nodes = list(program.run_decompositions().graph.nodes)
    for node in nodes:
        if node.op != "call_function" or not str(node.target).startswith(operation):
            continue
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path, kind = stack[-1] if stack else ("", "")
        kind = getattr(kind, "__name__", str(kind).rpartition(".")[2])
        return f", which {path!r} calls ({kind})" if path else f", which {kind} calls"
    return ""


def run_onnx(path: Path) -> tuple[Running, str]:
    """Load an ONNX file; return it with the name of what runs it."""
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        session: Any = ReferenceEvaluator(str(path))
        names, by = list(session.input_names), "onnx's reference evaluator"
    else:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        names, by = [each.name for each in session.get_inputs()], "onnxruntime"

    def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        values = [each.detach().cpu().numpy() for each in tree_leaves((args, kwargs))]
        found = session.run(None, dict(zip(names, values, strict=True)))
        return [torch.as_tensor(each) for each in found]

    return call, by
