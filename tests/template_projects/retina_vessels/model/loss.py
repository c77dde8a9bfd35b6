import torch
import torch.nn as nn
import torch.nn.functional as F


class DiceLoss(nn.Module):
    def __init__(self, smooth=1.0):
        super(DiceLoss, self).__init__()
        self.smooth = smooth

    def forward(self, logits, targets):
        probs = torch.sigmoid(logits).view(-1)
        targets = targets.view(-1)
        intersection = (probs * targets).sum()
        return 1 - (2.0 * intersection + self.smooth) / (probs.sum() + targets.sum() + self.smooth)


class DiceBCELoss(nn.Module):
    def __init__(self, weight=None, size_average=True, smooth=1.0):
        super(DiceBCELoss, self).__init__()
        self.dice = DiceLoss(smooth)

    def forward(self, inputs, targets):
        return F.binary_cross_entropy_with_logits(inputs, targets) + self.dice(inputs, targets)
