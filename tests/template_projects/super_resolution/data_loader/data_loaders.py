import os
import random

import torchvision.transforms.functional as TF
from PIL import Image
from torch.utils.data import DataLoader, Dataset


class SRDataset(Dataset):
    def __init__(self, folder, scale, crop=None):
        self.paths = [
            os.path.join(folder, f) for f in sorted(os.listdir(folder)) if f.endswith(".png")
        ]
        self.scale, self.crop = scale, crop

    def __len__(self):
        return len(self.paths) * (4 if self.crop else 1)

    def __getitem__(self, idx):
        hr = Image.open(self.paths[idx % len(self.paths)])
        w, h = hr.size
        if self.crop:
            size = self.crop * self.scale
            top, left = random.randint(0, h - size), random.randint(0, w - size)
            hr = TF.crop(hr, top, left, size, size)
            if random.random() < 0.5:
                hr = TF.hflip(hr)
            w = h = size
        lr = hr.resize((w // self.scale, h // self.scale), Image.BICUBIC)
        return TF.to_tensor(lr), TF.to_tensor(hr)


class SRDataLoader(DataLoader):
    def __init__(self, root, batch_size, scale, crop=None, training=True, num_workers=0):
        dataset = SRDataset(os.path.join(root, "train" if training else "val"), scale, crop)
        super().__init__(dataset, batch_size, shuffle=training, num_workers=num_workers)
