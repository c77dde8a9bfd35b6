import numpy as np
import torch


def acc_per_finding(output, target):
    with torch.no_grad():
        pred = (output > 0).float()
        assert pred.shape[0] == len(target)
        return (pred == target).float().mean()


def _auc(score, label):
    """Area under the ROC curve as the share of ordered pairs; ties count half."""
    pos, neg = score[label == 1], score[label == 0]
    if len(pos) == 0 or len(neg) == 0:
        return 0.5
    diff = pos[:, None] - neg[None, :]
    return float(np.mean((diff > 0) + 0.5 * (diff == 0)))


def auc_avg(output, target):
    output = output.detach().cpu().numpy()
    target = target.detach().cpu().numpy()
    return np.mean([_auc(output[:, k], target[:, k]) for k in range(target.shape[1])])
