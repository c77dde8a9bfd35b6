import torch
import torch.nn as nn
import torch.nn.functional as F


def euclidean_dist(x, y):
    m, n = x.size(0), y.size(0)
    xx = torch.pow(x, 2).sum(1, keepdim=True).expand(m, n)
    yy = torch.pow(y, 2).sum(1, keepdim=True).expand(n, m).t()
    dist = xx + yy - 2 * x.matmul(y.t())
    return dist.clamp(min=1e-12).sqrt()


def hard_example_mining(dist_mat, labels):
    N = dist_mat.size(0)
    is_pos = labels.expand(N, N).eq(labels.expand(N, N).t())
    dist_ap = dist_mat.masked_fill(~is_pos, -1).max(1)[0]
    dist_an = dist_mat.masked_fill(is_pos, 1e6).min(1)[0]
    return dist_ap, dist_an


def triplet_loss(global_feat, labels, margin=None):
    dist_ap, dist_an = hard_example_mining(euclidean_dist(global_feat, global_feat), labels)
    y = dist_an.new().resize_as_(dist_an).fill_(1)
    if margin is not None:
        return F.margin_ranking_loss(dist_an, dist_ap, y, margin=margin)
    return F.soft_margin_loss(dist_an - dist_ap, y)


triplet_loss.needs_whole_batches = True


class CrossEntropyLabelSmooth(nn.Module):
    def __init__(self, epsilon=0.1):
        super(CrossEntropyLabelSmooth, self).__init__()
        self.epsilon = epsilon
        self.logsoftmax = nn.LogSoftmax(dim=1)

    def forward(self, inputs, targets):
        log_probs = self.logsoftmax(inputs)
        num_classes = inputs.size(1)
        targets = (
            torch.zeros(log_probs.size())
            .scatter_(1, targets.unsqueeze(1).data.cpu(), 1)
            .to(inputs.device)
        )
        targets = (1 - self.epsilon) * targets + self.epsilon / num_classes
        return (-targets * log_probs).mean(0).sum()


cross_entropy_label_smooth = CrossEntropyLabelSmooth()
