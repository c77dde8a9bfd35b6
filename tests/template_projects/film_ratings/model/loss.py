import torch


def rmse(output, target):
    return torch.sqrt(((output - target) ** 2).mean())
