import numpy as np
import torch
from torch.utils.data import TensorDataset

from base import BaseDataLoader


def draw_glyphs(n, seed):
    """Rings and crosses of 12 x 12, of any size and place"""
    rng = np.random.RandomState(seed)
    y, x = np.mgrid[:12, :12]
    images, labels = [], []
    for _ in range(n):
        label, cy, cx, r = rng.randint(2), rng.uniform(4, 8), rng.uniform(4, 8), rng.uniform(2, 4)
        if label:
            image = np.abs(np.hypot(y - cy, x - cx) - r) < 0.8
        else:
            image = (np.abs(y - cy) < 0.8) | (np.abs(x - cx) < 0.8)
        images.append(image)
        labels.append(label)
    return np.array(images, "float32")[:, None], np.array(labels)


class GlyphDataLoader(BaseDataLoader):
    def __init__(self, batch_size, shuffle=True, validation_split=0.0, num_workers=0, n=400):
        images, labels = draw_glyphs(n, 7)
        self.dataset = TensorDataset(torch.tensor(images), torch.tensor(labels))
        super().__init__(self.dataset, batch_size, shuffle, validation_split, num_workers)
