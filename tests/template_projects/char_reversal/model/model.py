import random

import torch
import torch.nn as nn
from torch.nn.utils.rnn import pack_padded_sequence

from base import BaseModel


class Seq2Seq(BaseModel):
    def __init__(self, src_vocab, tgt_vocab, pad_idx, hidden=32):
        super().__init__()
        self.encoder = Encoder(src_vocab, hidden, pad_idx)
        self.decoder = Decoder(tgt_vocab, hidden, pad_idx)
        self.teacher_forcing = 1.0

    def forward(self, src, src_len, trg):
        hidden = self.encoder(src, src_len)
        outputs, inp = [], trg[:, 0]
        for t in range(1, trg.shape[1]):
            output, hidden = self.decoder(inp, hidden)
            outputs.append(output)
            teacher_force = self.training and random.random() < self.teacher_forcing
            inp = trg[:, t] if teacher_force else output.argmax(1)
        return torch.stack(outputs, 1)


class Encoder(nn.Module):
    def __init__(self, vocab, hidden, pad_idx):
        super().__init__()
        self.embedding = nn.Embedding(vocab, hidden, padding_idx=pad_idx)
        self.rnn = nn.GRU(hidden, hidden, batch_first=True)

    def forward(self, src, src_len):
        packed = pack_padded_sequence(
            self.embedding(src), src_len.cpu(), batch_first=True, enforce_sorted=False
        )
        return self.rnn(packed)[1]


class Decoder(nn.Module):
    def __init__(self, vocab, hidden, pad_idx):
        super().__init__()
        self.embedding = nn.Embedding(vocab, hidden, padding_idx=pad_idx)
        self.rnn = nn.GRU(hidden, hidden, batch_first=True)
        self.fc_out = nn.Linear(hidden, vocab)

    def forward(self, inp, hidden):
        output, hidden = self.rnn(self.embedding(inp.unsqueeze(1)), hidden)
        return self.fc_out(output.squeeze(1)), hidden
