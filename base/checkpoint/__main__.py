"""``python -m base.checkpoint``: inspect, verify, compare and export checkpoints."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from base.checkpoint.comparison import is_equal, largest_difference
from base.checkpoint.data_record import data_of
from base.checkpoint.store import (
    MANIFEST,
    STATE,
    STEP,
    checkpoint_folder,
    checkpoints_in,
    read,
    read_manifest,
    write_joined,
)
from base.checkpoint.weights import (
    RECORD,
    find_checkpoint,
    read_record,
    read_weights,
    weights_and_origin,
)
from base.checkpoint.weights_file import (
    SUFFIXES,
    refuse_existing,
    safetensors_bytes,
    torch_bytes,
)
from base.config.command_line import Parser, run
from base.config.tree import leaves
from base.errors import CheckpointError, UsageError, nearest
from base.network.shapes import shape_text
from base.system.run_folder import locate, must_exist, newest_run_in
from logger.console import format_header, format_value, table
from logger.files import write_whole

EPILOG = """A FILE is a file of weights (.pt, .pth, .safetensors), a checkpoint or a run: its path
or any unique part of it (lr=1e-3).

exit codes: 0 success, valid, equal; 1 damaged, different, not written; 2 usage error"""


def main(arguments: Sequence[str]) -> int:
    """Run a command; return the exit code."""
    options = _parse(arguments)
    try:
        return _run_command(options)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UsageError(f"{error.filename}: {error.strerror}") from error


def _run_command(options: argparse.Namespace) -> int:
    if options.command == "inspect":
        print("\n\n".join(map(inspect, map(locate, options.files))))
        return 0
    if options.command == "verify":
        return verify([locate(path) for path in options.files])
    if options.command == "diff":
        return diff(*map(locate, options.files), weights=options.weights)
    if options.command == "join":
        return join(locate(options.checkpoint), options.out)
    return export(locate(options.file), options.out, options.ema, options.overwrite)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = Parser("python -m base.checkpoint", None, __doc__, EPILOG, formatter_class=layout)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    for name, text in (
        ("inspect", "show step, epoch, metrics, versions, sizes; names with shape and dtype"),
        ("verify", "compare hashes, for a checkpoint or for all checkpoints of a run"),
    ):
        add(name, text).add_argument("files", nargs="+", type=Path, metavar="FILE")
    both = add("diff", "compare two: names, shapes, largest difference; 1 if they differ")
    both.add_argument("files", nargs=2, type=Path, metavar="FILE")
    both.add_argument("--weights", action="store_true", help="compare only the weights")
    out = add("export", "write the weights, with the record of their data")
    out.add_argument("file", type=Path, metavar="FILE")
    out.add_argument("out", type=Path, metavar="OUT", help="*.safetensors, *.pt or *.pth")
    text = "averaged or trained weights (default: averaged, if the run has them)"
    out.add_argument("--ema", action=argparse.BooleanOptionalAction, default=None, help=text)
    out.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")

    joined = add("join", "write a checkpoint of several processes as one of a single process")
    joined.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    joined.add_argument("out", type=Path, metavar="OUT", help="a new folder")

    words = [word for word in arguments[:1] if not word.startswith("-")]
    if words and words[0] not in commands.choices:
        known = nearest(words[0], commands.choices) or f"; choose {', '.join(commands.choices)}"
        raise UsageError(f"{words[0]!r} is not a command{known}")
    return parser.parse_args(arguments)


def inspect(path: Path) -> str:
    """Describe a checkpoint, a file of weights, or the checkpoints of a run."""
    is_run = (path / "checkpoints").is_dir()
    folder = path if is_run else find_checkpoint(path)
    if folder is None:
        facts = {"file": path, "size": f"{path.stat().st_size:,} bytes"}
        facts |= {"data": _record_line(read_record(path))}
        return "\n".join([format_header(facts), *_names(read_weights(path))])
    if not (folder / MANIFEST).exists():
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
        "size": _size(manifest),
        "data": _record_line(data_of(manifest).get("record", {})),
    }
    parts = {name: _tensors(value) for name, value in state.items()}
    sizes = [f"{name} {_n_bytes(part):,}" for name, part in parts.items() if part]
    facts["tensors"] = f"{', '.join(sizes)} bytes"
    return "\n".join([format_header(facts), *_names(parts.get("model", {}))])


def _record_line(record: Mapping[str, Any]) -> str | None:
    """Return the data record in one line; None if it is empty."""
    parts = [f"{key} {json.dumps(value)}" for key, value in record.items()]
    shown = [part if len(part) <= 60 else f"{part[:57]}..." for part in parts]
    return ", ".join(shown) or None


def _names(tensors: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of the tensors, and a line with the totals."""
    rows = [(name, *_kind(value)) for name, value in tensors.items()]
    yield _table([("name", "shape", "dtype"), *rows])
    plain = [value for value in tensors.values() if isinstance(value, Tensor)]
    numbers = sum(value.numel() for value in plain)
    yield f"{len(plain):,} tensors, {numbers:,} numbers, {_n_bytes(tensors):,} bytes"


