import torch


def dice_whole(output, target):
    with torch.no_grad():
        pred, gt = output.argmax(1) > 0, target > 0
        return 2.0 * (pred & gt).sum() / ((pred.sum() + gt.sum()).float() + 1e-8)
