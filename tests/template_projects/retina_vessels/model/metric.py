import numpy as np
import torch


def dice_coef(output, target):
    smooth = 1e-5
    with torch.no_grad():
        pred = (torch.sigmoid(output) > 0.5).float().data.cpu().numpy()
        gt = target.data.cpu().numpy()
    intersection = (pred * gt).sum()
    return (2.0 * intersection + smooth) / (pred.sum() + gt.sum() + smooth)


def sensitivity(output, target):
    with torch.no_grad():
        pred = torch.sigmoid(output) > 0.5
        tp = (pred & (target == 1)).sum().item()
        fn = (~pred & (target == 1)).sum().item()
    return tp / (tp + fn + 1e-7)
