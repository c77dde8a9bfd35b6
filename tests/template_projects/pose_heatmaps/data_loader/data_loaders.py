import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


class StickFigures(Dataset):
    """Three joints: a dot, a ring, a cross; some are hidden"""

    def __init__(self, split, n=128, size=12):
        rng = np.random.RandomState({"train": 0, "val": 1}[split])
        y, x = np.mgrid[:size, :size]
        self.items = []
        for i in range(n if split == "train" else n // 4):
            joints = rng.randint(2, size - 2, (3, 2))
            visible = rng.rand(3) < 0.8
            image = 0.1 * rng.randn(size, size)
            maps = []
            for k, (jy, jx) in enumerate(joints):
                d = np.hypot(y - jy, x - jx)
                shape = [
                    d < 1,
                    np.abs(d - 2) < 0.5,
                    (np.minimum(abs(y - jy), abs(x - jx)) < 1) & (d < 3),
                ][k]
                image += shape * visible[k] * (k + 1) / 2.0
                maps.append(np.exp(-(d**2) / 2))
            weight = visible.astype("float32")[:, None]
            self.items.append(
                (image[None].astype("float32"), np.array(maps, "float32"), weight, "img_%d" % i)
            )

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        image, maps, weight, name = self.items[i]
        return (
            torch.from_numpy(image),
            torch.from_numpy(maps),
            torch.from_numpy(weight),
            {"image": name},
        )


def get_pose_loader(split, batch_size, workers):
    return DataLoader(
        StickFigures(split), batch_size=batch_size, shuffle=split == "train", num_workers=workers
    )
