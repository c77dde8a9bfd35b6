import numpy as np
import torch
from torch.utils.data import Dataset

from base import BaseDataLoader
from preprocess import settings, spectrum


class CallDataset(Dataset):
    """Four species, told apart by the pitch of their call."""

    def __init__(self, n_calls=160):
        cfg = settings()
        rng = np.random.RandomState(4)
        time = np.arange(cfg["sample_rate"]) / cfg["sample_rate"]
        self.labels = rng.randint(0, 4, n_calls)
        pitches = 60 + 60 * self.labels + rng.randn(n_calls) * 5
        waves = np.sin(2 * np.pi * pitches[:, None] * time) + rng.randn(n_calls, len(time))
        self.calls = [spectrum(wave, cfg["n_bands"]) for wave in waves]

    def __len__(self):
        return len(self.calls)

    def __getitem__(self, idx):
        return torch.tensor(self.calls[idx], dtype=torch.float32), int(self.labels[idx])


class CallDataLoader(BaseDataLoader):
    def __init__(self, batch_size, shuffle=True, validation_split=0.0, num_workers=1):
        super().__init__(CallDataset(), batch_size, shuffle, validation_split, num_workers)
