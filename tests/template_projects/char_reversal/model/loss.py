import torch.nn as nn


class SequenceLoss(nn.CrossEntropyLoss):
    """output (N, T - 1, vocab) against trg (N, T), whose first token is <sos>"""

    def forward(self, output, trg):
        return super().forward(output.reshape(-1, output.shape[-1]), trg[:, 1:].reshape(-1))
