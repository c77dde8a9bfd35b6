import torch
from sklearn.metrics import f1_score


def accuracy(output, target):
    with torch.no_grad():
        pred = torch.argmax(output, dim=1)
    return (pred == target).sum().item() / len(target)


def macro_f1(output, target):
    with torch.no_grad():
        pred = torch.argmax(output, dim=1).cpu().numpy()
    return f1_score(target.cpu().numpy(), pred, average="macro", zero_division=0)
