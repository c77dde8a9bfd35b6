"""``python -m base.checkpoint``: look into checkpoints, verify, compare and export them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.checkpoint.state_file import plain_copy, write_bytes, write_state
from base.checkpoint.store import STEP, read, read_manifest
from base.checkpoint.weights import (
    RECORD,
    checkpoint_of,
    read_record,
    read_weights,
    weights_and_origin,
)
from base.config.command_line import Parser, run
from base.config.tree import leaves
from base.data.record import data_of
from base.errors import CheckpointError, UsageError, nearest
from base.network.shapes import shape_text
from base.system.run_folder import must_exist, newest_run_in
from logger.console import format_header, format_value, table
from logger.files import write_whole

SUFFIXES = (".safetensors", ".pt", ".pth")
EPILOG = """A FILE is a file of weights (.pt, .pth, .safetensors), a checkpoint or a run.

exit codes: 0 done, whole, equal; 1 damaged, different, not written; 2 a fault in the command"""


def main(arguments: Sequence[str]) -> int:
    """Do what the command says; return the exit code."""
    options = _parse(arguments)
    try:
        return _do(options)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UsageError(f"{error.filename}: {error.strerror}") from error


def _do(options: argparse.Namespace) -> int:
    if options.command == "inspect":
        print("\n\n".join(inspect(path) for path in options.files))
        return 0
    if options.command == "verify":
        return verify(options.files)
    if options.command == "diff":
        return diff(*options.files, weights=options.weights)
    return export(options.file, options.out, options.ema, options.overwrite)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser("-m base.checkpoint", None, __doc__, EPILOG, formatter_class=layout)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    for name, text in (
        ("inspect", "show step, epoch, metrics, versions, sizes; names with shape and dtype"),
        ("verify", "compare each byte with its hash; of a run, all checkpoints"),
    ):
        add(name, text).add_argument("files", nargs="+", type=Path, metavar="FILE")
    both = add("diff", "compare two: names, shapes, the largest difference; 1 where they differ")
    both.add_argument("files", nargs=2, type=Path, metavar="FILE")
    both.add_argument("--weights", action="store_true", help="of checkpoints, the weights alone")
    out = add("export", "write the weights, and what is known of their data")
    out.add_argument("file", type=Path, metavar="FILE")
    out.add_argument("out", type=Path, metavar="OUT", help="*.safetensors, *.pt or *.pth")
    text = "averaged weights, or the trained ones (default: averaged, where kept)"
    out.add_argument("--ema", action=argparse.BooleanOptionalAction, default=None, help=text)
    out.add_argument("--overwrite", action="store_true", help="replace OUT where it is there")

    words = [word for word in arguments[:1] if not word.startswith("-")]
    if words and words[0] not in commands.choices:
        known = nearest(words[0], commands.choices) or f"; there are {', '.join(commands.choices)}"
        raise UsageError(f"{words[0]!r} is no command{known}")
    return parser.parse_args(arguments)


def inspect(path: Path) -> str:
    """Return what is in a checkpoint or a file of weights; of a run, its checkpoints."""
    is_run = (must_exist(path) / "checkpoints").is_dir()
    folder = path if is_run else checkpoint_of(path)
    if folder is None:
        facts = {"file": path, "size": f"{path.stat().st_size:,} bytes"}
        facts |= {"data": _record_line(read_record(path))}
        return "\n".join([format_header(facts), *_names(read_weights(path))])
    if not (folder / "manifest.json").exists():
        return "\n".join([f"run  {path}", *map(_line, _checkpoints(path))])
    manifest, state = read_manifest(folder), read(folder)
    versions = f"format {manifest['format']}, Kindling {manifest['framework_version']}, "
    facts = {
        "checkpoint": folder,
        "step": f"{manifest['step']:,}, epoch {manifest['epoch']}",
        "metrics": _metrics(manifest, ("train/", "valid/")),
        "best": "yes" if manifest["is_best"] else "no",
        "versions": versions
        + f"torch {manifest['torch_version']}, Python {manifest['python_version']}",
        "size": f"{manifest['files']['state.pt']['bytes']:,} bytes",
        "data": _record_line(data_of(manifest).get("record", {})),
    }
    parts = {name: _tensors(value) for name, value in state.items()}
    sizes = [f"{name} {_n_bytes(part):,}" for name, part in parts.items() if part]
    facts["tensors"] = f"{', '.join(sizes)} bytes"
    return "\n".join([format_header(facts), *_names(parts.get("model", {}))])


def _record_line(record: Mapping[str, Any]) -> str | None:
    """Return in a line what is known of the data; None where nothing is."""
    parts = [f"{key} {json.dumps(value)}" for key, value in record.items()]
    shown = [part if len(part) <= 60 else f"{part[:57]}..." for part in parts]
    return ", ".join(shown) or None


def _names(tensors: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each tensor, and one for all."""
    rows = [(name, *_kind(value)) for name, value in tensors.items()]
    yield _table([("name", "shape", "dtype"), *rows])
    plain = [value for value in tensors.values() if isinstance(value, Tensor)]
    numbers = sum(value.numel() for value in plain)
    yield f"{len(plain):,} tensors, {numbers:,} numbers, {_n_bytes(tensors):,} bytes"


