import numpy as np
import torch


class SineStream:
    """Makes its batches as it goes: there is no data set, and nothing to validate on."""

    def __init__(self, batch_size, n_batches, n_points, noise):
        self.batch_size = batch_size
        self.n_batches = n_batches
        self.noise = noise
        self.time = np.linspace(0, 2 * np.pi, n_points)

    def __len__(self):
        return self.n_batches

    def __iter__(self):
        for _ in range(self.n_batches):
            phase = np.random.uniform(0, 2 * np.pi, self.batch_size)
            wave = np.sin(self.time[None] + phase[:, None])
            wave = wave + np.random.normal(scale=self.noise, size=wave.shape)
            yield torch.tensor(wave).float(), torch.tensor(phase).float()

    def split_validation(self):
        return None
