import torch.nn.functional as F
from torch import nn


class ContrastiveLoss(nn.Module):
    def __init__(self, margin=2.0):
        super().__init__()
        self.margin = margin

    def forward(self, output, target):
        distance = F.pairwise_distance(*output)
        apart = F.relu(self.margin - distance)
        return (target * distance**2 + (1 - target) * apart**2).mean()
