import numpy as np
from torch.utils.data import Dataset
from base import BaseDataLoader


class Faces(Dataset):
    def __init__(self, n=250):
        rng = np.random.RandomState(77)
        self.age, self.gender = rng.uniform(0, 1, n), rng.randint(0, 2, n)
        base = rng.rand(12, 12)
        self.images = 0.3 * rng.randn(n, 12, 12) + base
        self.images[:, :6] += 2 * self.age[:, None, None]
        self.images[:, 6:] += self.gender[:, None, None]

    def __len__(self):
        return len(self.age)

    def __getitem__(self, i):
        return {
            "image": self.images[i][None].astype(np.float32),
            "age": np.float32(self.age[i]),
            "gender": np.float32(self.gender[i]),
            "path": "%05d.jpg" % i,
        }


class FaceDataLoader(BaseDataLoader):
    def __init__(self, batch_size, shuffle=True, validation_split=0.0, num_workers=1):
        super().__init__(Faces(), batch_size, shuffle, validation_split, num_workers)
