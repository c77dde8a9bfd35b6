"""MixUp and CutMix, which mix each sample of a batch, and its target, with another one.

The targets become class probabilities, (sample, class), as accepted by `cross_entropy`. The mixing
ratio of each sample, and the order in which each sample of a batch is mixed with the next, depend
only on (seed, epoch, index).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from base.config.durations import RunLength, parse_duration
from base.data.batch import send
from base.data.protocols import HasClasses, offered
from base.data.random_draws import Draws
from base.errors import BatchError, DataError
from base.system.seeding import derive_seed


class Mixer:
    """Mixes each sample of a batch with another one. Subclasses implement ``mix``.

    Args:
        num_classes: by default the number of the data set's `classes`.
        alpha: the ratio is drawn from Beta(alpha, alpha). Values above 1 favour 0.5.
        off_for_last: a duration such as `2 epochs` or `10%` at the end of the training without
            mixing, rounded to whole passes over the data.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        alpha: float = 1.0,
        off_for_last: str | None = None,
    ) -> None:
        name = type(self).__name__
        if not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
            raise DataError(f"{name}: alpha must be a number above 0, not {alpha!r}")
        if num_classes is not None and num_classes < 2:
            raise DataError(f"{name}: num_classes must be at least 2, not {num_classes!r}")
        try:
            self.off_for_last = None if off_for_last is None else parse_duration(off_for_last)
        except ValueError as error:
            raise DataError(f"{name}: off_for_last: {error}") from error
        self.num_classes, self.alpha = num_classes, float(alpha)
        self.n_passes: int | None = None  # passes over the data with mixing; None: all

    def mix(self, inputs: Tensor, partner: Tensor, drawn: Iterator[Any]) -> tuple[Tensor, Tensor]:
        """Return mixed inputs (sample, ...) and the weight of each sample's own input.

        Args:
            partner: (sample,) the position of the other sample.
            drawn: yields a `numpy.random.RandomState` per sample, in order.
        """
        raise NotImplementedError

    def end_before(self, length: RunLength, passes_per_epoch: float) -> None:
        """Set the length of the training, for `off_for_last`."""
        if self.off_for_last is not None:
            n_off = self.off_for_last.in_steps(length)
            n_epochs = (length.total_steps - n_off) / length.steps_per_epoch
            self.n_passes = math.floor(n_epochs * passes_per_epoch + 1e-9)

    def take_classes(self, source: Any) -> None:
        """Take the number of classes from a data set unless it was given.

        Raises:
            DataError: the data set has no classes, or targets that cannot be mixed.
        """
        targets = getattr(source, "targets", None)
        has_numbers = not isinstance(targets, Tensor) or not targets.is_floating_point()
        named = offered(source, HasClasses)
        if self.num_classes is None and named is not None:
            self.num_classes = len(named.classes)
        if self.num_classes is None and has_numbers:
            text = f"{type(self).__name__}: {type(source).__name__} does not define its number of"
            raise DataError(f"{text} classes: give num_classes")
        if isinstance(targets, Tensor) and targets.dim() == 1 and has_numbers:
            self._refuse_others(targets)

    def is_on(self, epoch: int) -> bool:
        """Return whether mixing is enabled in this pass over the data."""
        return self.n_passes is None or epoch < self.n_passes

    def __call__(
        self, inputs: Tensor, targets: Tensor, seed: int, epoch: int, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return a mixed batch with class probabilities as targets; one-hot if mixing is off."""
        targets = self._as_shares(targets)
        if not self.is_on(epoch):
            return inputs, targets
        name = type(self).__name__
        order = Draws.for_samples(derive_seed(seed, name), epoch, indices).uniform()[:, 0]
        order = order.argsort(stable=True)
        partner = torch.empty_like(order)
        partner[order] = order.roll(-1)
        seeds = (derive_seed(seed, name, epoch, index) for index in indices.tolist())
        partner = send(partner, inputs.device)
        inputs, shares = self.mix(inputs, partner, _seeded(seeds))
        shares = shares.to(targets.device, targets.dtype, non_blocking=True)
        shares = shares.view(-1, *[1] * (targets.dim() - 1))
        return inputs, targets * shares + targets[partner] * (1 - shares)

    def _as_shares(self, targets: Tensor) -> Tensor:
        """Convert class numbers to one-hot; return targets that can be mixed unchanged."""
        name = type(self).__name__
        if isinstance(targets, Tensor) and targets.is_floating_point() and targets.dim() < 3:
            return targets
        if not isinstance(targets, Tensor) or targets.dim() != 1:
            found = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
            text = f"{name} mixes one class number per sample (or rows of floats), but targets are"
            raise BatchError(f"{text} {found}: remove it")
        if self.num_classes is None:
            raise BatchError(f"{name}: give num_classes")
        if targets.device.type == "cpu":  # targets on a GPU were checked before the move
            self._refuse_others(targets)
        return F.one_hot(targets.long(), self.num_classes).to(torch.float32)

    def _refuse_others(self, targets: Tensor) -> None:
        """Check that all targets are classes."""
        assert self.num_classes is not None
        low, high = map(int, torch.aminmax(targets))
        if low < 0 or high >= self.num_classes:
            text = f"{type(self).__name__} has classes 0 to {self.num_classes - 1}, but targets are"
            raise BatchError(f"{text} {low} to {high}")


class MixUp(Mixer):
    """Averages two samples with random weights (Zhang et al., 2018, arXiv:1710.09412)."""

    def mix(self, inputs: Tensor, partner: Tensor, drawn: Iterator[Any]) -> tuple[Tensor, Tensor]:
        shares = torch.tensor([each.beta(self.alpha, self.alpha) for each in drawn])
        shares = send(shares.to(inputs.dtype), inputs.device)
        own = shares.view(-1, *[1] * (inputs.dim() - 1))
        return inputs * own + inputs[partner] * (1 - own), shares


class CutMix(Mixer):
    """Pastes a rectangle of another image, weighted by area (Yun et al., arXiv:1905.04899)."""

    def mix(self, inputs: Tensor, partner: Tensor, drawn: Iterator[Any]) -> tuple[Tensor, Tensor]:
        if inputs.dim() != 4:
            text = "CutMix supports images (sample, channel, height, width), not data"
            raise BatchError(f"{text} {tuple(inputs.shape)}")
        height, width = inputs.shape[-2:]
        boxes = torch.tensor([self._box(each, height, width) for each in drawn])
        top, bottom, left, right = send(boxes, inputs.device).T[:, :, None]
        rows = torch.arange(height, device=inputs.device)
        columns = torch.arange(width, device=inputs.device)
        is_row, is_column = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
        is_pasted = (is_row[:, :, None] & is_column[:, None, :])[:, None]
        area = (bottom - top) * (right - left)
        return torch.where(is_pasted, inputs[partner], inputs), 1 - area[:, 0] / (height * width)

    def _box(self, drawn: Any, height: int, width: int) -> list[int]:
        """Return top, bottom, left and right of the pasted rectangle, clipped to the image."""
        side = 0.5 * math.sqrt(1 - drawn.beta(self.alpha, self.alpha))
        ends = []
        for size in (height, width):
            centre, half = drawn.randint(size), int(side * size)
            ends += [max(centre - half, 0), min(centre + half, size)]
        return ends


class MixerChoice:
    """Chooses one of several mixers for each batch, by the weights of RandomChoice."""

    def __init__(self, mixers: Sequence[Mixer], weights: Sequence[float]) -> None:
        self.mixers, self.weights = list(mixers), list(weights)

    def __call__(
        self, inputs: Tensor, targets: Tensor, seed: int, epoch: int, indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        (drawn,) = _seeded([derive_seed(seed, "mixer", epoch, *indices.tolist())])
        mixer = self.mixers[int(drawn.choice(len(self.mixers), p=self.weights))]
        return mixer(inputs, targets, seed, epoch, indices)


def as_mixer(transform: Any) -> Mixer | MixerChoice | None:
    """Return the mixer of a transform, or None for other transforms.

    Raises:
        DataError: a mixer is inside a torchvision container other than RandomChoice.
    """
    if isinstance(transform, Mixer):
        return transform
    if not type(transform).__module__.startswith("torchvision.transforms"):
        return None
    name = type(transform).__name__
    if name in ("MixUp", "CutMix"):
        kind = MixUp if name == "MixUp" else CutMix
        return kind(transform.num_classes, transform.alpha)
    mixers = [as_mixer(part) for part in getattr(transform, "transforms", ())]
    if not any(mixers) or name == "Compose":
        return None
    if name != "RandomChoice" or not all(isinstance(each, Mixer) for each in mixers):
        text = f"{name} cannot contain MixUp or CutMix among other transforms"
        raise DataError(f"transforms: {text}: list them separately, or in a RandomChoice")
    return MixerChoice(mixers, transform.p)  # type: ignore[arg-type]


def _seeded(seeds: Iterable[int]) -> Iterator[Any]:
    """Yield one `RandomState`, reseeded for each sample: 16 us, against 600 us for a new one."""
    state = np.random.RandomState(0)
    for seed in seeds:
        state.seed(seed & 0xFFFFFFFF)
        yield state


def single_mixers(mixers: Sequence[Mixer | MixerChoice]) -> list[Mixer]:
    """Return the mixers, including those of each choice."""
    return [one for each in mixers for one in getattr(each, "mixers", [each])]
