"""Deterministic algorithms, and the variable without which cuBLAS is not deterministic."""

from __future__ import annotations

import os

import torch

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC = (":4096:8", ":16:8")
"""The values that torch accepts: the size and the number of cuBLAS's buffers. The first is faster,
and takes about 24 MB of the GPU's memory; the second takes less."""


def use_deterministic_algorithms(is_on: bool) -> None:
    """Switch torch's deterministic algorithms on or off. Call it before CUDA is used.

    cuBLAS reads its variable at its first product, and so does torch. A value of the user's stays.
    """
    if is_on:
        os.environ.setdefault(VARIABLE, DETERMINISTIC[0])
    if torch.are_deterministic_algorithms_enabled() != is_on:
        torch.use_deterministic_algorithms(is_on)  # takes a second or two


def why_not_deterministic(device: torch.device) -> str | None:
    """Return why cuBLAS is not deterministic on a device, and what to do; None if it is.

    torch checks the variable at the first matrix product of a process, and refuses all later ones
    too; so one product tells.
    """
    if device.type != "cuda" or not torch.are_deterministic_algorithms_enabled():
        return None
    matrix = torch.ones(1, 1, device=device)
    try:
        matrix @ matrix
    except RuntimeError as error:
        if VARIABLE not in str(error):
            raise
        value = os.environ.get(VARIABLE, "")
        if value in DETERMINISTIC:
            text = (
                f"this process has computed on the GPU before {VARIABLE} was set: start a new one"
            )
            return f"{text} (restart the notebook's kernel), or set {VARIABLE}={value} before it"
        return (
            f"cuBLAS is not deterministic with {VARIABLE}={value}: unset it, or set "
            f"{' or '.join(DETERMINISTIC)}"
        )
    return None
