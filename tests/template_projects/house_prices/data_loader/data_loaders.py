import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.sampler import SubsetRandomSampler

from base import BaseDataLoader


class HouseDataLoader(BaseDataLoader):
    """The newest sales validate: the split is our own."""

    def __init__(
        self, batch_size, shuffle=True, validation_split=0.0, num_workers=0, training=True
    ):
        rng = np.random.RandomState(5 if training else 6)
        features = rng.randn(240 if training else 60, 6)
        price = features @ np.array([3.0, -2.0, 1.0, 0.5, 0.0, 0.0]) + 4 + rng.randn(len(features))
        dataset = TensorDataset(torch.FloatTensor(features), torch.FloatTensor(price))
        super().__init__(dataset, batch_size, shuffle, validation_split, num_workers)

    def _split_sampler(self, split):
        if split == 0.0:
            return None, None
        idx_full = np.arange(self.n_samples)
        train_idx, valid_idx = idx_full[:-split], idx_full[-split:]
        self.shuffle = False
        self.n_samples = len(train_idx)
        return SubsetRandomSampler(train_idx), SubsetRandomSampler(valid_idx)

    def split_validation(self):
        if self.valid_sampler is None:
            return None
        return DataLoader(sampler=self.valid_sampler, **self.init_kwargs)
