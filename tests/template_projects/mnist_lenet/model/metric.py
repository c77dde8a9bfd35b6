import torch


def accuracy(output, target):
    with torch.no_grad():
        guess = output.argmax(1)
        return (guess == target).sum().item() / len(target)


def top_k_acc(output, target, k=3):
    with torch.no_grad():
        guesses = torch.topk(output, k, dim=1)[1]
        hits = 0
        for i in range(k):
            hits += torch.sum(guesses[:, i] == target).item()
    return hits / len(target)
