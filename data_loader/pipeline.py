"""From samples to model input: transforms keyed by sample, then float and normalised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from base.batch_reader import find_get_batch
from base.data_record import record_of, use_record
from base.errors import BatchError, DataError
from base.keyed import Draws
from base.seeding import derive_seed, seed_cpu_streams
from data_loader.images import MODES, as_image
from data_loader.transforms import by_key

Images = Tensor | list[Tensor]  # (sample, channel, height, width), or a list of unequal images

# Transforms of torchvision that draw nothing, so that they may change a whole batch at once.
DRAWING_NOTHING = frozenset((
    "CenterCrop", "ConvertImageDtype", "Grayscale", "Identity", "Normalize", "Pad", "Resize", "RGB",
    "ToDtype",
))  # fmt: skip
NEEDLESS = frozenset(("PILToTensor", "ToImage", "ToPureTensor"))  # images are tensors by now


class Pipeline:
    """Apply transforms to the images of a batch and normalise them.

    Those with ``batch(images, draws)``, and torchvision's that draw nothing or that `by_key` knows,
    are applied to the batch; from the first other one on, each sample is changed by itself, with
    torch's, numpy's and python's streams seeded from (seed, epoch, index).

    Args:
        white: what is white in images of whole numbers; they are divided by it.
        mean, std: of each channel, from 0 to 1; of each column for (sample, column) data.
    """

    def __init__(
        self,
        transforms: Sequence[Callable[..., Any]] = (),
        white: float = 255.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if not isinstance(transforms, Sequence) or isinstance(transforms, str):
            raise DataError(f"transforms: a list, not {transforms!r}; give [{{type: ...}}, ...]")
        self.stages = [stage for each in transforms for stage in _stages(each)]
        self.white, self.is_normalised = white, False
        self.mean, self.std = torch.zeros(1), torch.ones(1)
        if mean is not None and std is not None:
            self.normalise(mean, std)
        first = (number for number, stage in enumerate(self.stages) if isinstance(stage, _Single))
        self._n_batched = next(first, len(self.stages))
        self.has_streams = self._n_batched < len(self.stages)
        takes_lists = [hasattr(stage, "takes_lists") for stage in self.stages]
        self.is_slow, self.begins_with_lists = any(takes_lists), takes_lists[:1] == [True]

    def __call__(self, images: Images, seed: int, epoch: int, indices: Tensor) -> Tensor:
        """Return model input, float32: what each sample by itself would give, stacked."""
        if not self.stages and isinstance(images, Tensor):
            return self.as_input(images)
        draws = Draws.of_samples(seed, epoch, indices, images[0].device)
        for stage in self.stages[: self._n_batched]:
            images = _apply(stage, images, draws)
        if self.has_streams:
            changed = []
            for number, index in enumerate(indices.tolist()):
                seed_cpu_streams(derive_seed(seed, "transform", epoch, index))
                one, left = images[number][None], draws.sample(number)
                for stage in self.stages[self._n_batched :]:
                    one = stage.batch(one, left)
                changed.append(one[0])
            images = _stacked(changed)
        if isinstance(images, list):
            raise BatchError(_unequal(images, indices))
        return self.as_input(images)

    def normalise(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take these away from, and divide by these, each channel or column from now on."""
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        self.is_normalised = True

    def as_input(self, images: Tensor) -> Tensor:
        """Scale whole numbers to 0 .. 1 and normalise."""
        shape = (-1, 1, 1) if images.dim() == 4 else (-1,)
        mean, std = (x.to(images.device).view(shape) for x in (self.mean, self.std))
        white = 1.0 if images.is_floating_point() else self.white
        images = images.float() if images.is_floating_point() else images
        for numbers in (mean, std):
            if numbers.numel() not in (1, images.shape[1]):
                text = f"{numbers.numel()} numbers of mean or std, but images have"
                raise BatchError(f"normalize: {text} {images.shape[1]} channels")
        scaled = images * (1 / (white * std))  # float32, also of whole numbers
        return scaled.sub_(mean / std) if self.mean.any() else scaled


