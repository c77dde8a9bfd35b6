import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


class ImbalancedBlobs(Dataset):
    cls_num = 4

    def __init__(self, imb_factor, n_max=300, train=True, seed=0):
        rng = np.random.RandomState(seed if train else seed + 1)
        centers = np.random.RandomState(99).randn(self.cls_num, 10) * 1.5
        if train:
            self.img_num_list = [
                int(n_max * imb_factor ** (i / (self.cls_num - 1.0))) for i in range(4)
            ]
        else:
            self.img_num_list = [25] * 4
        self.targets = np.repeat(np.arange(4), self.img_num_list)
        self.data = (centers[self.targets] + rng.randn(len(self.targets), 10)).astype(np.float32)

    def __getitem__(self, index):
        return self.data[index], int(self.targets[index])

    def __len__(self):
        return len(self.targets)


class ImbalanceDataLoader(DataLoader):
    """
    Imbalanced training data, balanced validation data
    """

    def __init__(self, batch_size, shuffle=True, num_workers=1, training=True, imb_factor=0.01):
        dataset = ImbalancedBlobs(imb_factor)
        self.val_dataset = ImbalancedBlobs(imb_factor, train=False)
        if not training:
            dataset = self.val_dataset
        self.cls_num_list = dataset.img_num_list
        self.shuffle = shuffle
        self.init_kwargs = {"batch_size": batch_size, "shuffle": False, "num_workers": num_workers}
        super().__init__(
            dataset=dataset, batch_size=batch_size, shuffle=shuffle, num_workers=num_workers
        )

    def split_validation(self):
        return DataLoader(dataset=self.val_dataset, **self.init_kwargs)
