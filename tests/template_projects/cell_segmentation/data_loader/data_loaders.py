import glob
import os

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms

from base import BaseDataLoader


class CellDataset(Dataset):
    def __init__(self, image_dir, mask_dir):
        self.images = sorted(glob.glob(os.path.join(image_dir, "*.png")))
        self.mask_dir = mask_dir
        self.to_tensor = transforms.ToTensor()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        path = self.images[index]
        image = Image.open(path).convert("RGB")
        mask = Image.open(os.path.join(self.mask_dir, os.path.basename(path)))
        return self.to_tensor(image), torch.from_numpy(np.array(mask, dtype=np.int64))


class CellDataLoader(BaseDataLoader):
    def __init__(self, image_dir, mask_dir, batch_size, shuffle, validation_split, num_workers):
        dataset = CellDataset(image_dir, mask_dir)
        super().__init__(dataset, batch_size, shuffle, validation_split, num_workers)
