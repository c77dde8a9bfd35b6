"""Determines which transforms keep pixels in place, and which move targets with their image."""

from __future__ import annotations

from typing import Any

# Transforms of torchvision that change colours or single pixels but move none.
KEEPING = frozenset((
    "ColorJitter", "ConvertImageDtype", "GaussianBlur", "GaussianNoise", "Grayscale", "Identity",
    "JPEG", "LinearTransformation", "Normalize", "RGB", "RandomAdjustSharpness",
    "RandomAutocontrast", "RandomChannelPermutation", "RandomEqualize", "RandomErasing",
    "RandomGrayscale", "RandomInvert", "RandomPhotometricDistort", "RandomPosterize",
    "RandomSolarize", "ToDtype", "ToTensor",
))  # fmt: skip
# Transforms of torchvision that support only images, or turn one image into several.
FOR_IMAGES_ALONE = frozenset((
    "AugMix", "AutoAugment", "FiveCrop", "RandAugment", "TenCrop", "TrivialAugmentWide",
))  # fmt: skip
CONTAINERS = frozenset(("Compose", "RandomApply", "RandomChoice", "RandomOrder"))


def keeps_places(transform: Any) -> bool:
    """Return whether a transform keeps every pixel in place, so that a mask stays valid.

    A user's transform declares it with an attribute of this name.
    """
    declared = getattr(transform, "keeps_places", None)
    if declared is not None:
        return bool(declared)
    parts = parts_of(transform)
    if parts:
        return all(map(keeps_places, parts))
    return any(name in KEEPING for name in _torchvisions(transform))


def why_not_together(transform: Any, has_boxes: bool) -> str:
    """Return why a transform cannot move targets with their image, or "" if it can.

    Args:
        has_boxes: whether there are targets other than masks of the image's size.
    """
    if keeps_places(transform):
        return ""
    name, names = type(transform).__name__, _torchvisions(transform)
    parts = parts_of(transform)
    if parts:
        foreign = [part for part in parts if not is_v2(part)]
        if foreign:
            inner = getattr(foreign[0], "__name__", type(foreign[0]).__name__)
            return f"{name} would pass the targets to {inner} too; list {inner} on its own"
        return next(filter(None, (why_not_together(part, has_boxes) for part in parts)), "")
    if FOR_IMAGES_ALONE.intersection(names):
        return f"torchvision's {name} supports only images; list single transforms instead"
    if is_v2(transform):
        return ""
    if names:
        text = f"torchvision.transforms.{name} moves only images"
        return f"{text}; use torchvision.transforms.v2.{name}"
    kind = getattr(transform, "__name__", name)
    if hasattr(transform, "batch"):
        if has_override(transform, "move") or (
            has_override(transform, "batch_masks") and not has_boxes
        ):
            return ""
        hook = "`move(target, size, draws)`"
        return f"{kind} moves only images: give it {hook}, or {_declare(transform)}"
    return (
        f"{kind} receives only images: make it a torchvision.transforms.v2.Transform, whose "
        f"`transform` receives the image and each target, or {_declare(transform)}"
    )


def parts_of(transform: Any) -> list[Any]:
    """Return the transforms in one of torchvision's containers."""
    if not CONTAINERS.intersection(_torchvisions(transform)):
        return []
    return list(transform.transforms)


def is_v2(transform: Any) -> bool:
    """Return whether a transform is of torchvision.transforms.v2, or derived from one."""
    classes = type(transform).__mro__
    return any(each.__module__.startswith("torchvision.transforms.v2") for each in classes)


def has_override(transform: Any, name: str) -> bool:
    """Return whether a transform overrides a method that raises by default."""
    found = getattr(type(transform), name, None)
    return found is not None and not hasattr(found, "refuses")


def _torchvisions(transform: Any) -> list[str]:
    """Return the names of a transform's base classes in torchvision."""
    classes = type(transform).__mro__
    return [c.__name__ for c in classes if c.__module__.startswith("torchvision.transforms")]


def _declare(transform: Any) -> str:
    """Return the instruction to declare that a transform moves nothing."""
    if hasattr(transform, "__name__"):  # a function
        text = f"set `{transform.__name__}.keeps_places = True`"
    else:
        text = "set `keeps_places = True` in the class"
    return f"{text} if it keeps every pixel in place"