class TransformedDataset(Dataset[Any]):
    """A data set seen through a pipeline, a batch at a time: ``[inputs, *what goes with them]``."""

    def __init__(self, source: Any, pipeline: Pipeline, mode: str | None = None) -> None:
        self.reads_from, self.pipeline, self.mode = source, pipeline, mode
        self.name = type(source).__name__
        self.device: torch.device | None = None  # where the data lie, if not here
        self._get_batch = find_get_batch(source)
        self._gives_lists = pipeline.begins_with_lists and hasattr(source, "image")
        for name in ("targets", "classes"):
            if hasattr(source, name):
                setattr(self, name, getattr(source, name))
        if hasattr(source, "shuffled_order"):
            self.shuffled_order = source.shuffled_order

    @property
    def ids(self) -> list[str]:
        """The id of each sample; no attribute where the data set has none."""
        ids: list[str] = self.reads_from.ids
        return ids

    def record(self) -> dict[str, Any]:
        """Return the pipeline's statistics, the mode of images, and what the source records."""
        found: dict[str, Any] = {"white": self.pipeline.white}
        if self.pipeline.is_normalised:
            found["mean"], found["std"] = self.pipeline.mean.tolist(), self.pipeline.std.tolist()
        mode = MODES.get(str(self.mode or getattr(self.reads_from, "mode", None)))
        if mode is not None:
            found["mode"] = "grey" if mode == "L" else mode
        return {**found, **record_of(self.reads_from)}

    def use_record(self, record: Mapping[str, Any]) -> None:
        """Hand a record on to the source; statistics are the loader's affair."""
        use_record(self.reads_from, record)

    @property
    def uses_streams(self) -> bool:
        """Whether something may draw from torch's, numpy's or python's stream."""
        is_ready_made = self._get_batch is not None or hasattr(self.reads_from, "image")
        return self.pipeline.has_streams or not is_ready_made

    @property
    def readers(self) -> str:
        """Threads share the streams, so they serve where nothing draws from these."""
        if self.uses_streams:
            return "processes"
        is_quick = self._get_batch is not None and not self.pipeline.is_slow
        return "none" if is_quick else "threads"

    def place_on(self, device: torch.device) -> bool:
        """Copy data in memory to a GPU where they fill less than a third of what is free there."""
        tensors = getattr(self.reads_from, "tensors_given", None)
        if tensors is None or device.type != "cuda":
            return False
        if sum(each.nbytes for each in tensors) > torch.cuda.mem_get_info(device)[0] / 3:
            return False
        if self.reads_from.placed is None:  # the validation part reads the same copy
            self.reads_from.placed = self.reads_from.placed_on(device)
        self._get_batch, self.device = self.reads_from.placed.get_batch, device
        return True

    def __len__(self) -> int:
        return len(self.reads_from)

    def __getitem__(self, index: int) -> Any:
        return [part[0] for part in self.get_keyed_batch(torch.tensor([index]), 0, 0)]

    def get_keyed_batch(self, indices: Tensor, seed: int, epoch: int) -> list[Any]:
        """Read and transform samples; what is random follows from the arguments alone.

        Args:
            indices: of the samples; the length and more added to one asks for the same sample,
                changed in another way.
        """
        places = indices % len(self)
        if self.device is not None:
            places = places.to(self.device, non_blocking=True)
        if self._get_batch is not None and not self._gives_lists:
            images, *rest = self._get_batch(places)
        else:
            seeds = [derive_seed(seed, "sample", epoch, index) for index in indices.tolist()]
            samples = list(map(self._sample, places.tolist(), seeds))
            images = [image for image, *_ in samples]
            images = images if self.pipeline.begins_with_lists else _stacked(images)
            rest = [default_collate([sample[place] for sample in samples])
                    for place in range(1, len(samples[0]))]  # fmt: skip
        return [self.pipeline(images, seed, epoch, indices), *rest]

    def _sample(self, index: int, seed: int) -> list[Any]:
        """Read one sample: its image as a tensor, and what goes with it."""
        if self.uses_streams:
            seed_cpu_streams(seed)
        sample = self.reads_from[index]
        parts = list(sample) if isinstance(sample, (list, tuple)) else [sample]
        if not hasattr(self.reads_from, "image"):  # a user's own, or torchvision's
            parts[0] = _as_input(parts[0], self.mode, f"sample {index}")
        return parts


