from base import BaseDataLoader

from .datasets import WindowDataset


class DemandDataLoader(BaseDataLoader):
    def __init__(
        self, csv_path, window, batch_size, shuffle=True, validation_split=0.0, num_workers=1
    ):
        dataset = WindowDataset(csv_path, window)
        super(DemandDataLoader, self).__init__(
            dataset, batch_size, shuffle, validation_split, num_workers
        )
