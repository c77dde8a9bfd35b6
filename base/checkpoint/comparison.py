"""Comparison of saved values, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_equal(ours: Any, theirs: Any) -> bool:
    """Return whether two tensors have the same bits, or two plain values the same text."""
    if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)):
        return type(ours) is type(theirs) and repr(ours) == repr(theirs)
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    parts = (each.to_dense().contiguous().reshape(-1).view(torch.uint8) for each in (ours, theirs))
    return torch.equal(*parts)


def largest_difference(ours: Any, theirs: Any) -> str:
    """Return the largest absolute difference as text; "-" if the values cannot be subtracted."""
    if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)) or ours.shape != theirs.shape:
        return "-"
    if ours.numel() == 0:
        return "0"
    wide = torch.complex128 if ours.is_complex() or theirs.is_complex() else torch.float64
    return f"{(ours.to_dense().to(wide) - theirs.to_dense().to(wide)).abs().max().item():.6g}"
