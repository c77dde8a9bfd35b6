import torch
import torch.nn.functional as F
from check__plain import end, held_out, mean, same, trained

from data_loader.data_loaders import ReverseDataLoader
from model.model import Seq2Seq

loader = ReverseDataLoader(32, True, 0.2, 0)
loader.dataset.set_max_len(8)  # as from the third epoch on
model = trained(Seq2Seq(len(loader.src_vocab), len(loader.tgt_vocab), 0, 32))
batches = []
with torch.no_grad():
    for src, lengths, tgt in held_out(loader, 1234):
        losses = []
        for row in range(len(src)):  # one by one, so without padding
            n = int(lengths[row])
            one = tgt[row : row + 1, : n + 2]  # <sos>, as many as there are, <eos>
            scores = model(src[row : row + 1, :n], lengths[row : row + 1], one)
            losses += F.cross_entropy(scores[0], one[0, 1:], reduction="none").tolist()
        batches.append((sum(losses) / len(losses), len(src)))
same("valid/loss", mean(batches))
end()