def _line(folder: Path) -> str:
    """Return one line on a checkpoint of a run."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return f"  {error}"
    size, best = manifest["files"]["state.pt"]["bytes"], ", best" * manifest["is_best"]
    about = f"epoch {manifest['epoch']}, {size:,} bytes{best}, {_metrics(manifest, ('valid/',))}"
    return f"  {folder.name}  {about}"


def _metrics(manifest: Mapping[str, Any], prefixes: tuple[str, ...]) -> str:
    known = manifest["metrics"].items()
    found = [f"{key} {format_value(key, each)}" for key, each in known if key.startswith(prefixes)]
    return ", ".join(found) or "-"


def _checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints that a path stands for, the earliest first."""
    newest = None if _holds_checkpoints(path) else newest_run_in(path)
    path = newest or path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = [each for each in folder.iterdir() if STEP.fullmatch(each.name)]
    if not found:
        raise UsageError(f"{path}: holds no checkpoint (a folder like step-00000480)")
    return sorted(found, key=lambda each: (int(each.name[5:].rstrip("~")), each.name))


def _holds_checkpoints(path: Path) -> bool:
    names = (each.name for each in path.iterdir())
    return (path / "checkpoints").is_dir() or any(map(STEP.fullmatch, names))


def verify(paths: Sequence[Path]) -> int:
    """Print for each checkpoint whether it is whole; return 1 where one is not."""
    n_damaged = 0
    for path in map(must_exist, paths):
        folder = path.parent if path.name == "state.pt" else path
        is_one = bool(STEP.fullmatch(folder.name)) or (folder / "manifest.json").exists()
        is_many = not is_one and folder.is_dir()
        for each in _checkpoints(folder) if is_many else [folder if is_one else path]:
            try:
                _ = read(each) if is_one or is_many else read_weights(each)
            except CheckpointError as error:
                n_damaged += 1
                print(f"damaged  {error}")
            else:
                print(f"whole    {each}" if each.is_dir() else f"readable {each} (it has no hash)")
    return 1 if n_damaged else 0


def diff(first: Path, second: Path, *, weights: bool = False) -> int:
    """Print what differs between two checkpoints, or two sets of weights; return 1 if any does."""
    folders = [checkpoint_of(must_exist(path)) for path in (first, second)]
    if None in folders or weights:
        ours, theirs = (dict(read_weights(path)) for path in (first, second))
    else:
        ours, theirs = (dict(leaves(read(folder))) for folder in folders if folder)
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys([*ours, *theirs]):
        here, there = (" ".join(_kind(d[name])) if name in d else "-" for d in (ours, theirs))
        if name in ours and name in theirs and is_equal(ours[name], theirs[name]):
            continue
        rows.append((name, here, there, _largest(ours.get(name), theirs.get(name))))
    if rows:
        print(_table([("name", "first", "second", "largest difference"), *rows]))
    only = [len(ours.keys() - theirs.keys()), len(theirs.keys() - ours.keys())]
    n_both = len(ours.keys() & theirs.keys())
    n_differ = len(rows) - sum(only)
    print(
        f"{n_both - n_differ} equal, {n_differ} different, {only[0]} only in the first, "
        f"{only[1]} only in the second"
    )
    return 1 if rows else 0


