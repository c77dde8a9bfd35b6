"""Which transforms leave every pixel where it is, and which can move targets with their image."""

from __future__ import annotations

from typing import Any

# Transforms of torchvision that change colours or single pixels and move none.
KEEPING = frozenset((
    "ColorJitter", "ConvertImageDtype", "GaussianBlur", "GaussianNoise", "Grayscale", "Identity",
    "JPEG", "LinearTransformation", "Normalize", "RGB", "RandomAdjustSharpness",
    "RandomAutocontrast", "RandomChannelPermutation", "RandomEqualize", "RandomErasing",
    "RandomGrayscale", "RandomInvert", "RandomPhotometricDistort", "RandomPosterize",
    "RandomSolarize", "ToDtype", "ToTensor",
))  # fmt: skip
# Those that torchvision has for images alone, or that make several images of one.
FOR_IMAGES_ALONE = frozenset((
    "AugMix", "AutoAugment", "FiveCrop", "RandAugment", "TenCrop", "TrivialAugmentWide",
))  # fmt: skip
CONTAINERS = frozenset(("Compose", "RandomApply", "RandomChoice", "RandomOrder"))


def keeps_places(transform: Any) -> bool:
    """Return whether a transform leaves every pixel where it is, so that a mask stays right.

    One of your own says so by an attribute of this name.
    """
    declared = getattr(transform, "keeps_places", None)
    if declared is not None:
        return bool(declared)
    parts = parts_of(transform)
    if parts:
        return all(map(keeps_places, parts))
    return any(name in KEEPING for name in _torchvisions(transform))


def why_not_together(transform: Any, has_boxes: bool) -> str:
    """Return why a transform cannot move targets with their image; an empty text where it can.

    Args:
        has_boxes: there are other targets than masks that are as large as the image.
    """
    if keeps_places(transform):
        return ""
    name, names = type(transform).__name__, _torchvisions(transform)
    parts = parts_of(transform)
    if parts:
        foreign = [part for part in parts if not is_v2(part)]
        if foreign:
            inner = getattr(foreign[0], "__name__", type(foreign[0]).__name__)
            return f"{name} would give {inner} the targets too; list {inner} by itself"
        return next(filter(None, (why_not_together(part, has_boxes) for part in parts)), "")
    if FOR_IMAGES_ALONE.intersection(names):
        return f"torchvision has {name} for images alone; list single transforms instead"
    if is_v2(transform):
        return ""
    if names:
        text = f"torchvision.transforms.{name} moves images alone"
        return f"{text}; use torchvision.transforms.v2.{name}"
    kind = getattr(transform, "__name__", name)
    if hasattr(transform, "batch"):
        if has_override(transform, "move") or (
            has_override(transform, "batch_masks") and not has_boxes
        ):
            return ""
        hook = "`move(target, size, draws)`"
        return f"{kind} moves images alone: give it {hook}, or {_declare(transform)}"
    return (
        f"{kind} is given images alone: make it a torchvision.transforms.v2.Transform, whose "
        f"`transform` is given the image and each target, or {_declare(transform)}"
    )


def parts_of(transform: Any) -> list[Any]:
    """Return the transforms that one of torchvision's containers holds."""
    if not CONTAINERS.intersection(_torchvisions(transform)):
        return []
    return list(transform.transforms)


def is_v2(transform: Any) -> bool:
    """Return whether a transform is of torchvision's second version, or made from one that is."""
    classes = type(transform).__mro__
    return any(each.__module__.startswith("torchvision.transforms.v2") for each in classes)


def has_override(transform: Any, name: str) -> bool:
    """Return whether a transform overrides a method that only raises."""
    found = getattr(type(transform), name, None)
    return found is not None and not hasattr(found, "refuses")


def _torchvisions(transform: Any) -> list[str]:
    """Return the names of the classes of torchvision that a transform is made from."""
    classes = type(transform).__mro__
    return [c.__name__ for c in classes if c.__module__.startswith("torchvision.transforms")]


def _declare(transform: Any) -> str:
    """Return how to declare that a transform moves nothing."""
    if hasattr(transform, "__name__"):  # a function
        text = f"set `{transform.__name__}.keeps_places = True`"
    else:
        text = "set `keeps_places = True` in the class"
    return f"{text} if it leaves every pixel where it is"
