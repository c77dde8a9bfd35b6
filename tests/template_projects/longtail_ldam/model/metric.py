import torch


def accuracy(output, target):
    with torch.no_grad():
        pred = torch.argmax(output, dim=1)
        assert pred.shape[0] == len(target)
        correct = 0
        correct += torch.sum(pred == target).item()
    return correct / len(target)


def tail_acc(output, target):
    with torch.no_grad():
        tail = target >= 2
        return ((output.argmax(1) == target) & tail).sum() / tail.sum().clamp(min=1)
