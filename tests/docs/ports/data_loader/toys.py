"""The small data sets that docs/from-pytorch-template.md trains on, each made from a seed."""

from typing import Any

import torch
from torch import Tensor

from base import BaseDataLoader


def signals(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes of 8 numbers, well apart."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(3, (n,), generator=generator)
    signal = torch.randn(n, 8, generator=generator)
    signal[torch.arange(n), target] += 3
    return signal, target


class SignalDataLoader(BaseDataLoader):
    """Pairs (signal, target)."""

    def __init__(self, validation_split: float = 0.2, training: bool = True) -> None:
        dataset = list(zip(*signals(150 if training else 60, seed=int(training)), strict=True))
        super().__init__(dataset, 16, training, validation_split if training else 0.0, 0)


class NamedSignalDataLoader(BaseDataLoader):
    """Triples (signal, target, name of the file)."""

    def __init__(self) -> None:
        signal, target = signals(150, seed=1)
        dataset = [(s, t, f"{i:03}.wav") for i, (s, t) in enumerate(zip(signal, target))]  # noqa: B905
        super().__init__(dataset, 16, True, 0.2, 0)


class PairDataLoader(BaseDataLoader):
    """Dicts {left, right, same}."""

    def __init__(self) -> None:
        (left, classes), (right, others) = signals(150, seed=1), signals(150, seed=2)
        same = (classes == others).float()
        samples = zip(left, right, same, strict=True)
        dataset = [{"left": a, "right": b, "same": c} for a, b, c in samples]
        super().__init__(dataset, 16, True, 0.2, 0)


class SequenceDataLoader(BaseDataLoader):
    """Triples (sequence, length, target): the running sum, with padding at the end."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        sequence = torch.randn(150, 6, generator=generator)
        lengths = torch.randint(2, 7, (150,), generator=generator)
        dataset: Any = list(zip(sequence, lengths, 0.5 * sequence.cumsum(1), strict=True))
        super().__init__(dataset, 16, True, 0.2, 0)


class RingDataLoader(BaseDataLoader):
    """Lone points on a ring."""

    def __init__(self) -> None:
        angle = 6.28 * torch.rand(256, generator=torch.Generator().manual_seed(1))
        super().__init__(list(torch.stack([angle.sin(), angle.cos()], dim=1)), 32, True, 0.0, 0)


class VisibleDataLoader(BaseDataLoader):
    """(sequence, heatmap, visible, name): where nothing is visible, the heatmap is nonsense."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        sequence = torch.randn(150, 6, generator=generator)
        visible = (torch.rand(150, 6, generator=generator) < 0.7).float()
        heatmap = torch.where(visible > 0, 0.5 * sequence.cumsum(1), torch.tensor(100.0))
        names = [f"{i:03}.png" for i in range(150)]
        dataset: Any = list(zip(sequence, heatmap, visible, names, strict=True))
        super().__init__(dataset, 16, True, 0.2, 0)


class TwoViewDataLoader(BaseDataLoader):
    """((signal, the same with noise), label)."""

    def __init__(self) -> None:
        signal, target = signals(150, seed=1)
        noise = 0.3 * torch.randn(signal.shape, generator=torch.Generator().manual_seed(2))
        views = zip(signal, signal + noise, strict=True)
        super().__init__(list(zip(views, target, strict=True)), 16, True, 0.2, 0)


class OldSignalDataLoader:
    """A loader of the first generation: it takes the config, shuffles and batches by hand."""

    def __init__(self, config: Any, samples: Any = None) -> None:
        self.config, self.samples = config, signals(150, seed=1) if samples is None else samples
        self.batch_size = config["data_loader"]["batch_size"]

    def __len__(self) -> int:
        return -(-len(self.samples[0]) // self.batch_size)

    def __iter__(self) -> Any:
        for rows in torch.randperm(len(self.samples[0])).split(self.batch_size):
            yield self.samples[0][rows], self.samples[1][rows]

    def split_validation(self) -> Any:
        n = int(len(self.samples[0]) * self.config["validation"]["validation_split"])
        held_out = [each[:n] for each in self.samples]
        self.samples = [each[n:] for each in self.samples]
        return OldSignalDataLoader(self.config, held_out)
