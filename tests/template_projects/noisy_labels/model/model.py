import torch.nn as nn
from base import BaseModel


class PreActMLP(BaseModel):
    def __init__(self, num_classes=10):
        super(PreActMLP, self).__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 48),
            nn.BatchNorm1d(48),
            nn.ReLU(),
            nn.Linear(48, 48),
            nn.ReLU(),
            nn.Linear(48, num_classes),
        )

    def forward(self, x):
        return self.net(x)
