"""Encodes weights as files: ``.safetensors`` with metadata, and ``.pt`` of plain tensors."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.checkpoint.state_file import plain_copy
from base.errors import CheckpointError, UsageError
from base.system.run_folder import must_exist

SUFFIXES = (".safetensors", ".pt", ".pth")


def refuse_existing(out: Path, overwrite: bool) -> None:
    """Check that a file may be written.

    Raises:
        UsageError: its folder does not exist, or the file does.
    """
    if not must_exist(out.parent).is_dir():
        raise UsageError(f"{out.parent}: this is not a folder")
    if out.is_dir() or (out.exists() and not overwrite):
        advice = "" if out.is_dir() else ", or add --overwrite"
        raise UsageError(f"{out}: already exists; choose another name{advice}")


def torch_bytes(content: Mapping[str, Any], out: Path) -> bytes:
    """Return the bytes of a ``.pt`` file of tensors and plain data.

    Args:
        out: the file, for error messages.
    """
    buffer = io.BytesIO()
    torch.save(plain_copy(content, str(out), {}), buffer)
    return buffer.getvalue()


def safetensors_bytes(weights: Mapping[str, Any], metadata: Mapping[str, str], out: Path) -> bytes:
    """Return the bytes of a ``.safetensors`` file. Shared weights are written under each name.

    Args:
        out: the file, for error messages.

    Raises:
        CheckpointError: a weight is not a tensor.
    """
    from safetensors.torch import save

    odd = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(
            f"{out}: {odd[0]} is not a tensor, which safetensors cannot hold: use .pt"
        )
    separate = {name: value.clone().contiguous() for name, value in weights.items()}
    content: bytes = save(separate, {"format": "pt", **metadata})
    return content
