import os
from glob import glob

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms

from base import BaseDataLoader


class VesselDataset(Dataset):
    def __init__(self, root, size, train=True):
        self.images = sorted(glob(os.path.join(root, "images", "*_training.png")))
        self.masks = [
            p.replace("images", "1st_manual").replace("training", "manual1") for p in self.images
        ]
        if not train:
            self.images, self.masks = self.images[:6], self.masks[:6]
        self.tsfm = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.ToTensor(),
                transforms.Normalize(mean=[0.5], std=[0.5]),
            ]
        )

    def __getitem__(self, index):
        image = Image.open(self.images[index]).convert("L")
        mask = np.array(Image.open(self.masks[index]))
        image = self.tsfm(image)
        mask = torch.from_numpy((mask > 127).astype(np.float32)).unsqueeze(0)
        return image, mask

    def __len__(self):
        return len(self.images)


class VesselDataLoader(BaseDataLoader):
    def __init__(
        self,
        data_dir,
        batch_size,
        shuffle=True,
        validation_split=0.0,
        num_workers=1,
        image_size=32,
        training=True,
    ):
        self.data_dir = data_dir
        self.dataset = VesselDataset(data_dir, image_size, train=training)
        super(VesselDataLoader, self).__init__(
            self.dataset, batch_size, shuffle, validation_split, num_workers
        )
