import torch
import torch.nn as nn
import torch.nn.functional as F


class nconv(nn.Module):
    def forward(self, x, A):
        return torch.einsum("bnc,vn->bvc", (x, A)).contiguous()


class GraphWaveNetLite(nn.Module):
    """Takes the whole config, as the other models of this repository do."""

    def __init__(self, config, adj, num_nodes, steps_in=12, steps_out=3):
        super(GraphWaveNetLite, self).__init__()
        opt = config["extra"]["gcn"] if "extra" in config else config["gcn"]
        self.order, self.dropout = opt["order"], opt["dropout"]
        self.supports = [torch.as_tensor(adj / adj.sum(1, keepdims=True))]
        self.nodevec1 = nn.Parameter(torch.randn(num_nodes, 4))
        self.nodevec2 = nn.Parameter(torch.randn(4, num_nodes))
        self.start = nn.Linear(steps_in, opt["hidden"])
        self.nconv = nconv()
        self.mlp = nn.Linear(opt["hidden"] * (1 + 2 * self.order), opt["hidden"])
        self.end = nn.Linear(opt["hidden"], steps_out)

    def forward(self, x):  # (B, T, N), scaled
        x = F.relu(self.start(x.transpose(1, 2)))  # (B, N, hidden)
        adaptive = F.softmax(F.relu(torch.mm(self.nodevec1, self.nodevec2)), dim=1)
        out = [x]
        for a in [self.supports[0].to(x.device), adaptive]:
            h = x
            for _ in range(self.order):
                h = self.nconv(h, a)
                out.append(h)
        h = F.dropout(self.mlp(torch.cat(out, dim=-1)), self.dropout, training=self.training)
        return self.end(F.relu(h + x)).transpose(1, 2)  # (B, 3, N)
