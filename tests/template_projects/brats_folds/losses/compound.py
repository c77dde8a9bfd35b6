import torch
from torch import nn

from .dice import SoftDiceLoss


def softmax_helper(x):
    return torch.softmax(x, 1)


class DC_and_CE_loss(nn.Module):
    def __init__(self, weight_ce=1, weight_dice=1):
        super(DC_and_CE_loss, self).__init__()
        self.weight_dice = weight_dice
        self.weight_ce = weight_ce
        self.ce = nn.CrossEntropyLoss()
        self.dc = SoftDiceLoss(apply_nonlin=softmax_helper, do_bg=False)

    def forward(self, net_output, target):
        return self.weight_ce * self.ce(net_output, target) + self.weight_dice * self.dc(
            net_output, target
        )
