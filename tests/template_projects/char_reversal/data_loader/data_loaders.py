import random

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from base import BaseDataLoader
from data_loader.vocab import Vocab


class ReverseDataset(Dataset):
    """'a b c' -> 'C B A': no real translation, but one with order in it"""

    def __init__(self, n, seed=0):
        rng = random.Random(seed)
        self.pairs = []
        for _ in range(n):
            src = [rng.choice("abcdef") for _ in range(rng.randint(2, 8))]
            self.pairs.append((src, [c.upper() for c in reversed(src)]))
        self.src_vocab = Vocab([s for s, _ in self.pairs])
        self.tgt_vocab = Vocab([t for _, t in self.pairs])
        self.max_len = 8

    def set_max_len(self, n):
        self.max_len = n

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        src, tgt = self.pairs[i]
        src, tgt = src[: self.max_len], tgt[-self.max_len :]
        tgt = ["<sos>"] + tgt + ["<eos>"]
        return torch.tensor(self.src_vocab.numericalize(src)), torch.tensor(
            self.tgt_vocab.numericalize(tgt)
        )


class ReverseDataLoader(BaseDataLoader):
    def __init__(self, batch_size, shuffle=True, validation_split=0.1, num_workers=0):
        dataset = ReverseDataset(300)
        self.src_vocab, self.tgt_vocab = dataset.src_vocab, dataset.tgt_vocab
        self.n_src, self.n_tgt = len(self.src_vocab), len(self.tgt_vocab)
        self.pad_idx = self.tgt_vocab.stoi["<pad>"]
        super().__init__(
            dataset, batch_size, shuffle, validation_split, num_workers, collate_fn=self.collate
        )

    def collate(self, batch):
        src, tgt = zip(*batch)
        lengths = torch.tensor([len(s) for s in src])
        return pad_sequence(src, True, self.pad_idx), lengths, pad_sequence(tgt, True, self.pad_idx)
