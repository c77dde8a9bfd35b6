import torch
import torch.nn as nn
import torch.nn.functional as F


def cross_entropy(output, target, M=3):
    return F.cross_entropy(output, target)


class elr_loss(nn.Module):
    """Early-learning regularisation: what the model said of each sample is remembered by index"""

    def __init__(self, num_examp, num_classes=10, beta=0.3, lambd=3):
        super(elr_loss, self).__init__()
        self.num_classes = num_classes
        self.register_buffer("target", torch.zeros(num_examp, num_classes))
        self.beta = beta
        self.lambd = lambd

    def forward(self, output, label, index):
        y_pred = F.softmax(output, dim=1)
        y_pred = torch.clamp(y_pred, 1e-4, 1.0 - 1e-4)
        y_pred_ = y_pred.data.detach()
        self.target[index] = self.beta * self.target[index] + (1 - self.beta) * (
            (y_pred_) / (y_pred_).sum(dim=1, keepdim=True)
        )
        ce_loss = F.cross_entropy(output, label)
        elr_reg = ((1 - (self.target[index] * y_pred).sum(dim=1)).log()).mean()
        return ce_loss + self.lambd * elr_reg
