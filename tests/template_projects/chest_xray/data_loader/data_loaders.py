import csv
import os

import numpy as np
import torch
import torch.utils.data as data

from base.base_data_loader import BaseDataLoader

CLASS_NAMES = ["Effusion", "Mass", "Nodule"]


class ChestXrayDataset(data.Dataset):
    def __init__(self, data_dir, csv_path):
        self.images = np.load(os.path.join(data_dir, "images.npy"), mmap_mode="r")
        self.labels = []
        with open(csv_path) as f:
            for row in csv.DictReader(f):
                findings = row["Finding Labels"].split("|")
                self.labels.append([float(c in findings) for c in CLASS_NAMES])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, idx):
        img = np.array(self.images[idx], dtype=np.float32)[None] / 255.0
        img = (img - 0.485) / 0.229
        if np.random.rand() < 0.5:  # brightness jitter
            img = img + 0.1 * np.random.randn()
        return torch.from_numpy(img).float(), torch.FloatTensor(self.labels[idx])


class ChestXrayDataLoader(BaseDataLoader):
    """
    Chest x-rays, three findings of which none, one or several may be present
    """

    def __init__(self, data_dir, csv_path, batch_size, shuffle, validation_split, num_workers):
        self.dataset = ChestXrayDataset(data_dir, csv_path)
        super(ChestXrayDataLoader, self).__init__(
            self.dataset, batch_size, shuffle, validation_split, num_workers
        )
