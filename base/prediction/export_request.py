"""What to export, and where to; checked before torch is imported."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from base.errors import UsageError, nearest

GRAPHS = (".pt2", ".onnx")
WEIGHTS = (".safetensors", ".pt", ".pth")


@dataclass
class ExportRequest:
    """What to export, and where to."""

    out: Path
    preprocessing: bool = False
    module: str | None = None
    input_shape: Sequence[int] | None = None
    opset: int | None = None
    overwrite: bool = False

    @property
    def is_graph(self) -> bool:
        """Whether the file holds a graph, and not only weights."""
        return self.out.suffix in GRAPHS

    @classmethod
    def from_options(cls, options: Any) -> ExportRequest:
        """Return the request of a command line, checked as far as possible without the run."""
        names = [each.name for each in fields(cls)]
        request = cls(**{name: getattr(options, name) for name in names})
        request.check()
        return request

    def check(self) -> None:
        """Check what can be checked without the run.

        Raises:
            UsageError: the file cannot be written there, or options do not suit its format.
        """
        known = (*GRAPHS, *WEIGHTS)
        suffix = self.out.suffix
        if self.out.is_dir():
            raise UsageError(f"-o {self.out}: this is a folder; add a name: {self.out}/model.pt2")
        if suffix not in known:
            hint = nearest(suffix, known) if suffix else ""
            raise UsageError(f"-o {self.out}: the name must end in {', '.join(known)}{hint}")
        if not self.out.parent.is_dir():
            raise UsageError(f"-o {self.out}: there is no folder {self.out.parent}; make it first")
        if self.out.exists() and not self.overwrite:
            text = "already exists; choose another name, or add --overwrite"
            raise UsageError(f"-o {self.out}: {text}")
        if not os.access(self.out.parent, os.W_OK):
            raise UsageError(f"-o {self.out}: {self.out.parent.resolve()} is not writable")
        if self.opset is not None and suffix != ".onnx":
            raise UsageError(f"--opset is for .onnx, not for {suffix}")
        if self.preprocessing and not self.is_graph:
            raise UsageError(f"--preprocessing needs a graph, .pt2 or .onnx, not {suffix}")
        if suffix == ".onnx":
            need_onnx()


def need_onnx() -> None:
    """Check that the packages which write ONNX are installed.

    Raises:
        UsageError: names those that are not.
    """
    packages = ("onnx", "onnxscript")
    missing = [name for name in packages if not _is_installed(name)]
    if missing:
        text = f"writing ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}"
        raise UsageError(f"{text}, or pip install -r requirements-extra.txt")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # blocked in sys.modules
        return False
