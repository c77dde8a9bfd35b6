import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data_loader.sampler import RandomIdentitySampler


class Market(Dataset):
    def __init__(self, path, training):
        data = np.load(path)
        at = (data["pids"] < 12) == training
        self.images, self.pids, self.camids = (
            data["images"][at],
            data["pids"][at],
            data["camids"][at],
        )

    def __len__(self):
        return len(self.pids)

    def __getitem__(self, i):
        return torch.from_numpy(self.images[i]), int(self.pids[i]), int(self.camids[i])


class PersonDataLoader(DataLoader):
    def __init__(self, path, batch_size, num_instances, training=True):
        dataset = Market(path, training)
        self.num_train_pids = len(set(dataset.pids.tolist()))
        sampler = (
            RandomIdentitySampler(dataset.pids, batch_size, num_instances) if training else None
        )
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, drop_last=training)
