import torch.nn as nn

from base import BaseModel


class PatchAE(BaseModel):
    def __init__(self, code):
        super().__init__()
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, code))
        self.decode = nn.Sequential(nn.Linear(code, 32), nn.ReLU(), nn.Linear(32, 64))

    def forward(self, patch):
        return self.decode(self.encode(patch)).view_as(patch)
