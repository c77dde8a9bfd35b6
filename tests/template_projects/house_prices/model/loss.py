import torch
import torch.nn as nn


class PinballLoss(nn.Module):
    """One output column for each quantile of the one target."""

    def __init__(self, quantiles):
        super(PinballLoss, self).__init__()
        self.register_buffer("quantiles", torch.tensor(quantiles))

    def forward(self, output, target):
        error = target.unsqueeze(1) - output
        return torch.max(self.quantiles * error, (self.quantiles - 1) * error).mean()
