"""Creates, finds and orders the folders of runs."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from base.errors import TrainingError, UsageError, disk_error, nearest, why
from base.system.places import PROJECT
from base.system.run_index import STAMP as STAMP
from base.system.run_index import numbered_runs
from base.system.trial import note_folder, stamp_of_trial
from logger.files import read_file, write_whole

LOG = logging.getLogger("kindling")
SWEEPS, SWEEP = "sweeps", "sweep.json"  # saved/NAME/sweeps/TIME/sweep.json: not a run
SAVE_DIR = "saved"
EXPORTED = (".pt2", ".onnx", ".safetensors")  # files of export.py, which hold no run
BEFORE_TRAINING = frozenset((
    STAMP, "LOCK", "bad_samples.csv", "checkpoints", "config.yaml", "data.json", "env.txt",
    "log.txt", "parameters.csv", "split.csv", "split.npz",
))  # fmt: skip
"""The names in a run's folder before the first step."""
Order = tuple[bool, int, str, str]


def create_run_folder(
    save_dir: Path | str,
    name: str,
    now: datetime | None = None,
    *,
    settings: str = "",
    changed: Mapping[str, Any] | None = None,
) -> Path:
    """Create ``save_dir/name/YYYYMMDD-HHMMSS_settings`` for one run.

    If it exists, ``_2``, ``_3``, ... is added. ``run.json`` there says that the run is running.

    Args:
        settings: the changed settings in short, see `base.config.short_settings`.
        changed: the same in full, by dotted key.
    """
    now = now or datetime.now()
    parent, folder = Path(save_dir) / name, None
    above = [each for each in (parent, *parent.parents) if not _exists(each)]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # Clocks jump: runs are ordered by a number.
        number = 1 + max((order[1] for order, *_ in _runs(Path(save_dir))), default=0)
        stamp = {"number": number, "started": now.astimezone(timezone.utc).isoformat()}
        stamp |= stamp_of_trial()
        folder = _make_new(parent / "_".join(filter(None, [f"{now:%Y%m%d-%H%M%S}", settings])))
        _write_stamp(folder, {**stamp, "changed": dict(changed or {}), "state": "running"})
    except OSError as error:
        remove_empty([*([folder] if folder else []), *above])
        text = f"{parent}: cannot create the folder of a run: {error.strerror}"
        raise disk_error(error, text, UsageError) from error
    note_folder(folder)
    return folder


