"""Redirects torchvision's downloads in a dry run to a temporary folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from base.system.deferred_files import waiting_files

HOME = "TORCH_HOME"  # read by torch.hub


def is_from(named: Any, package: str) -> bool:
    """Return whether a class or function is from a package of torchvision."""
    return (getattr(named, "__module__", None) or "").startswith(f"torchvision.{package}")


def with_trial_root(named: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a data set, which in a dry run downloads to a temporary folder.

    Files in its folder are not downloaded again.
    """
    files = waiting_files()
    is_trial = files is not None and files.is_trial and args.get("download")
    if files is None or not is_trial or not is_from(named, "datasets"):
        return dict(args)
    with suppress(RuntimeError, OSError):
        named(**{**args, "download": False})
        return {**args, "download": False}
    return {**args, "root": str(files.temporary_folder())}


@contextmanager
def trial_weights(named: Any) -> Iterator[None]:
    """Download the weights of torchvision's models to a temporary folder in a dry run."""
    files = waiting_files()
    if files is None or not files.is_trial or not is_from(named, "models"):
        yield
        return
    from torch import hub

    before, folder = os.environ.get(HOME), files.temporary_folder()
    there = folder / "hub" / "checkpoints"
    there.mkdir(parents=True)
    for path in (Path(hub.get_dir()) / "checkpoints").glob("*"):
        with suppress(OSError):  # without links, it is downloaded again
            (there / path.name).symlink_to(path.resolve())
    os.environ[HOME] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(HOME)
        if before is not None:
            os.environ[HOME] = before
