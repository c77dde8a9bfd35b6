import torch
import torch.nn as nn
from base import BaseModel


class FaceNet(BaseModel):
    def __init__(self, backbone, heads):
        super().__init__()
        layers, n = [], 1
        for c in backbone["channels"]:
            layers += [nn.Conv2d(n, c, 3, stride=2, padding=1), nn.BatchNorm2d(c), nn.ReLU()]
            n = c
        self.backbone = nn.Sequential(*layers, nn.Flatten())
        self.heads = nn.ModuleDict({name: nn.Linear(n * 9, 1) for name in heads})
        self.log_vars = nn.Parameter(torch.zeros(len(heads)))  # Kendall et al.

    def forward(self, x):
        h = self.backbone(x)
        return {name: head(h).squeeze(1) for name, head in self.heads.items()}
