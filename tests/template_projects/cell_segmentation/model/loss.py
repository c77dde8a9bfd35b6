import torch
from torch import nn

weighted_cross_entropy = nn.CrossEntropyLoss(weight=torch.tensor([0.3, 0.7]))
