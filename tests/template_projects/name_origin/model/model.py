import torch
import torch.nn as nn
from torch.nn.utils.rnn import pack_padded_sequence

from base import BaseModel


class NameLSTM(BaseModel):
    def __init__(self, n_letters, n_classes, hidden):
        super().__init__()
        self.embed = nn.Embedding(n_letters, 8, padding_idx=0)
        self.lstm = nn.LSTM(8, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, n_classes)

    def forward(self, letters, lengths):
        packed = pack_padded_sequence(
            self.embed(letters), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, (hidden, _) = self.lstm(packed)
        return self.head(torch.cat([hidden[0], hidden[1]], dim=1))
