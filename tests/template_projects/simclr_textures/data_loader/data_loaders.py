import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import transforms

from base import BaseDataLoader


class SimCLRDataTransform(object):
    def __init__(self, transform):
        self.transform = transform

    def __call__(self, sample):
        return self.transform(sample), self.transform(sample)


class TextureDataset(Dataset):
    def __init__(self, path, transform=None):
        self.images = torch.from_numpy(np.load(path)["images"])[:, None]
        self.transform = transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(self.images[i]), -1  # there are no labels


class TwoViewDataLoader(BaseDataLoader):
    def __init__(self, path, batch_size, shuffle=True, validation_split=0.1, num_workers=0):
        augment = transforms.Compose(
            [
                transforms.RandomResizedCrop(16, scale=(0.6, 1.0), antialias=True),
                transforms.RandomHorizontalFlip(),
                transforms.Lambda(lambda x: x + 0.1 * torch.randn_like(x)),
            ]
        )
        dataset = TextureDataset(path, SimCLRDataTransform(augment))
        super().__init__(dataset, batch_size, shuffle, validation_split, num_workers)
