import torch


def charbonnier(sr, hr, eps=1e-3):
    return torch.sqrt((sr - hr) ** 2 + eps**2).mean()
