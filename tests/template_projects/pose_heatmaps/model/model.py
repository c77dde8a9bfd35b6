import torch.nn as nn
import torch.nn.functional as F


class Residual(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x):
        return F.relu(self.bn1(self.conv1(x))) + self.skip(x)


class Hourglass(nn.Module):
    def __init__(self, num_joints, width=12):
        super().__init__()
        self.stem = Residual(1, width)
        self.low = nn.Sequential(
            nn.MaxPool2d(2), Residual(width, width), nn.Upsample(scale_factor=2)
        )
        self.heatmap = nn.Conv2d(width, num_joints, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.heatmap(x + self.low(x))