class _Batched:
    """A function of a whole batch, in which nothing is random."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        return self.function(images)


class _Single(_Batched):
    """A transform of one image that may draw from the streams."""

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        image = self.function(images[0])
        name = type(self.function).__name__
        return _as_input(image, None, f"the result of {name}").as_subclass(Tensor)[None]


def _stages(transform: Any) -> list[Any]:
    """Return a transform, or the parts of a composed one, as stages of the pipeline."""
    if not callable(transform):
        text = f"{type(transform).__name__} cannot be called, so it is no transform"
        raise DataError(f"transforms: {text}; give {{type: ..., args: ...}}")
    module, name = type(transform).__module__, type(transform).__name__
    is_torchvisions = module.startswith("torchvision.transforms")
    if is_torchvisions and name == "Compose":
        return [stage for each in transform.transforms for stage in _stages(each)]
    if is_torchvisions and name in NEEDLESS:
        return []
    if is_torchvisions and name == "ToTensor":
        return [_Batched(lambda images: images.to(torch.float32) / 255)]
    if hasattr(transform, "batch"):
        return [transform]
    if is_torchvisions and name in DRAWING_NOTHING:
        return [_Batched(transform)]
    return [by_key(transform) or _Single(transform)]


def _as_input(value: Any, mode: str | None, where: str) -> Tensor:
    """Return an image as a tensor (channel, height, width); other arrays as they are."""
    if isinstance(value, (np.ndarray, Tensor)):
        is_grey = value.ndim == 2 and (mode is not None or value.dtype in (np.uint8, torch.uint8))
        if value.ndim != 3 and not is_grey:
            return torch.as_tensor(value)
    return as_image(value, mode, where)


def _apply(stage: Any, images: Images, draws: Draws) -> Images:
    """Apply a stage to the batch, or to each image where they are unequal."""
    if isinstance(images, Tensor) or hasattr(stage, "takes_lists"):
        whole: Tensor = stage.batch(images, draws)
        if not isinstance(whole, Tensor) or len(whole) != len(images):
            found = tuple(whole.shape) if isinstance(whole, Tensor) else f"a {type(whole).__name__}"
            given = (len(images), *images[0].shape)
            text = f"{type(stage).__name__} was given images {given} and gave {found}"
            raise BatchError(f"{text}; `batch` returns all of them, as a tensor")
        return whole
    parts = [draws.sample(number) for number in range(len(images))]
    changed = [stage.batch(x[None], part)[0] for x, part in zip(images, parts, strict=True)]
    draws.n_drawn = parts[0].n_drawn  # of each sample equally many
    return _stacked(changed)


def _unequal(images: list[Tensor], indices: Tensor) -> str:
    """Say which two samples of a batch differ in shape or dtype."""
    forms = [(tuple(image.shape), image.dtype) for image in images]
    other = next(number for number, form in enumerate(forms) if form != forms[0])
    facts = [
        f"sample {int(indices[number])} is {forms[number][0]}"
        f"{f' of {forms[number][1]}' if forms[0][0] == forms[other][0] else ''}"
        for number in (other, 0)
    ]
    text = f"images of unequal shapes: {facts[0]}, {facts[1].replace(' is ', ' ')}"
    return f"{text}; add a transform that makes them equal, such as Resize"


def _stacked(images: list[Tensor]) -> Images:
    """Make one tensor of images of one shape."""
    if all(x.shape == images[0].shape and x.dtype == images[0].dtype for x in images):
        return torch.stack(images)
    return images
