import torch.nn as nn

from base import BaseModel


class Siamese(BaseModel):
    def __init__(self, embedding):
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(12, embedding["hidden"]),
            nn.LeakyReLU(),
            nn.Linear(embedding["hidden"], embedding["dim"]),
        )

    def forward(self, pair):
        left, right = pair
        return self.embed(left), self.embed(right)
