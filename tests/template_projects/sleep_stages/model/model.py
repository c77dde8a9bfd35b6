import torch
import torch.nn as nn


class GELU(nn.Module):
    def forward(self, x):
        return torch.nn.functional.gelu(x)


class MRCNN(nn.Module):
    def __init__(self, n_out):
        super(MRCNN, self).__init__()
        self.features1 = nn.Sequential(
            nn.Conv1d(1, 12, kernel_size=15, stride=2, bias=False, padding=7),
            nn.BatchNorm1d(12),
            GELU(),
            nn.Conv1d(12, n_out, kernel_size=5, padding=2, bias=False),
            nn.BatchNorm1d(n_out),
            GELU(),
        )
        self.features2 = nn.Sequential(
            nn.Conv1d(1, n_out, kernel_size=30, stride=2, bias=False, padding=15),
            nn.BatchNorm1d(n_out),
            GELU(),
        )

    def forward(self, x):
        return torch.cat((self.features1(x), self.features2(x)), dim=2)


class AttnSleepTiny(nn.Module):
    def __init__(self):
        super(AttnSleepTiny, self).__init__()
        self.mrcnn = MRCNN(16)
        self.attn = nn.MultiheadAttention(16, 2, batch_first=True)
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        x = self.mrcnn(x).transpose(1, 2)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return self.fc(x.max(1)[0])
