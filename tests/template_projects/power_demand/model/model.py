import torch
import torch.nn as nn

from base import BaseModel


class DemandGRU(BaseModel):
    def __init__(self, n_features, hidden_size, num_layers):
        super(DemandGRU, self).__init__()
        self.num_layers = num_layers
        self.hidden_size = hidden_size
        self.gru = nn.GRU(n_features, hidden_size, num_layers, batch_first=True)
        self.out = nn.Linear(hidden_size, 1)

    def init_hidden(self, batch_size, device):
        return torch.zeros(self.num_layers, batch_size, self.hidden_size, device=device)

    def forward(self, x):
        hidden = self.init_hidden(x.size(0), x.device)
        features, _ = self.gru(x, hidden)
        return self.out(features[:, -1]).squeeze(1)
