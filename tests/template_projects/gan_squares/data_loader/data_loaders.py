import torch
from torch.utils.data import TensorDataset
from base import BaseDataLoader


class SquareDataLoader(BaseDataLoader):
    """bright squares on a dark ground, -1 to 1"""

    def __init__(self, batch_size, shuffle=True, validation_split=0.0, num_workers=0):
        g = torch.Generator().manual_seed(0)
        images = torch.full((256, 1, 8, 8), -1.0)
        for image in images:
            top, left = torch.randint(1, 4, (2,), generator=g).tolist()
            image[0, top : top + 4, left : left + 4] = 1.0
        labels = torch.zeros(256)
        super().__init__(
            TensorDataset(images, labels), batch_size, shuffle, validation_split, num_workers
        )
