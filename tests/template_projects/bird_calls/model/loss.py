import torch.nn.functional as F


def label_smoothing(output, target, eps=0.1):
    log_p = F.log_softmax(output, dim=-1)
    return (1 - eps) * F.nll_loss(log_p, target) - eps * log_p.mean()
