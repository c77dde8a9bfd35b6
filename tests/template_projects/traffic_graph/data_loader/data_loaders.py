import numpy as np
import torch
from utils import StandardScaler


class TrafficDataLoader(object):
    def __init__(self, path, batch_size, part="train", shuffle=None):
        data = np.load(path)
        speed, self.adj = data["speed"], data["adj"]
        self.num_nodes = speed.shape[1]
        x = np.stack([speed[i : i + 12] for i in range(len(speed) - 14)])
        y = np.stack([speed[i + 12 : i + 15] for i in range(len(speed) - 14)])
        a, b = int(len(x) * 0.7), int(len(x) * 0.8)
        self.scaler = StandardScaler(mean=x[:a].mean(), std=x[:a].std())
        at = {"train": slice(0, a), "val": slice(a, b), "test": slice(b, None)}[part]
        self.xs, self.ys = self.scaler.transform(x[at]), y[at]
        self.batch_size = batch_size
        self.shuffle = part == "train" if shuffle is None else shuffle

    def __len__(self):
        return int(np.ceil(len(self.xs) / self.batch_size))

    def __iter__(self):
        order = np.random.permutation(len(self.xs)) if self.shuffle else np.arange(len(self.xs))
        for i in range(len(self)):
            idx = order[i * self.batch_size : (i + 1) * self.batch_size]
            yield torch.Tensor(self.xs[idx]), torch.Tensor(self.ys[idx])
