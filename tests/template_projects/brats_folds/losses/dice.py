import torch
from torch import nn


def sum_tensor(inp, axes):
    for ax in sorted(axes, reverse=True):
        inp = inp.sum(int(ax))
    return inp


class SoftDiceLoss(nn.Module):
    def __init__(self, apply_nonlin=None, do_bg=True, smooth=1.0):
        super(SoftDiceLoss, self).__init__()
        self.do_bg, self.apply_nonlin, self.smooth = do_bg, apply_nonlin, smooth

    def forward(self, x, y):
        if self.apply_nonlin is not None:
            x = self.apply_nonlin(x)
        y_onehot = torch.zeros_like(x).scatter_(1, y.unsqueeze(1), 1)
        axes = list(range(2, x.dim()))
        tp = sum_tensor(x * y_onehot, axes)
        dc = (2 * tp + self.smooth) / (
            sum_tensor(x, axes) + sum_tensor(y_onehot, axes) + self.smooth
        )
        if not self.do_bg:
            dc = dc[:, 1:]
        return -dc.mean()
