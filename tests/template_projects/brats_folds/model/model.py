import torch
import torch.nn as nn
from base import BaseModel


class VNetSmall(BaseModel):
    def __init__(self, in_channels, n_class, width=8):
        super().__init__()
        self.enc = self.block(in_channels, width)
        self.down = nn.Conv3d(width, 2 * width, 2, stride=2)
        self.mid = self.block(2 * width, 2 * width)
        self.up = nn.ConvTranspose3d(2 * width, width, 2, stride=2)
        self.dec = self.block(2 * width, width)
        self.out = nn.Conv3d(width, n_class, 1)

    @staticmethod
    def block(n_in, n_out):
        return nn.Sequential(
            nn.Conv3d(n_in, n_out, 3, padding=1), nn.InstanceNorm3d(n_out), nn.LeakyReLU(1e-2)
        )

    def forward(self, x):
        skip = self.enc(x)
        x = self.up(self.mid(self.down(skip)))
        return self.out(self.dec(torch.cat([x, skip], 1)))
