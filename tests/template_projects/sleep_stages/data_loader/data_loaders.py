import os
from glob import glob

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from utils.util import calc_class_weight, load_folds_data


class LoadDataset_from_numpy(Dataset):
    def __init__(self, np_dataset):
        super(LoadDataset_from_numpy, self).__init__()
        X_train = np.load(np_dataset[0])["x"]
        y_train = np.load(np_dataset[0])["y"]
        for np_file in np_dataset[1:]:
            X_train = np.vstack((X_train, np.load(np_file)["x"]))
            y_train = np.append(y_train, np.load(np_file)["y"])
        self.len = X_train.shape[0]
        self.x_data = torch.from_numpy(X_train).permute(0, 2, 1)  # (N, channel, time)
        self.y_data = torch.from_numpy(y_train).long()

    def __getitem__(self, index):
        return self.x_data[index], self.y_data[index]

    def __len__(self):
        return self.len


def data_generator_np(training_files, subject_files, batch_size):
    train_dataset = LoadDataset_from_numpy(training_files)
    test_dataset = LoadDataset_from_numpy(subject_files)
    all_ys = np.concatenate((train_dataset.y_data, test_dataset.y_data))
    num_classes = len(np.unique(all_ys))
    counts = [int((all_ys == i).sum()) for i in range(num_classes)]
    train_loader = DataLoader(train_dataset, batch_size=batch_size, shuffle=True, drop_last=False)
    test_loader = DataLoader(test_dataset, batch_size=batch_size, shuffle=False, drop_last=False)
    return train_loader, test_loader, counts


class SleepDataLoader:
    def __init__(self, np_data_dir, batch_size, num_folds, fold_id):
        folds_data = load_folds_data(np_data_dir, num_folds)
        self.train, self.test, self.counts = data_generator_np(*folds_data[fold_id], batch_size)
        self.class_weights = calc_class_weight(self.counts)
        self.batch_size = batch_size

    def __iter__(self):
        return iter(self.train)

    def __len__(self):
        return len(self.train)

    def split_validation(self):
        return self.test
