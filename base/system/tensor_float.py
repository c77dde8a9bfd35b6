"""TF32 on Nvidia's GPUs from Ampere on: float32 products with 10 bits of mantissa instead of 23.

torch's own defaults differ: convolutions and recurrent layers use it, matrix products do not.
"""

from __future__ import annotations

from typing import Any

import torch


def allow_tf32(in_products: bool, in_convolutions: bool) -> None:
    """Allow TF32, or forbid it, for this process.

    torch has two interfaces for this, and its getters raise if they contradict each other. The
    older one comes first, since it sets some values of the newer one back to their defaults.
    """
    torch.set_float32_matmul_precision("high" if in_products else "highest")
    torch.backends.cudnn.allow_tf32 = in_convolutions
    torch.backends.cuda.matmul.fp32_precision = "tf32" if in_products else "ieee"
    cudnn: Any = torch.backends.cudnn
    for layers in (cudnn.conv, cudnn.rnn):
        layers.fp32_precision = "tf32" if in_convolutions else "ieee"
