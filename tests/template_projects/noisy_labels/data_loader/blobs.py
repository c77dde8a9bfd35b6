import numpy as np
import torch


class NoisyBlobs(torch.utils.data.Dataset):
    def __init__(self, n, percent, seed):
        rng = np.random.RandomState(seed)
        centres = 1.2 * np.random.RandomState(5).randn(3, 6)
        self.train_labels_gt = rng.randint(0, 3, n)
        self.data = (centres[self.train_labels_gt] + rng.randn(n, 6)).astype("float32")
        self.train_labels = self.train_labels_gt.copy()
        self.symmetric_noise(percent, rng)

    def symmetric_noise(self, percent, rng):
        indices = rng.permutation(len(self.data))
        for i, idx in enumerate(indices):
            if i < percent * len(self.data):
                self.train_labels[idx] = rng.randint(3, dtype=np.int32)

    def __getitem__(self, index):
        return (
            self.data[index],
            int(self.train_labels[index]),
            index,
            int(self.train_labels_gt[index]),
        )

    def __len__(self):
        return len(self.data)
