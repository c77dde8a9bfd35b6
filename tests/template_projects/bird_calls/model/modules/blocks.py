import torch.nn as nn


class CallBlock(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.conv = nn.Conv1d(n_in, n_out, 3, padding=1)
        self.norm = nn.BatchNorm1d(n_out)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()
