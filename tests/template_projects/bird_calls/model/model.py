import torch.nn as nn

from base import BaseModel
from model.modules.blocks import CallBlock


class CallNet(BaseModel):
    def __init__(self, n_bands, channels, n_classes):
        super().__init__()
        sizes = [n_bands] + channels
        self.blocks = nn.ModuleList(CallBlock(a, b) for a, b in zip(sizes, sizes[1:]))
        self.head = nn.Linear(channels[-1], n_classes)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(-1))
