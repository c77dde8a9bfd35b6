import random

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

ENDINGS = ["ini", "sen", "ov"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class NameDataset(Dataset):
    def __init__(self, n_names, seed):
        rng = random.Random(seed)
        self.names = []
        for _ in range(n_names):
            label = rng.randrange(3)
            stem = "".join(rng.choice(LETTERS) for _ in range(rng.randint(2, 9)))
            self.names.append((stem + ENDINGS[label], label))

    def __len__(self):
        return len(self.names)

    def __getitem__(self, idx):
        name, label = self.names[idx]
        return torch.tensor([LETTERS.index(c) + 1 for c in name]), label


def collate_names(samples):
    letters, labels = zip(*samples)
    lengths = torch.tensor([len(one) for one in letters])
    return pad_sequence(letters, batch_first=True), lengths, torch.tensor(labels)


class BucketSampler(Sampler):
    """Names of about equal length one after another, the buckets in random order."""

    def __init__(self, dataset, bucket_size):
        self.order = sorted(range(len(dataset)), key=lambda i: len(dataset[i][0]))
        self.bucket_size = bucket_size

    def __len__(self):
        return len(self.order)

    def __iter__(self):
        starts = list(range(0, len(self.order), self.bucket_size))
        random.shuffle(starts)
        for start in starts:
            yield from self.order[start : start + self.bucket_size]


class NameDataLoader(DataLoader):
    """torch's own DataLoader, with a validation part beside it."""

    def __init__(self, batch_size, shuffle, validation_split, num_workers):
        self.valid_set = NameDataset(int(300 * validation_split), seed=2)
        train_set = NameDataset(300, seed=1)
        super().__init__(
            train_set,
            batch_size,
            sampler=BucketSampler(train_set, batch_size) if shuffle else None,
            num_workers=num_workers,
            collate_fn=collate_names,
        )

    def split_validation(self):
        return DataLoader(self.valid_set, batch_size=50, collate_fn=collate_names)
