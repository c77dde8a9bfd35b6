import torch


def phase_loss(output, target):
    wanted = torch.stack([torch.sin(target), torch.cos(target)], dim=1)
    return ((output - wanted) ** 2).mean()