def _largest(ours: Any, theirs: Any) -> str:
    if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)) or ours.shape != theirs.shape:
        return "-"
    if ours.numel() == 0:
        return "0"
    wide = torch.complex128 if ours.is_complex() or theirs.is_complex() else torch.float64
    return f"{(ours.to_dense().to(wide) - theirs.to_dense().to(wide)).abs().max().item():.6g}"


def is_equal(ours: Any, theirs: Any) -> bool:
    """Compare bit for bit; of plain values, as they are written."""
    if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)):
        return type(ours) is type(theirs) and repr(ours) == repr(theirs)
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    parts = (each.to_dense().contiguous().reshape(-1).view(torch.uint8) for each in (ours, theirs))
    return torch.equal(*parts)


def _tensors(state: Any) -> dict[str, Tensor]:
    return {name: leaf for name, leaf in leaves(state) if isinstance(leaf, Tensor)}


def export(source: Path, out: Path, ema: bool | None, overwrite: bool) -> int:
    """Write the weights of a file, a checkpoint or a run, and what is known of their data."""
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out}: its name must end in {', '.join(SUFFIXES)}")
    has_metadata = out.suffix == ".safetensors"
    beside = None if has_metadata else out.with_name(f"{out.name}.json")
    for path in filter(None, (out, beside)):
        _refuse_existing(path, overwrite)
    weights, whose = weights_and_origin(must_exist(source), ema)
    record = read_record(source)
    temporary = out.with_name(f".tmp-{out.name}")
    try:
        temporary.unlink(missing_ok=True)
        if has_metadata:
            write_bytes(temporary, _safetensors(out, weights, record))
        else:
            write_state(temporary, plain_copy(weights, "weights", {}))
        _refuse_existing(out, overwrite)
        if beside is not None and record:
            write_whole(beside, json.dumps(record, indent=2).encode() + b"\n")
        elif beside is not None:
            beside.unlink(missing_ok=True)  # of the weights that `--overwrite` replaces
        temporary.replace(out)
    except OSError as error:
        raise CheckpointError(f"{out}: not written: {error.strerror or error}") from error
    finally:
        if out.parent.is_dir():
            temporary.unlink(missing_ok=True)
    also = f"; what is known of the data: {beside}" if record and beside is not None else ""
    print(f"{out}: {whose}, {len(weights)} tensors{also}")
    return 0


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if not must_exist(out.parent).is_dir():
        raise UsageError(f"{out.parent}: this is no folder")
    if out.is_dir() or (out.exists() and not overwrite):
        raise UsageError(f"{out}: it is there already; choose another name, or add --overwrite")


def _safetensors(out: Path, weights: Mapping[str, Any], record: Mapping[str, Any]) -> bytes:
    try:
        from safetensors.torch import save
    except ImportError as error:
        text = "writing it needs safetensors (pip install safetensors); or name a .pt file"
        raise UsageError(f"{out}: {text}") from error
    odd = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(f"{out}: {odd[0]} is no tensor, which safetensors cannot hold: .pt")
    # Weights that are shared are written once for each name: the format knows no sharing.
    about = {"format": "pt", **({RECORD: json.dumps(record)} if record else {})}
    content: bytes = save({n: v.clone().contiguous() for n, v in weights.items()}, about)
    return content


def _kind(value: Any) -> tuple[str, str]:
    """Return the shape and the dtype of a tensor; of plain data its text and its type."""
    if not isinstance(value, Tensor):
        return repr(value)[:40], type(value).__name__
    return shape_text(value), str(value.dtype).removeprefix("torch.")


def _n_bytes(tensors: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in tensors.values() if isinstance(value, Tensor))


def _table(rows: Sequence[Sequence[str]]) -> str:
    return table([[cell if cell.isprintable() else repr(cell) for cell in row] for row in rows])


if __name__ == "__main__":
    run(main)