def read_stamp(folder: Path) -> dict[str, Any]:
    """Return what ``run.json`` says of a run; nothing if it is missing or damaged.

    number   its place among all runs of its ``save_dir``
    started  the time of its start
    changed  the settings that the command line changed, by dotted key
    state    running, finished, failed or interrupted; a killed process leaves ``running``
    resumed  the time of its last resume
    job      the last job that trained it, see `current_job`
    trial    the trial of a sweep that it is, as ``digits/sweeps/20261129-064611#3``
    """
    try:
        stamp = json.loads(read_file(folder / STAMP))
    except (OSError, ValueError, RecursionError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def update_stamp(folder: Path, **entries: Any) -> None:
    """Change entries of ``run.json``. A failure is a warning: a run can do without it."""
    stamp = read_stamp(folder)
    if all(name in stamp and stamp[name] == value for name, value in entries.items()):
        return
    try:
        if folder.is_dir():  # a deleted folder is not created again
            _write_stamp(folder, {**stamp, **entries})
    except OSError as error:
        LOG.warning("%s: %s: not recorded: %s", folder / STAMP, ", ".join(entries), why(error))


def _write_stamp(folder: Path, stamp: Mapping[str, Any]) -> None:
    write_whole(folder / STAMP, json.dumps(stamp).encode() + b"\n")


def current_job() -> str | None:
    """Return the job that this process belongs to, which stays the same when it is started again.

    It is that of SLURM, or the ``--rdzv-id`` of torchrun; None without either.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    return os.environ.get("SLURM_JOB_ID") or (None if run_id == "none" else run_id)


def note_job(folder: Path) -> None:
    """Write the current job into the folder of a run, so that `find_newest_run` prefers it."""
    job = current_job()
    if job is not None:
        update_stamp(folder, job=job)


def remove_if_not_started(folder: Path) -> None:
    """Remove the folder of a run without a completed step.

    It is kept if it contains anything else, such as a user's file.
    """
    created = [folder / "checkpoints", folder]
    inside = [path for each in created if each.is_dir() for path in each.iterdir()]
    names = {path.name for path in inside if not path.name.startswith("log-rank")}
    if names <= BEFORE_TRAINING:
        for path in inside:
            with contextlib.suppress(OSError):
                path.unlink()
        remove_empty([*created, folder.parent])


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove the empty folders among these."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def check_run_folder(folder: Path) -> None:
    """Check that the folder of a run still exists.

    Raises:
        TrainingError: it was deleted or renamed.
    """
    if not folder.is_dir():
        raise missing_folder_error(folder)


def missing_folder_error(folder: Path) -> TrainingError:
    """Return the error of a run whose folder no longer exists."""
    text = "this run's folder was deleted or renamed during training, so nothing more can be saved"
    return TrainingError(f"{folder}: {text}; if it was renamed, resume it: python train.py -r PATH")


def find_newest_run(
    save_dir: Path | str, name: str | None = None, job: str | None = None
) -> Path | None:
    """Return the newest run with a checkpoint, of this name or of any name.

    Args:
        job: the job whose runs come before those of others, see `current_job`.
    """
    runs = sorted(_runs(Path(save_dir), name, job), reverse=True)
    for place, (_, parent, own) in enumerate(runs):
        folder = parent / own
        if any((folder / "checkpoints").glob("step-*")):
            if place:
                newest = runs[0][1] / runs[0][2]
                LOG.warning("%s holds no checkpoint; the newest run with one is %s", newest, folder)
            return folder
    if runs:
        where = Path(save_dir) / (name or "")
        LOG.warning("%s: none of its %d runs holds a checkpoint", where, len(runs))
    return None


def run_folder_of(path: Path | str) -> Path:
    """Return the folder of the run that contains a path, such as a checkpoint or state.pt."""
    path = must_exist(path)
    for folder in (path, *path.parents, *path.absolute().parents):
        if is_run(folder):
            inside = path.absolute().relative_to(folder.absolute()).parts
            if not inside or inside[0] == "checkpoints":
                return folder
    if is_sweep(path):
        text = "a sweep, not a run: its table.csv has the folders of its trials, and"
        command = f"python train.py -r {shlex.quote(str(path))}"
        raise UsageError(f"{path}: {text} `{command}` resumes it")
    if path.suffix.lower() in EXPORTED and path.is_file():
        text = (
            "an exported model, which is loaded without Kindling: MODEL_CARD.md beside it shows how"
        )
        raise UsageError(f"{path}: {text}; -r takes a run, such as {SAVE_DIR}/digits")
    raise UsageError(
        f"{path}: not a run: give its folder, such as saved/digits/20261129-064611_seed=1"
    )


def find_run(path: Path | str, save_dir: Path | str = SAVE_DIR) -> Path:
    """Return a path of a run, or within a run, unchanged; for other folders, their newest run.

    ``saved/digits`` selects the newest run of that name, ``saved`` the newest of all. A text that
    is no path selects a run of ``save_dir``, see `locate`.

    Raises:
        UsageError: the path does not exist, or contains no run with a checkpoint.
    """
    path = locate(path, save_dir)
    try:
        run_folder_of(path)
    except UsageError:
        newest = newest_run_in(path)
        if newest is None:
            raise
        return newest
    return path


def locate(path: Path | str, save_dir: Path | str = SAVE_DIR) -> Path:
    """Return the path if it exists, or else the one run that has this text in its path.

    ``lr=1e-3`` selects ``saved/digits/20261129-064611_lr=1e-3``; so does ``digits/20261129``, and
    ``064611/checkpoints/step-00000220`` selects a checkpoint of it. A run whose path ends with
    the text comes before others, and so does one of which it is a whole setting: ``lr=1e-3``
    selects ``..._lr=1e-3`` even if there is ``..._max_lr=1e-3``.

    Raises:
        UsageError: there is none, or there are several.
    """
    if _exists(Path(path)):
        return Path(path)
    words = Path(path).parts
    n_words = words.index("checkpoints", 1) if "checkpoints" in words[1:] else len(words)
    part, inside = Path(*words[:n_words]).as_posix(), words[n_words:]
    parents = {parent: parent.as_posix() for parent in folders_in(Path(save_dir))}
    # Texts, of which few become paths: ten thousand `Path` take longer than the disk.
    runs = [f"{text}/{own}" for parent, text in parents.items() for own in _folder_names(parent)]
    n_above = len(Path(save_dir).as_posix()) - len(Path(save_dir).name)  # not a run's own path
    matches = [text for text in runs if part in text[n_above:] or text.startswith(part)]
    matches = [text for text in matches if is_run(Path(text))]
    matches = [text for text in matches if f"/{text}".endswith(f"/{part}")] or matches
    matches = [text for text in matches if _has_whole(text, part)] or matches
    if len(matches) == 1:
        return must_exist(Path(matches[0]).joinpath(*inside))
    if matches:
        shown = ", ".join(sorted(matches)[:5])
        more = f" and {len(matches) - 5} more" if len(matches) > 5 else ""
        newest = Path(save_dir) / part
        hint = f"; the newest of that name is {newest}" if newest.is_dir() else ""
        raise UsageError(
            f"{path}: {len(matches)} runs match: {shown}{more}; give more of one{hint}"
        )
    runs = [text for text in runs if is_run(Path(text))]
    if len(words) == 1 and runs:
        known = {piece for text in runs for piece in re.split("[/_]", text)}
        known |= {each.name for each in Path().iterdir()}
        raise UsageError(
            f"{path}: no such file or folder, and no run in {save_dir} has this in its path"
            f"{nearest(part, known)}"
        )
    return must_exist(path)


def _has_whole(path: str, part: str) -> bool:
    """Return whether a part of a run's path is one of its settings, or several in a row."""
    settings = path.rpartition("/")[2].partition("_")[2]
    listed, wanted = (re.sub("(=[^_]*)_", r"\1/", text) for text in (settings, part))
    return f"/{wanted}/" in f"/{listed}/"


def folders_of_runs(save_dir: Path, name: str | None = None) -> list[Path]:
    """Return the folders of all runs of one name, or of all names."""
    parents = [save_dir / name] if name else folders_in(save_dir)
    return [folder for parent in parents for folder in folders_in(parent) if is_run(folder)]


def newest_run_in(path: Path) -> Path | None:
    """Return the newest run in a folder of runs of one or all names; None for other folders."""
    path = path if path.name not in ("", "..") else path.resolve()
    if any(map(is_run, folders_in(path))):
        return find_newest_run(path.parent, path.name)
    holds_names = any(is_run(folder) for name in folders_in(path) for folder in folders_in(name))
    return find_newest_run(path) if holds_names else None


def is_sweep(path: Path | str) -> bool:
    """Return whether a path is the folder of a sweep, which holds the record of its trials."""
    return _exists(Path(path) / SWEEP)


def must_exist(path: Path | str) -> Path:
    """Return the path if it exists.

    Raises:
        UsageError: it does not exist. The message suggests a similar name.
    """
    path = Path(path)
    missing = path.absolute()
    if _exists(missing):
        return path
    while not _exists(missing.parent):
        missing = missing.parent
    folder = missing.parent
    known = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    hint = nearest(missing.name, known)
    raise UsageError(f"{path}: no such file or folder: {folder} has no {missing.name!r}{hint}")


def write_environment(folder: Path) -> None:
    """Write ``env.txt`` with versions, devices and the git commit."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    lines = {
        "command": shlex.join([sys.executable, *sys.argv]),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "git": _git_state(PROJECT),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": installed_version("torchvision") or "none",
        "numpy": installed_version("numpy") or "none",
        "cuda": torch.version.cuda or "none",
        "cudnn": torch.backends.cudnn.version() or "none",
        "devices": ", ".join(gpus) or "cpu",
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    text = "".join(f"{name:<12} {value}\n" for name, value in lines.items())
    write_whole(folder / "env.txt", text.encode())


def installed_version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _make_new(folder: Path) -> Path:
    """Create a new folder. mkdir fails for all processes but the first."""
    for suffix in itertools.chain([""], (f"_{number}" for number in itertools.count(2))):
        with contextlib.suppress(FileExistsError):
            made = folder.with_name(folder.name + suffix)
            made.mkdir()
            break
    return made


def _runs(
    save_dir: Path, name: str | None = None, job: str | None = None
) -> Iterator[tuple[Order, Path, str]]:
    """Yield the runs of one name or of all names: a sort key, the folder above, its own name."""
    for parent in [save_dir / name] if name else folders_in(save_dir):
        for own, one in numbered_runs(parent, read_stamp):
            if own == SWEEPS and not is_run(parent / own):
                continue
            is_of_job = job is not None and one.number > 0 and one.job == job
            yield (is_of_job, one.number, one.started, own), parent, own


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run, of any version."""
    # Not by `Path`, which would take longer than the disk among thousands of runs.
    return os.path.isfile(f"{folder}/{STAMP}") or os.path.isdir(f"{folder}/checkpoints")  # noqa: PTH112, PTH113


def folders_in(parent: Path) -> Iterator[Path]:
    """Yield the folders in a folder; none if there is no such folder."""
    return (parent / name for name in _folder_names(parent))


def _folder_names(parent: Path) -> Iterator[str]:
    if parent.is_dir():
        with os.scandir(parent) as entries:
            for entry in entries:
                if entry.is_dir():
                    yield entry.name


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, not readable, or not a path
        return False


def _git_state(folder: Path) -> str:
    """Return the commit of the code and the number of changed files."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = len(_git(folder, "status", "--porcelain").splitlines())
    except (OSError, subprocess.SubprocessError):
        return "none"
    return f"{commit} ({changed} files changed)" if changed else f"{commit} (clean)"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()
