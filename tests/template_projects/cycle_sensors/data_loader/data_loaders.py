import numpy as np
from torch.utils.data import DataLoader, Dataset


class UnpairedSignals(Dataset):
    """A: sines; B: sawtooths of another sensor, larger and shifted"""

    def __init__(self, n=128, length=32):
        rng = np.random.RandomState(4)
        t = np.arange(length) / length
        f = rng.randint(1, 4, (2, n, 1)) * t + rng.rand(2, n, 1)
        self.A = np.sin(2 * np.pi * f[0]).astype("float32")[:, None]
        self.B = (1.5 * (2 * (f[1] % 1) - 1) + 0.5).astype("float32")[:, None]

    def __len__(self):
        return len(self.A)

    def __getitem__(self, i):
        return self.A[i], self.B[np.random.randint(len(self.B))]


class UnpairedDataLoader(DataLoader):
    def __init__(self, batch_size, num_workers=0):
        super().__init__(UnpairedSignals(), batch_size, shuffle=True, num_workers=num_workers)
