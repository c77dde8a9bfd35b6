import torch
import torch.nn as nn
import torch.nn.functional as F
from base import BaseModel


class TextCNN(BaseModel):
    def __init__(self, vocab, n_classes, dim=100, sizes=(3, 4, 5), dropout=0.5):
        super().__init__()
        self.vocab = vocab
        self.embed = nn.Embedding(len(vocab), dim, padding_idx=vocab["<pad>"])
        self.norm = nn.LayerNorm(dim)
        self.convs = nn.ModuleList([nn.Conv2d(1, 8, (s, dim)) for s in sizes])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(len(sizes) * 8, n_classes)

    def forward(self, text):
        x = self.norm(self.embed(text)).unsqueeze(1)
        x = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        x = [F.max_pool1d(c, c.size(2)).squeeze(2) for c in x]
        return self.fc(self.dropout(torch.cat(x, 1)))
