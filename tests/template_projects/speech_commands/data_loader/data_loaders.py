import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from .util import load_audio, log_bands


class SpeechDataset(Dataset):
    def __init__(self, manifest, n_mels=12):
        with open(manifest) as f:
            self.items = [line.strip().split("\t") for line in f]
        self.n_mels = n_mels
        self.classes = ["yes", "no", "stop"]

    def __getitem__(self, index):
        path, word = self.items[index]
        sig, sr = load_audio(path)
        return torch.from_numpy(log_bands(sig, self.n_mels)).float(), self.classes.index(word)

    def __len__(self):
        return len(self.items)


def pad_collate(batch):
    # longest first, for pack_padded_sequence
    batch = sorted(batch, key=lambda b: len(b[0]), reverse=True)
    seqs, labels = zip(*batch)
    lengths = torch.LongTensor([len(s) for s in seqs])
    return pad_sequence(seqs, batch_first=True), lengths, torch.LongTensor(labels)


class SpeechDataLoader(DataLoader):
    def __init__(self, manifest, batch_size, shuffle, num_workers, n_mels=12):
        dataset = SpeechDataset(manifest, n_mels)
        super(SpeechDataLoader, self).__init__(
            dataset,
            batch_size=batch_size,
            shuffle=shuffle,
            num_workers=num_workers,
            collate_fn=pad_collate,
            drop_last=False,
        )
