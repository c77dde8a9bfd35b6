import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F


class LDAMLoss(nn.Module):
    """Label-distribution-aware margins; from `reweight_epoch` on, rare classes count more (DRW)."""

    def __init__(self, cls_num_list=None, max_m=0.5, s=30, reweight_epoch=-1):
        super().__init__()
        m_list = 1.0 / np.sqrt(np.sqrt(cls_num_list))
        m_list = m_list * (max_m / np.max(m_list))
        self.register_buffer("m_list", torch.tensor(m_list, dtype=torch.float), persistent=False)
        self.s = s
        self.reweight_epoch = reweight_epoch
        betas = 0.99
        effective_num = 1.0 - np.power(betas, cls_num_list)
        weights = (1.0 - betas) / np.array(effective_num)
        weights = weights / np.sum(weights) * len(cls_num_list)
        self.per_cls_weights_enabled = torch.tensor(weights, dtype=torch.float)
        self.per_cls_weights = None

    def _hook_before_epoch(self, epoch):
        if self.reweight_epoch != -1:
            if epoch > self.reweight_epoch:
                self.per_cls_weights = self.per_cls_weights_enabled
            else:
                self.per_cls_weights = None

    def forward(self, x, target):
        index = torch.zeros_like(x, dtype=torch.bool)
        index.scatter_(1, target.data.view(-1, 1), 1)
        batch_m = self.m_list[target].view(-1, 1)
        x_m = x - batch_m
        output = torch.where(index, x_m, x)
        weight = self.per_cls_weights
        if weight is not None:
            weight = weight.to(x.device)
        return F.cross_entropy(self.s * output, target, weight=weight)
