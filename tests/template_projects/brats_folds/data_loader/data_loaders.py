import glob
import os

import numpy as np
import torch
from sklearn.model_selection import KFold
from torch.utils.data import DataLoader, Dataset


class BraTSDataset(Dataset):
    def __init__(self, files, augment):
        self.files, self.augment = files, augment

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        case = np.load(self.files[i])
        image, seg = case["image"].astype(np.float32), case["seg"].astype(np.int64)
        if self.augment:
            for axis in range(3):
                if np.random.random() < 0.5:
                    image, seg = np.flip(image, axis + 1), np.flip(seg, axis)
        return torch.from_numpy(image.copy()), torch.from_numpy(seg.copy())


class BraTSDataLoader(DataLoader):
    def __init__(self, data_dir, batch_size, shuffle, n_folds, fold, num_workers):
        files = np.array(sorted(glob.glob(os.path.join(data_dir, "*.npz"))))
        splits = list(KFold(n_folds, shuffle=True, random_state=12345).split(files))
        train, val = splits[fold]
        self.val_files = files[val]
        super().__init__(
            BraTSDataset(files[train], True), batch_size, shuffle, num_workers=num_workers
        )

    def split_validation(self):
        return DataLoader(BraTSDataset(self.val_files, False), batch_size=1)
