import math
import os
from glob import glob

import numpy as np


def load_folds_data(np_data_path, n_folds):
    files = np.array(sorted(glob(os.path.join(np_data_path, "*.npz"))))
    files_pairs = np.split(files, n_folds)
    folds_data = {}
    for fold_id in range(n_folds):
        subject_files = files_pairs[fold_id]
        training_files = list(set(files) - set(subject_files))
        folds_data[fold_id] = [sorted(training_files), list(subject_files)]
    return folds_data


def calc_class_weight(labels_count):
    total = np.sum(labels_count)
    class_weight = dict()
    num_classes = len(labels_count)
    mu = [0.5, 1, 2]
    for key in range(num_classes):
        score = math.log(mu[key] * total / float(labels_count[key]))
        class_weight[key] = score if score > 1.0 else 1.0
        class_weight[key] = round(class_weight[key] * mu[key], 2)
    return [class_weight[i] for i in range(num_classes)]
