from collections import Counter

import torch
from torch.utils.data import Dataset
from base import BaseDataLoader


class ReviewDataset(Dataset):
    def __init__(self, path):
        lines = [line.rstrip("\n").split("\t") for line in open(path)]
        self.labels = [int(label == "pos") for label, _ in lines]
        self.texts = [text.split() for _, text in lines]
        counts = Counter(w for t in self.texts for w in t)
        self.vocab = {"<pad>": 0, "<unk>": 1}
        for word, _ in counts.most_common():
            self.vocab[word] = len(self.vocab)
        self.n_classes = len(set(self.labels))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return [self.vocab.get(w, 1) for w in self.texts[i]], self.labels[i]


def collate(batch, length=14):
    texts = torch.zeros(len(batch), length, dtype=torch.long)
    for row, (text, _) in enumerate(batch):
        texts[row, : len(text[:length])] = torch.tensor(text[:length])
    return texts, torch.tensor([label for _, label in batch])


class ReviewDataLoader(BaseDataLoader):
    def __init__(self, path, batch_size, shuffle, validation_split, num_workers):
        self.dataset = ReviewDataset(path)
        super().__init__(self.dataset, batch_size, shuffle, validation_split, num_workers, collate)
