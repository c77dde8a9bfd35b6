import torch
from sklearn.metrics import f1_score


def accuracy(output, target):
    with torch.no_grad():
        pred = torch.argmax(output, dim=1)
        correct = torch.sum(pred == target).item()
    return correct / len(target)


def f1(output, target):
    with torch.no_grad():
        pred = torch.argmax(output, dim=1)
        return f1_score(pred.cpu().numpy(), target.data.cpu().numpy(), average="macro")
