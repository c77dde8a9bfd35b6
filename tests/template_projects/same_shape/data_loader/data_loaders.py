import torch
from torch.utils import data

from base import BaseDataLoader


class PairDataset(data.Dataset):
    """Two noisy views of shapes; the label says whether it is the same shape."""

    def __init__(self, n_pairs=320):
        g = torch.Generator().manual_seed(9)
        shapes = torch.randn(4, 12, generator=g)
        first = torch.randint(4, (n_pairs,), generator=g)
        second = torch.where(torch.rand(n_pairs, generator=g) < 0.5, first, first.roll(1))
        self.left = shapes[first] + 0.2 * torch.randn(n_pairs, 12, generator=g)
        self.right = shapes[second] + 0.2 * torch.randn(n_pairs, 12, generator=g)
        self.same = (first == second).float()

    def __len__(self):
        return len(self.same)

    def __getitem__(self, i):
        return (self.left[i], self.right[i]), self.same[i]


class PairDataLoader(BaseDataLoader):
    def __init__(self, batch_size, shuffle=True, validation_split=0.0, num_workers=1):
        super().__init__(PairDataset(), batch_size, shuffle, validation_split, num_workers)