def _line(folder: Path) -> str:
    """Describe a checkpoint of a run in one line."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return f"  {error}"
    size, best = _size(manifest), ", best" * manifest["is_best"]
    about = f"epoch {manifest['epoch']}, {size}{best}, {_metrics(manifest, ('valid/',))}"
    return f"  {folder.name}  {about}"


def _size(manifest: Mapping[str, Any]) -> str:
    sizes = [about["bytes"] for about in manifest["files"].values()]
    return f"{sum(sizes):,} bytes" + (f" in {len(sizes)} files" if len(sizes) > 1 else "")


def _metrics(manifest: Mapping[str, Any], prefixes: tuple[str, ...]) -> str:
    known = manifest["metrics"].items()
    found = [f"{key} {format_value(key, each)}" for key, each in known if key.startswith(prefixes)]
    return ", ".join(found) or "-"


def _checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints below a path, the earliest first."""
    found = checkpoints_in(checkpoint_folder(path))
    if not found and (newest := newest_run_in(path)):
        found = checkpoints_in(checkpoint_folder(newest))
    if not found:
        raise UsageError(f"{path}: holds no checkpoint (a folder like step-00000480)")
    return found[::-1]


def verify(paths: Sequence[Path]) -> int:
    """Print whether each checkpoint is valid; return 1 if any is damaged."""
    n_damaged = 0
    for path in paths:
        folder = path.parent if path.name == STATE else path
        is_one = bool(STEP.fullmatch(folder.name)) or (folder / MANIFEST).exists()
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
    """Print the differences between two checkpoints or sets of weights; return 1 if any."""
    folders = [find_checkpoint(path) for path in (first, second)]
    if None in folders or weights:
        ours, theirs = (dict(read_weights(path)) for path in (first, second))
    else:
        ours, theirs = (dict(leaves(read(folder))) for folder in folders if folder)
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys([*ours, *theirs]):
        here, there = (" ".join(_kind(d[name])) if name in d else "-" for d in (ours, theirs))
        if name in ours and name in theirs and is_equal(ours[name], theirs[name]):
            continue
        rows.append((name, here, there, largest_difference(ours.get(name), theirs.get(name))))
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


def _tensors(state: Any) -> dict[str, Tensor]:
    return {name: leaf for name, leaf in leaves(state) if isinstance(leaf, Tensor)}


def export(source: Path, out: Path, ema: bool | None, overwrite: bool) -> int:
    """Write the weights of a file, a checkpoint or a run, with the record of their data."""
    if out.suffix not in SUFFIXES:
        raise UsageError(f"{out}: the name must end in {', '.join(SUFFIXES)}")
    has_metadata = out.suffix == ".safetensors"
    beside = None if has_metadata else out.with_name(f"{out.name}.json")
    for path in filter(None, (out, beside)):
        refuse_existing(path, overwrite)
    weights, whose = weights_and_origin(source, ema)
    record = read_record(source)
    if has_metadata:
        about = {RECORD: json.dumps(record)} if record else {}
        content = safetensors_bytes(weights, about, out)
    else:
        content = torch_bytes(weights, out)
    refuse_existing(out, overwrite)
    try:
        if beside is not None and record:
            write_whole(beside, json.dumps(record, indent=2).encode() + b"\n")
        elif beside is not None:
            beside.unlink(missing_ok=True)  # of the replaced weights
        write_whole(out, content)
    except OSError as error:
        raise CheckpointError(f"{out}: not written: {error.strerror or error}") from error
    also = f"; record of the data: {beside}" if record and beside is not None else ""
    print(f"{out}: {whose}, {len(weights)} tensors{also}")
    return 0


def join(source: Path, out: Path) -> int:
    """Write the state of a checkpoint, of any number of processes, into one file."""
    if out.exists():
        raise UsageError(f"{out}: already exists; choose another name")
    if not must_exist(out.parent).is_dir():
        raise UsageError(f"{out.parent}: this is not a folder")
    write_joined(source, out)
    print(f"{out}: the checkpoint {source} in one file")
    return 0


def _kind(value: Any) -> tuple[str, str]:
    """Return the shape and dtype of a tensor, or the text and type of plain data."""
    if not isinstance(value, Tensor):
        return repr(value)[:40], type(value).__name__
    return shape_text(value), str(value.dtype).removeprefix("torch.")


def _n_bytes(tensors: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in tensors.values() if isinstance(value, Tensor))


def _table(rows: Sequence[Sequence[str]]) -> str:
    return table([[cell if cell.isprintable() else repr(cell) for cell in row] for row in rows])


if __name__ == "__main__":
    run(main)
