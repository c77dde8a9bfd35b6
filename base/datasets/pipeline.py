"""Turns samples into model input: applies transforms keyed by sample, then normalizes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from base.checkpoint.data_record import record_of, source_of, use_record
from base.data.batch import send
from base.data.protocols import HasClasses, HasImages, HasPlaces, HasTargets, SupportsOrder, offered
from base.data.random_draws import Draws
from base.data.reading import find_get_batch
from base.datasets.geometry import has_override, is_v2, keeps_places, parts_of, why_not_together
from base.datasets.images import MODES, as_image, decoder_name, use_decoder
from base.datasets.mixing import Mixer, MixerChoice, as_mixer
from base.datasets.spatial_targets import (
    IGNORED,
    SpatialTargets,
    change_each,
    check_movable,
    lies_on,
)
from base.datasets.transforms import batched_transform
from base.errors import BatchError, DataError
from base.system.seeding import cpu_streams, derive_seed, seed_cpu_streams, set_cpu_streams

Images = Tensor | list[Tensor]  # (sample, channel, height, width), or images of different sizes
Columns = dict[int, Any]  # targets that move with the images, as a tensor or a list

# Deterministic transforms of torchvision, which can process a whole batch.
DETERMINISTIC = frozenset((
    "CenterCrop", "ConvertImageDtype", "Grayscale", "Identity", "Normalize", "Pad", "Resize", "RGB",
    "ToDtype",
))  # fmt: skip
BLOCK = 1 << 18  # values that are scaled together; as float32 they fit into the cache of a core
TOGETHER_BYTES, MOST_TOGETHER = 1 << 20, 16  # of images that are changed together; of batches
NO_OPS = frozenset(("PILToTensor", "ToImage", "ToPureTensor"))  # images are tensors already


class Pipeline:
    """Applies transforms to the images of a batch and normalizes them.

    Transforms with ``batch(images, draws)``, and torchvision's that are deterministic or supported
    by `batched_transform`, process the whole batch. From the first other one on, samples are
    transformed one by one, with torch's, numpy's and Python's generators seeded from (seed, epoch,
    index). Spatial targets (see `SpatialTargets`) move with the images.

    Args:
        white: the maximum value of integer images, by which they are divided.
        mean, std: per channel, for values from 0 to 1; per column for (sample, column) data.
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
        stages = [stage for each in transforms for stage in _stages(each)]
        self.mixers = [stage for stage in stages if isinstance(stage, Mixer | MixerChoice)]
        self.stages = stages[: len(stages) - len(self.mixers)]
        if any(isinstance(stage, Mixer | MixerChoice) for stage in self.stages):
            raise DataError("transforms: MixUp and CutMix mix finished samples: list them last")
        self.moves = not all(map(keeps_places, self.stages))
        self.ignored = IGNORED  # the class number that fills masks beyond the image border
        self.white, self.is_normalised = white, False
        self.mean, self.std = torch.zeros(1), torch.ones(1)
        self._scales: dict[tuple[torch.device, int, float], tuple[Tensor, Tensor, bool]] = {}
        if mean is not None and std is not None:
            self.normalise(mean, std)
        first = (number for number, stage in enumerate(self.stages) if isinstance(stage, _Single))
        self._n_batched = next(first, len(self.stages))
        self.has_streams = self._n_batched < len(self.stages)
        takes_lists = [hasattr(stage, "takes_lists") for stage in self.stages]
        self.is_slow, self.begins_with_lists = any(takes_lists), takes_lists[:1] == [True]

    def __call__(self, images: Images, seed: int, epoch: int, indices: Tensor) -> Tensor:
        """Return model input, float32. The result equals that of single samples, stacked."""
        return self.with_targets(images, [], seed, epoch, indices)[0]

    def with_targets(
        self, images: Images, columns: Sequence[Any], seed: int, epoch: int, indices: Tensor
    ) -> tuple[Tensor, list[Any]]:
        """Return model input and targets, with spatial targets moved like the images.

        Args:
            columns: for each target, a tensor of all samples, or a list with an entry per sample.

        Raises:
            BatchError: a transform cannot move a spatial target.
        """
        targets = SpatialTargets(images, columns, self.ignored, indices.tolist() if columns else ())
        if not self.stages and isinstance(images, Tensor):
            return self.as_input(images), targets.collated()
        if self.moves and columns:
            self.check_targets_move(images[0], columns, targets.has_boxes)
        images, moving, draws = self._together(images, targets.moving, seed, epoch, indices)
        if self.has_streams:
            targets.moving = moving
            images, moving = self._one_by_one(
                images, targets.as_lists(), draws, seed, epoch, indices
            )
        if isinstance(images, list):
            raise BatchError(_unequal(images, indices))
        targets.moving = moving
        return self.as_input(images), targets.collated()

    def bytes_of_image(self, image: Tensor) -> int:
        """Return the most bytes that an image (1, channel, height, width) has between transforms.

        It is `TOGETHER_BYTES`, as much as a group of batches may have, if a transform may depend on
        the batch or fails.
        """
        draws, most = Draws(torch.zeros(1, dtype=torch.int64)), image.nbytes
        for stage in self.stages:
            if not _is_by_image(stage):
                return TOGETHER_BYTES
            try:
                changed, _ = _apply(stage, image, {}, draws)
            except Exception:  # told with the batch that it is in
                return TOGETHER_BYTES
            assert isinstance(changed, Tensor)
            image, most = changed, max(most, changed.nbytes)
        return int(most)

    def changed(self, images: Tensor, seed: int, epoch: int, indices: Tensor) -> Tensor:
        """Return the images of one or more batches after the transforms, not yet normalized."""
        changed = self._together(images, {}, seed, epoch, indices)[0] if self.stages else images
        assert isinstance(changed, Tensor)
        return changed

    def _together(
        self, images: Images, moving: Columns, seed: int, epoch: int, indices: Tensor
    ) -> tuple[Images, Columns, Draws]:
        """Apply the transforms that process a whole batch."""
        draws = Draws.for_samples(seed, epoch, indices, images[0].device)
        for stage in self.stages[: self._n_batched]:
            images, moving = _apply(stage, images, moving, draws)
        return images, moving, draws

    def mixed(
        self, images: Tensor, columns: list[Any], seed: int, epoch: int, indices: Tensor
    ) -> list[Any]:
        """Return the batch after applying MixUp or CutMix, if listed."""
        if self.mixers and len(columns) != 1:
            text = f"{len(columns)} targets besides the image"
            raise BatchError(f"MixUp and CutMix support samples (image, target), not {text}")
        for mixer in self.mixers:
            images, columns[0] = mixer(images, columns[0], seed, epoch, indices)
        return [images, *columns]

    def check_targets_move(self, image: Tensor, entries: Sequence[Any], has_boxes: bool) -> None:
        """Check that each transform can move the spatial targets of an image.

        Args:
            entries: for each target, a list or tensor whose first entry belongs to the image.
        """
        size = image.shape[-2:]
        if not self.moves or image.dim() != 3:
            return
        check_movable(entries, size)
        are_lying = any(isinstance(x, Tensor | list) and lies_on(x[0], size) for x in entries)
        for stage in self.stages if are_lying else ():
            text = why_not_together(getattr(stage, "function", stage), has_boxes)
            if text:
                raise BatchError(f"transforms: the targets are spatial, but {text}")

    def _one_by_one(
        self,
        images: Images,
        moving: Columns,
        draws: Draws,
        seed: int,
        epoch: int,
        indices: Tensor,
    ) -> tuple[Images, Columns]:
        """Apply the remaining transforms to each sample separately."""
        changed, moved = [], _emptied(moving)
        for number, index in enumerate(indices.tolist()):
            seed_cpu_streams(derive_seed(seed, "transform", epoch, index))
            one: Images = images[number][None]
            lone = {place: column[number : number + 1] for place, column in moving.items()}
            left = draws.sample(number)
            for stage in self.stages[self._n_batched :]:
                one, lone = _apply(stage, one, lone, left)
            changed.append(one[0])
            for place, column in lone.items():
                moved[place] += column
        return _stacked(changed), moved

    def normalise(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and std of each channel or column."""
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        self._scales = {}
        self.is_normalised = True

    def as_input(self, images: Tensor) -> Tensor:
        """Scale integers to the range 0 to 1 and normalize."""
        for numbers in (self.mean, self.std):
            if numbers.numel() not in (1, images.shape[1]):
                text = f"{numbers.numel()} numbers of mean or std, but images have"
                raise BatchError(f"normalize: {text} {images.shape[1]} channels")
        is_float = images.is_floating_point()
        factor, offset, is_centred = self._scale(images.device, images.dim(), is_float)
        if images.is_cpu and not is_float and images.numel() > BLOCK:
            return _scaled_in_blocks(images, factor, offset)
        images = images.float() if is_float else images
        scaled = images * factor  # float32, for integers too
        return scaled.sub_(offset) if is_centred else scaled

    def _scale(
        self, device: torch.device, n_dims: int, is_float: bool
    ) -> tuple[Tensor, Tensor, bool]:
        """Return what inputs are multiplied by, what is subtracted, and whether that is not 0.

        They are computed once: a copy from the CPU for each batch would wait for the GPU.
        """
        white = 1.0 if is_float else self.white
        key = device, n_dims, white
        if key not in self._scales:
            shape = (-1, *[1] * (n_dims - 2))  # broadcasts over channels or table columns
            mean, std = (each.to(device).view(shape) for each in (self.mean, self.std))
            self._scales[key] = 1 / (white * std), mean / std, bool(self.mean.any())
        return self._scales[key]


class TransformedDataset(Dataset[Any]):
    """Applies a pipeline to a data set, a batch at a time: ``[inputs, *targets]``."""

    def __init__(self, source: Any, pipeline: Pipeline, mode: str | None = None) -> None:
        self.reads_from, self.pipeline, self.mode = source, pipeline, mode
        self.name = type(source).__name__
        self.device: torch.device | None = None  # the device of the data, if not the CPU
        self._get_batch = find_get_batch(source)
        self._decodes_images = offered(source, HasImages) is not None
        # Workers may be new processes, which choose a decoder again.
        self._decoder = decoder_name() if self._decodes_images else None
        self._gives_lists = pipeline.begins_with_lists and self._decodes_images
        if (labelled := offered(source, HasTargets)) is not None:
            self.targets = labelled.targets
        if (named := offered(source_of(source), HasClasses)) is not None:
            self.classes = named.classes
        if (ordered := offered(source, SupportsOrder)) is not None:
            self.shuffled_order = ordered.shuffled_order

    @property
    def ids(self) -> Sequence[str]:
        """The id of each sample. The attribute is missing if the data set has no ids."""
        ids: Sequence[str] = self.reads_from.ids
        return ids

    def record(self) -> dict[str, Any]:
        """Return the pipeline's statistics, the image mode and the source's record."""
        found: dict[str, Any] = {"white": self.pipeline.white}
        if self.pipeline.is_normalised:
            found["mean"], found["std"] = self.pipeline.mean.tolist(), self.pipeline.std.tolist()
        mode = MODES.get(str(self.mode or getattr(self.reads_from, "mode", None)))
        if mode is not None:
            found["mode"] = "grey" if mode == "L" else mode
        if self._decoder is not None:
            found["decoder"] = self._decoder
        return {**found, **record_of(self.reads_from)}

    def use_record(self, record: Mapping[str, Any]) -> None:
        """Pass a record to the source. The loader uses the statistics."""
        use_record(self.reads_from, record)

    @property
    def uses_streams(self) -> bool:
        """Whether anything may draw from torch's, numpy's or Python's global generators."""
        is_ready_made = self._get_batch is not None or self._decodes_images
        return self.pipeline.has_streams or not is_ready_made

    @property
    def readers(self) -> str:
        """The fastest way to read; not threads if anything draws from the global generators."""
        if self.uses_streams:
            return "processes"
        is_quick = self._get_batch is not None and not self.pipeline.is_slow
        return "none" if is_quick else "threads"

    def place_on(self, device: torch.device) -> bool:
        """Copy data in memory to a GPU if they take less than a third of its free memory."""
        tensors = getattr(self.reads_from, "tensors_given", None)
        if tensors is None or device.type != "cuda":
            return False
        if sum(each.nbytes for each in tensors) > torch.cuda.mem_get_info(device)[0] / 3:
            return False
        if self.reads_from.placed is None:  # validation shares the copy
            self.reads_from.placed = self.reads_from.placed_on(device)
        self._get_batch, self.device = self.reads_from.placed.get_batch, device
        return True

    def __len__(self) -> int:
        return len(self.reads_from)

    def __getitem__(self, index: int) -> Any:
        return [part[0] for part in self.get_random_batch(torch.tensor([index]), 0, 0)]

    def get_random_batch(self, indices: Tensor, seed: int, epoch: int) -> list[Any]:
        """Read and transform samples. Randomness depends only on the arguments.

        Args:
            indices: the samples. An index beyond the length reads sample ``index % length`` with
                other random numbers.
        """
        if self._decoder is not None and self._decoder != decoder_name():
            use_decoder(self._decoder)
        places = self._places(indices)
        if self._get_batch is not None and not self._gives_lists:
            images, *columns = self._get_batch(places)
        else:
            seeds = [derive_seed(seed, "sample", epoch, index) for index in indices.tolist()]
            samples = list(map(self._sample, places.tolist(), seeds))
            images = [image for image, *_ in samples]
            images = images if self.pipeline.begins_with_lists else _stacked(images)
            columns = [[sample[place] for sample in samples] for place in range(1, len(samples[0]))]
        images, columns = self.pipeline.with_targets(images, columns, seed, epoch, indices)
        return self.pipeline.mixed(images, columns, seed, epoch, indices)

    def _places(self, indices: Tensor) -> Tensor:
        """Return the samples that these indices read, on the device of the data."""
        places = indices % len(self)
        return places if self.device is None else send(places, self.device)

    def n_together(self, batch_size: int) -> int:
        """Return how many batches `get_random_batches` should read at once; 1 for one at a time."""
        tensors = getattr(self.reads_from, "tensors_given", ())
        if not (tensors and len(self)) or self.readers != "none" or self.uses_streams:
            return 1
        if any(target.dim() > 2 for target in tensors[1:]):
            return 1  # targets may be spatial
        reader = getattr(type(self.reads_from).get_batch, "__module__", "")
        is_ours = type(self) is TransformedDataset and type(self.pipeline) is Pipeline
        replaced = {"get_batch", "get_random_batch"} & {*vars(self), *vars(self.reads_from)}
        if not (is_ours and reader.startswith("base.")) or replaced:
            return 1  # a method of yours
        n_bytes = batch_size * self.pipeline.bytes_of_image(tensors[0][:1].clone())
        return max(1, min(MOST_TOGETHER, TOGETHER_BYTES // max(n_bytes, 1)))

    def get_random_batches(
        self, parts: Sequence[Tensor], seed: int, epoch: int
    ) -> Iterator[list[Any]]:
        """Yield the batches that `get_random_batch` returns for each of the parts.

        Their images are read and changed together, which takes the time of a call, of each
        operation and of the draws once. They are normalized one batch after another, in the cache.
        """
        indices, sizes = torch.cat(list(parts)), list(map(len, parts))
        places = self._places(indices)
        images, *columns = self._get_batch(places)  # type: ignore[misc]
        images = self.pipeline.changed(images, seed, epoch, indices)
        targets = [column.split(sizes) for column in columns]
        for number, (part, own) in enumerate(zip(parts, images.split(sizes), strict=True)):
            ready = self.pipeline.as_input(own)
            rows = [each[number].clone() for each in targets]
            yield self.pipeline.mixed(ready, rows, seed, epoch, part)
            del ready, rows

    def check(self) -> None:
        """Check with the first sample that each transform moves the spatial targets.

        Raises:
            BatchError: a transform cannot.
        """
        targets = getattr(self.reads_from, "targets", None)
        is_flat = isinstance(targets, Tensor) and targets.dim() < 3
        if isinstance(targets, list) and targets:
            is_flat = isinstance(targets[0], int | float)  # torchvision's may be mask paths
        has_own = hasattr(self.reads_from, "transform")
        if is_flat or not (self.pipeline.moves or self.pipeline.mixers or has_own):
            return
        streams = cpu_streams()
        try:
            image, *rest = self._sample(0, 0)
        except Exception:  # reading it later fails again, with its location
            return
        finally:
            set_cpu_streams(streams)
        if not isinstance(image, Tensor) or image.dim() != 3:
            return
        size = image.shape[-2:]
        entries = [[entry] for entry in rest]
        has_boxes = SpatialTargets([image], entries, ids=[0]).has_boxes
        self.pipeline.check_targets_move(image, entries, has_boxes)
        if self.pipeline.mixers and any(lies_on(entry, size) for entry in rest):
            text = "MixUp and CutMix mix class numbers, but the targets are spatial"
            raise BatchError(f"transforms: {text}: remove them")
        own = getattr(self.reads_from, "transform", None)
        if own is not None and any(lies_on(entry, size) for entry in rest):
            for each in _leaves(own):
                if type(each).__name__ not in DETERMINISTIC and not keeps_places(each):
                    text = f"{self.name}'s own transform, {type(each).__name__}, moves the image"
                    raise BatchError(f"{text} without its mask: list it in the loader's transforms")

    def _sample(self, index: int, seed: int) -> list[Any]:
        """Read one sample: its image as a tensor, and its targets."""
        if self.uses_streams:
            seed_cpu_streams(seed)
        sample = self.reads_from[index]
        parts = list(sample) if isinstance(sample, (list, tuple)) else [sample]
        if not self._decodes_images:  # a user's data set, or torchvision's
            parts[0] = _as_input(parts[0], self.mode, f"sample {index}")
        return parts


class GivenImages:
    """The images of a data set that returns whole samples, such as torchvision's or your own.

    Random draws of the data set are the same on each access and do not affect other generators.
    """

    def __init__(self, source: Any, mode: str | None, seed: int) -> None:
        self.source, self.mode, self.seed = source, mode, seed

    def image(self, index: int) -> Tensor:
        """Read the image of a sample (channel, height, width), or an array unchanged."""
        streams = cpu_streams()
        try:
            seed_cpu_streams(derive_seed(self.seed, "sample", 0, index))
            sample = self.source[index]
        finally:
            set_cpu_streams(streams)
        image = sample[0] if isinstance(sample, (list, tuple)) else sample
        return _as_input(image, self.mode, self.place(index))

    def place(self, index: int) -> str:
        """Return the location of a sample."""
        placed = offered(self.source, HasPlaces)
        return f"sample {index}" if placed is None else placed.place(index)


class _Batched:
    """A deterministic function of a whole batch. torchvision's functions move masks too."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function, self.keeps_places = function, keeps_places(function)

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        return self.function(images)

    def batch_masks(self, masks: Tensor, draws: Draws) -> Tensor:
        from torchvision.tv_tensors import Mask

        return self.function(Mask(masks)).as_subclass(Tensor)

    def move(self, target: Tensor, size: Any, draws: Draws) -> Tensor:
        return self.function(target)


class _Single:
    """A transform of one image, which may draw from the global generators."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.keeps_places = function, keeps_places(function)

    def batch(self, images: Tensor, draws: Draws) -> Tensor:
        return self._checked(self.function(images[0]))

    def together(self, image: Tensor, entries: list[Any]) -> tuple[Tensor, list[Any]]:
        """Transform an image and its spatial targets in a single call."""
        from torchvision.tv_tensors import Image

        image, *entries = self.function(Image(image), *entries)
        return self._checked(image), entries

    def _checked(self, image: Any) -> Tensor:
        name = type(self.function).__name__
        return _as_input(image, None, f"the result of {name}").as_subclass(Tensor)[None]


def _scaled_in_blocks(images: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Return ``images * factor - offset``, float32, computed for a few images at a time.

    Between the operations a block stays in the cache of a core; a large batch would not.
    """
    scaled = torch.empty_like(images, dtype=torch.float32)
    parts, results = images, scaled
    if not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last):
        # By rows: with three channels as the innermost dimension torch takes three times as long.
        n_channels, _, width = images.shape[1:]
        parts, results = (each.permute(0, 2, 3, 1).flatten(2) for each in (images, scaled))
        factor, offset = (
            each.flatten().expand(n_channels).repeat(width) for each in (factor, offset)
        )
    n_images = max(1, BLOCK // images[0].numel())
    for part, result in zip(parts.split(n_images), results.split(n_images), strict=True):
        result.copy_(part).mul_(factor).sub_(offset)
    return scaled


def _is_by_image(stage: Any) -> bool:
    """Return whether a stage is one of this framework's or of torchvision's batched transforms."""
    function = stage.function if isinstance(stage, _Batched) else stage
    module = function.__module__ if function is _to_float else type(function).__module__
    return module.startswith(("base.", "torchvision.transforms."))


def _to_float(images: Tensor) -> Tensor:
    return images.to(torch.float32) / 255


_to_float.keeps_places = True  # type: ignore[attr-defined]


def _stages(transform: Any) -> list[Any]:
    """Return a transform, or the parts of a composed transform, as stages of the pipeline."""
    if not callable(transform):
        text = f"{type(transform).__name__} is not callable, so it is not a transform"
        raise DataError(f"transforms: {text}; give {{type: ..., args: ...}}")
    module, name = type(transform).__module__, type(transform).__name__
    is_torchvisions = module.startswith("torchvision.transforms")
    if (mixer := as_mixer(transform)) is not None:
        return [mixer]
    if is_torchvisions and name == "Compose":
        return [stage for each in transform.transforms for stage in _stages(each)]
    if is_torchvisions and name in NO_OPS:
        return []
    if is_torchvisions and name == "ToTensor":
        return [_Batched(_to_float)]
    if hasattr(transform, "batch"):
        return [transform]
    if is_torchvisions and name in DETERMINISTIC:
        fill_masks_with_zero(transform)
        return [_Batched(transform)]
    fill_masks_with_zero(transform)
    return [batched_transform(transform) or _Single(transform)]


def fill_masks_with_zero(transform: Any) -> None:
    """Make torchvision's transforms fill masks with 0, regardless of the fill of images.

    `SpatialTargets` treats 0 as outside of the image, and it is the background of object masks.
    """
    for part in parts_of(transform):
        fill_masks_with_zero(part)
    fill = getattr(transform, "_fill", None)
    if isinstance(fill, dict) and is_v2(transform):
        from torchvision.tv_tensors import Mask

        transform._fill = {**fill, Mask: 0}


def _leaves(transform: Any) -> list[Any]:
    """Return the single transforms in a transform that may be composed."""
    parts = parts_of(transform)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [transform]


def _as_input(value: Any, mode: str | None, where: str) -> Tensor:
    """Convert an image to a tensor (channel, height, width); return other arrays unchanged."""
    if isinstance(value, (np.ndarray, Tensor)):
        is_grey = value.ndim == 2 and (mode is not None or value.dtype in (np.uint8, torch.uint8))
        if value.ndim != 3 and not is_grey:
            return torch.as_tensor(value)
    return as_image(value, mode, where)


def _apply(stage: Any, images: Images, moving: Columns, draws: Draws) -> tuple[Images, Columns]:
    """Apply a stage to the batch, or to each image if sizes differ, and to the targets."""
    if isinstance(images, Tensor) or hasattr(stage, "takes_lists"):
        return _apply_to_batch(stage, images, moving, draws)
    changed, moved = [], _emptied(moving)
    for number, image in enumerate(images):
        one, left = image[None], draws.sample(number)
        lone = {place: column[number : number + 1] for place, column in moving.items()}
        one, lone = _apply_to_batch(stage, one, lone, left)
        changed.append(one[0])
        for place, column in lone.items():
            moved[place] += column
    draws.n_drawn = left.n_drawn  # equal for all samples
    return _stacked(changed), moved


def _emptied(moving: Columns) -> Columns:
    return {place: [] for place in moving}


def _apply_to_batch(
    stage: Any, images: Images, moving: Columns, draws: Draws
) -> tuple[Tensor, Columns]:
    is_still = not moving or keeps_places(stage)
    if isinstance(stage, _Single) and not is_still:
        entries = [column[0] for column in moving.values()]
        image, entries = stage.together(images[0], entries)
        return image, dict(zip(moving, [[entry] for entry in entries], strict=True))
    # A batch on a GPU is not taken apart where nothing moves: 2 us an image.
    sizes = [] if is_still else [tuple(image.shape[-2:]) for image in images]
    before = draws.copy()
    whole: Tensor = stage.batch(images, draws)
    if not isinstance(whole, Tensor) or len(whole) != len(images):
        found = tuple(whole.shape) if isinstance(whole, Tensor) else f"a {type(whole).__name__}"
        given = (len(images), *images[0].shape)
        text = f"{type(stage).__name__} received images {given} and returned {found}"
        raise BatchError(f"{text}; `batch` must return all of them as a tensor")
    if is_still:
        return whole, moving
    moved = {place: _moved(stage, column, sizes, before) for place, column in moving.items()}
    return whole, moved


def _moved(stage: Any, column: Any, sizes: Sequence[Any], draws: Draws) -> Any:
    """Move one target of all samples in the same way as the stage moves their images."""
    if isinstance(column, Tensor):
        return stage.batch_masks(column, draws.copy())

    def moved(number: int, target: Tensor) -> Any:
        own = draws.sample(number)
        if has_override(stage, "move"):
            return stage.move(target, sizes[number], own)
        return type(target)(stage.batch_masks(target[None], own)[0])  # a mask, as checked before

    numbered = enumerate(column)
    return [change_each(functools.partial(moved, number), entry) for number, entry in numbered]


def _unequal(images: list[Tensor], indices: Tensor) -> str:
    """Return a message naming two samples of a batch that differ in shape or dtype."""
    forms = [(tuple(image.shape), image.dtype) for image in images]
    other = next(number for number, form in enumerate(forms) if form != forms[0])
    facts = [
        f"sample {int(indices[number])} is {forms[number][0]}"
        f"{f' of {forms[number][1]}' if forms[0][0] == forms[other][0] else ''}"
        for number in (other, 0)
    ]
    text = f"images of different shapes: {facts[0]}, {facts[1].replace(' is ', ' ')}"
    return f"{text}; add a transform that makes them equal, such as Resize"


def _stacked(images: list[Tensor]) -> Images:
    """Stack images of equal shape."""
    if all(x.shape == images[0].shape and x.dtype == images[0].dtype for x in images):
        return torch.stack(images)
    return images
