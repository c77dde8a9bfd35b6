"""BatchNorm layers whose statistics cover the batches of all processes."""

from __future__ import annotations

import torch
from torch import nn


def synchronize_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace BatchNorm layers by torch's SyncBatchNorm on CUDA, where alone it works.

    Parameters and buffers stay the same objects under the same names.
    """
    if device.type != "cuda":
        return model
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return converted
