from torch.utils.data import DataLoader

from data_loader.blobs import NoisyBlobs


class NoisyDataLoader(DataLoader):
    def __init__(self, batch_size, shuffle=True, percent=0.4, num_workers=0, training=True):
        dataset = NoisyBlobs(400, percent, 1) if training else NoisyBlobs(200, 0, 2)
        self.num_examp = len(dataset)
        self.kwargs = dict(batch_size=batch_size, num_workers=num_workers)
        super().__init__(dataset, shuffle=shuffle, **self.kwargs)

    def split_validation(self):
        return DataLoader(NoisyBlobs(200, 0, 2), **self.kwargs)
