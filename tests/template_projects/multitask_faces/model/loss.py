import torch
import torch.nn as nn
import torch.nn.functional as F


class MultiTaskLoss(nn.Module):
    """Terms weighted by their learned uncertainty"""

    def forward(self, outputs, targets, log_vars=None, reduction="mean"):
        age = F.smooth_l1_loss(outputs["age"], targets["age"], reduction=reduction)
        gender = F.binary_cross_entropy_with_logits(
            outputs["gender"], targets["gender"], reduction=reduction
        )
        if log_vars is None:
            return {"age": age, "gender": gender}
        return {
            "age": torch.exp(-log_vars[0]) * age,
            "gender": torch.exp(-log_vars[1]) * gender,
            "uncertainty": log_vars.sum(),
        }
