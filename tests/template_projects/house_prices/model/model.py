import torch.nn as nn


def build_mlp(sizes, p_drop):
    layers = []
    for n_in, n_out in zip(sizes[:-1], sizes[1:]):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(p_drop)]
    return nn.Sequential(*layers[:-2])
