import csv

import numpy as np
import torch


class PriceDataLoader(object):
    """Windows of returns -> the next return. Shuffles, batches and splits by hand."""

    def __init__(self, config, x=None, y=None):
        self.config = config
        opt = config["data_loader"]
        self.batch_size = opt["batch_size"]
        self.shuffle = opt["shuffle"]
        if x is None:
            rows = list(csv.DictReader(open(opt["path"])))
            prices = np.array([[float(r["close"]), float(r["volume"])] for r in rows])
            moves = np.stack([np.diff(prices[:, 0]), prices[1:, 1] / 500.0 - 2.5], 1).astype(
                "float32"
            )
            n = len(moves) - opt["window"]
            x = np.stack([moves[i : i + opt["window"]] for i in range(n)])
            y = moves[opt["window"] :, :1]
        self.x, self.y = x, y
        self.batch_idx = 0

    def __iter__(self):
        self.batch_idx = 0
        if self.shuffle:
            rand_idx = np.random.permutation(len(self.x))
            self.x, self.y = self.x[rand_idx], self.y[rand_idx]
        return self

    def __next__(self):
        if self.batch_idx < len(self):
            at = slice(self.batch_idx * self.batch_size, (self.batch_idx + 1) * self.batch_size)
            self.batch_idx += 1
            return torch.from_numpy(self.x[at]), torch.from_numpy(self.y[at])
        raise StopIteration

    def __len__(self):
        return min(self.config["data_loader"]["max_batches"], -(-len(self.x) // self.batch_size))

    def split_validation(self):
        split = self.config["validation"]["validation_split"]
        n = int(len(self.x) * split)
        valid = PriceDataLoader(self.config, self.x[-n:], self.y[-n:])
        valid.shuffle = False
        self.x, self.y = self.x[:-n], self.y[:-n]
        return valid
