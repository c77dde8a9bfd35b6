import torch
from torch.utils.data import Dataset

from base import BaseDataLoader


class PatchDataset(Dataset):
    """Patches of gratings; a patch is its own target, so there is nothing but the patch."""

    def __init__(self, n_patches):
        generator = torch.Generator().manual_seed(8)
        x = torch.linspace(0, 6.28, 8)
        phase = 6.28 * torch.rand(n_patches, 1, 1, 1, generator=generator)
        self.patches = torch.sin(x.view(1, 1, 1, 8) + x.view(1, 1, 8, 1) + phase)

    def __len__(self):
        return len(self.patches)

    def __getitem__(self, index):
        return self.patches[index]


class PatchDataLoader(BaseDataLoader):
    def __init__(self, **kwargs):
        super().__init__(PatchDataset(160), **kwargs)
