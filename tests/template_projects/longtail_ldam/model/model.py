import torch
import torch.nn as nn
import torch.nn.functional as F
from base import BaseModel


class NormedLinear(nn.Module):
    def __init__(self, in_features, out_features):
        super(NormedLinear, self).__init__()
        self.weight = nn.Parameter(torch.Tensor(in_features, out_features))
        self.weight.data.uniform_(-1, 1).renorm_(2, 1, 1e-5).mul_(1e5)

    def forward(self, x):
        return F.normalize(x, dim=1).mm(F.normalize(self.weight, dim=0))


class CosineNet(BaseModel):
    def __init__(self, num_classes=10, dim=10):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(dim, 32), nn.ReLU(), nn.Linear(32, 16))
        self.linear = NormedLinear(16, num_classes)

    def _hook_before_iter(self):
        assert self.training, "_hook_before_iter should be called at training time only"

    def forward(self, x):
        return self.linear(self.backbone(x))
