import torch
from torch import nn


def double_conv(n_in, n_out):
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, padding=1),
        nn.BatchNorm2d(n_out),
        nn.ReLU(inplace=True),
        nn.Conv2d(n_out, n_out, 3, padding=1),
        nn.BatchNorm2d(n_out),
        nn.ReLU(inplace=True),
    )


class TinyUNet(nn.Module):
    """No BaseModel here: torch's own will do."""

    def __init__(self, in_channels, n_classes, width):
        super(TinyUNet, self).__init__()
        self.down = double_conv(in_channels, width)
        self.bottom = double_conv(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.merge = double_conv(2 * width, width)
        self.head = nn.Conv2d(width, n_classes, 1)

    def forward(self, x):
        skip = self.down(x)
        x = self.up(self.bottom(nn.functional.max_pool2d(skip, 2)))
        return self.head(self.merge(torch.cat([skip, x], dim=1)))
