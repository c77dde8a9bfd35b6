import numpy as np
from torch.utils.data import Dataset

from base import BaseDataLoader


class RatingDataset(Dataset):
    def __init__(self, n_ratings, seed):
        taste = np.random.RandomState(1).randn(70, 2)
        rng = np.random.RandomState(seed)
        self.user, self.film = rng.randint(0, 30, n_ratings), rng.randint(0, 40, n_ratings)
        self.rating = 3 + (taste[self.user] * taste[30 + self.film]).sum(1)

    def __len__(self):
        return len(self.rating)

    def __getitem__(self, idx):
        return {
            "user": self.user[idx],
            "film": self.film[idx],
            "hour": np.float32([idx % 24 / 24]),
            "label": np.float32(self.rating[idx]),
        }


class RatingDataLoader(BaseDataLoader):
    def __init__(self, batch_size, shuffle, validation_split, num_workers, training=True):
        dataset = RatingDataset(600, 2) if training else RatingDataset(100, 3)
        super().__init__(dataset, batch_size, shuffle, validation_split, num_workers)
