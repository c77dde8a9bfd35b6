import torch


def accuracy(output, target):
    with torch.no_grad():
        return torch.sum(output.argmax(dim=1) == target).item() / len(target)
