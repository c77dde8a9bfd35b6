import csv

import numpy as np
import torch
from torch.utils.data import Dataset


class WindowDataset(Dataset):
    """Windows of hours; the target is the demand in the hour after."""

    def __init__(self, csv_path, window):
        with open(csv_path) as f:
            rows = list(csv.DictReader(f))
        table = np.array([[float(v) for v in row.values()] for row in rows], dtype=np.float32)
        table = (table - table.mean(0)) / table.std(0)
        self.inputs, self.demand = table[:, :3], table[:, 3]
        self.window = window

    def __len__(self):
        return len(self.inputs) - self.window

    def __getitem__(self, idx):
        window = self.inputs[idx : idx + self.window]
        return torch.from_numpy(window), torch.tensor(self.demand[idx + self.window])
