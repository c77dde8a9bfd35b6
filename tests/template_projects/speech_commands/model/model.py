import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from base import BaseModel


class AudioCRNN(BaseModel):
    def __init__(self, n_mels=12, hidden=24, classes=()):
        super(AudioCRNN, self).__init__()
        self.classes = classes
        self.conv = nn.Sequential(
            nn.Conv1d(n_mels, hidden, 3, padding=1),
            nn.BatchNorm1d(hidden),
            nn.ELU(),
        )
        self.rnn = nn.GRU(hidden, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, len(classes))

    def forward(self, batch, lengths):
        # batch: (N, T, mels), zero padded; lengths on the CPU, as pack_padded_sequence wants
        x = self.conv(batch.transpose(1, 2)).transpose(1, 2)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True)
        _, h = self.rnn(packed)
        return F.log_softmax(self.fc(h[-1]), dim=1)

    def predict(self, x, lengths):
        with torch.no_grad():
            out = self.forward(x, lengths).exp()
        return [self.classes[i] for i in out.argmax(1)], out.max(1)[0]
