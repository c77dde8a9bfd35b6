import torch.nn as nn

from base import BaseModel


class Generator(nn.Module):
    def __init__(self, nf):
        super().__init__()
        self.net = nn.Sequential(
            nn.ReflectionPad1d(2),
            nn.Conv1d(1, nf, 5),
            nn.InstanceNorm1d(nf),
            nn.ReLU(),
            nn.Conv1d(nf, nf, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(nf, 1, 1),
        )

    def forward(self, x):
        return x + self.net(x)


class Discriminator(nn.Module):
    def __init__(self, nf):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(1, nf, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv1d(nf, nf, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv1d(nf, 1, 3, 1, 1),
        )

    def forward(self, x):
        return self.net(x)


class CycleGAN(BaseModel):
    def __init__(self, nf=8):
        super().__init__()
        self.G_AB, self.G_BA = Generator(nf), Generator(nf)
        self.D_A, self.D_B = Discriminator(nf), Discriminator(nf)
