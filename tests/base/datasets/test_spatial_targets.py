"""Masks, boxes and keypoints move with their image, whichever way a transform is applied."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from base.base_data_loader import BaseDataLoader
from base.datasets.dataset_loader import DatasetLoader
from base.datasets.in_memory import InMemoryDataset
from base.datasets.pipeline import Pipeline, TransformedDataset
from base.datasets.transforms import KeyedTransform, RandomCutout, RandomFlip, RandomShift
from base.errors import DataError

N, H, W = 24, 20, 16
# Each pixel's level is its class times 20: after any move that mixes no pixels, the image itself
# says what its mask must be. No level is 0, which is what comes in from outside.
CLASSES = torch.randint(1, 12, (N, 4, 4), generator=torch.Generator().manual_seed(1))
MASKS = CLASSES.repeat_interleave(5, 1).repeat_interleave(4, 2)
IMAGES = (MASKS * 20).to(torch.uint8)[:, None].repeat(1, 3, 1, 1)
NEAREST = v2.InterpolationMode.NEAREST


class OneByOne(Dataset):
    """Samples as a data set of files gives them, with masks in one of their forms."""

    def __init__(self, form=lambda mask: mask, images=IMAGES, masks=MASKS):
        self.form, self.images, self.masks = form, images, masks

    def __len__(self):
        return len(self.images)

    def image(self, index):
        return self.images[index]

    def __getitem__(self, index):
        return self.image(index), self.form(self.masks[index])


FORMS = {
    "int64": lambda mask: mask,
    "uint8": lambda mask: mask.to(torch.uint8),
    "channel": lambda mask: mask[None],
    "array": lambda mask: mask.numpy().astype(np.uint8),
    "pil": lambda mask: Image.fromarray(mask.numpy().astype(np.uint8)),
    "tv": lambda mask: tv_tensors.Mask(mask.to(torch.uint8)),
}
GEOMETRIC = {
    "shift": [RandomShift(3)],
    "flip": [RandomFlip(), RandomFlip(dim=-2)],
    "crop": [v2.RandomCrop((12, 10))],
    "padded crop": [v2.RandomCrop((20, 16), padding=4, fill=0)],
    "resized crop": [v2.RandomResizedCrop((10, 8), interpolation=NEAREST)],
    "centre": [v2.CenterCrop((12, 30))],
    "pad": [v2.Pad([1, 2, 3, 4])],
    "resize": [v2.Resize((10, 8), interpolation=NEAREST)],
    "rotation": [v2.RandomRotation(40)],
    "affine": [v2.RandomAffine(20, (0.2, 0.2), (0.7, 1.3), shear=10)],
    "perspective": [v2.RandomPerspective(p=1, interpolation=NEAREST)],
    "elastic": [v2.ElasticTransform(30.0, sigma=2.0, interpolation=NEAREST)],
    "zoom out": [v2.RandomZoomOut(p=1), v2.Resize((20, 16), interpolation=NEAREST)],
    "one of": [v2.RandomChoice([v2.RandomRotation(40), v2.RandomHorizontalFlip(1)])],
    "some": [v2.RandomApply([v2.RandomVerticalFlip(1), v2.RandomRotation(9)], p=0.5)],
    "any order": [v2.RandomOrder([v2.RandomCrop(12), v2.RandomHorizontalFlip()])],
    "composed": [v2.Compose([v2.RandomCrop(12), v2.ToDtype(torch.float32, scale=True)])],
    "mixed": [RandomShift(2), v2.RandomRotation(20), RandomFlip(), v2.Pad(2)],
}


def batch_of(source, transforms, ignored=-100, indices=None, epoch=3):
    dataset = TransformedDataset(source, Pipeline(transforms))
    dataset.pipeline.ignored = ignored
    indices = torch.arange(N) if indices is None else indices
    return dataset.get_random_batch(indices, 7, epoch)


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("is_in_memory", [True, False])
def test_a_mask_is_where_the_image_says(name, is_in_memory):
    source = InMemoryDataset(IMAGES, MASKS) if is_in_memory else OneByOne()
    images, masks = batch_of(source, GEOMETRIC[name])
    levels = (images[:, 0] * 255).round().long()
    expected = torch.where(levels == 0, -100, levels // 20)
    assert masks.dtype == torch.int64
    assert torch.equal(masks, expected)
    stayed = batch_of(source, [])[1]
    assert torch.equal(stayed, MASKS)
    assert masks.shape != stayed.shape or not torch.equal(masks, stayed)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mixed", "shift", "rotation"])
def test_every_form_of_a_mask_gives_the_same(form, name):
    images, masks = batch_of(OneByOne(FORMS[form]), GEOMETRIC[name])
    expected_images, expected = batch_of(OneByOne(), GEOMETRIC[name])
    assert torch.equal(images, expected_images)
    assert torch.equal(masks.view_as(expected), expected)
    assert masks.dtype == torch.int64
    assert type(masks) is torch.Tensor


PATHS = ["shift", "resized crop", "rotation", "mixed", "some"]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("n_workers", [0, 2])
def test_every_path_and_a_resume_give_the_same_pairs(name, n_workers):
    def epoch(source, n_workers=0, first=0, count=3):
        dataset = TransformedDataset(source, Pipeline(GEOMETRIC[name]))
        return list(BaseDataLoader(dataset, 8, True, 0, n_workers, seed=3).batches(first, count))

    expected = epoch(InMemoryDataset(IMAGES, MASKS))
    for found in (
        epoch(InMemoryDataset(IMAGES, MASKS), n_workers),
        epoch(OneByOne(), n_workers),
        [*epoch(OneByOne(), n_workers, 0, 1), *epoch(OneByOne(), n_workers, 1, 2)],
    ):
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
    alone = batch_of(OneByOne(), GEOMETRIC[name], indices=torch.tensor([5]))
    whole = batch_of(OneByOne(), GEOMETRIC[name])
    assert torch.equal(alone[1][0], whole[1][5])


@pytest.mark.parametrize("fill", [77, [10, 20, 30]])
@pytest.mark.parametrize("ignored", [-100, 255, 0])
def test_what_comes_in_is_ignored_whatever_fills_the_image(fill, ignored):
    for transform in (
        v2.Pad(2, fill=fill),
        v2.RandomCrop((20, 16), padding=3, fill=fill),
        v2.RandomApply([v2.RandomRotation((30, 30), fill=fill)], p=1),
    ):
        for source in (InMemoryDataset(IMAGES, MASKS), OneByOne()):
            images, masks = batch_of(source, [transform], ignored)
            is_fill = (images[:, 0] * 255).round() == (fill if fill == 77 else 10)
            assert is_fill.any()
            assert torch.equal(masks == ignored, is_fill)


def test_the_loss_leaves_out_what_came_in():
    _, masks = batch_of(OneByOne(), [v2.Pad(3)])
    scores = torch.randn(N, 12, *masks.shape[1:])
    inside = scores[:, :, 3:-3, 3:-3]
    expected = nn.functional.cross_entropy(inside, MASKS)
    torch.testing.assert_close(nn.functional.cross_entropy(scores, masks), expected)


COLOURS = [
    v2.ColorJitter(0.5, 0.5), v2.GaussianBlur(3), v2.RandomErasing(p=1, value=9), v2.RandomInvert(),
    v2.RandomApply([v2.RandomErasing(p=1), v2.RandomPosterize(3)]), RandomCutout(5),
    v2.RandomGrayscale(), v2.ToDtype(torch.float32, scale=True), v2.GaussianNoise(),
    v2.Normalize([0.5] * 3, [0.2] * 3),
]  # fmt: skip


def test_colours_and_erasing_leave_masks_alone():
    images, masks = batch_of(OneByOne(), COLOURS)
    assert torch.equal(masks, MASKS)
    assert not torch.equal(images, batch_of(OneByOne(), [])[0])
    assert torch.equal(batch_of(InMemoryDataset(IMAGES, MASKS), COLOURS)[1], MASKS)


def test_images_of_unequal_sizes_keep_their_masks():
    class Ragged(OneByOne):
        def image(self, index):
            return IMAGES[index][:, : 12 + index % 5]

        def __getitem__(self, index):
            return self.image(index), MASKS[index][: 12 + index % 5]

    for transforms in (
        [v2.RandomResizedCrop((10, 8), interpolation=NEAREST)],
        [RandomFlip(), RandomShift(2), v2.Resize((9, 9), interpolation=NEAREST)],
        [v2.RandomRotation(30), v2.RandomCrop(12)],
    ):
        images, masks = batch_of(Ragged(), transforms)
        levels = (images[:, 0] * 255).round().long()
        assert torch.equal(masks, torch.where(levels == 0, -100, levels // 20))


def test_a_map_of_floats_moves_too():
    maps = (MASKS / 12).to(torch.float32)
    for form in (lambda mask: mask, lambda mask: mask[None], lambda mask: mask.expand(3, H, W)):
        source = OneByOne(form, masks=maps)
        for name in ("mixed", "padded crop", "rotation"):
            images, found = batch_of(source, GEOMETRIC[name])
            expected = (images[:, 0] * 255 / 20 / 12).view(N, *images.shape[-2:])
            found = found if found.dim() == 3 else found[:, 0]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


class Detection(OneByOne):
    """Boxes around one pixel row each, a mask of each object, and keypoints at box corners."""

    def __getitem__(self, index):
        count = 1 + index % 3
        starts = torch.arange(count) * 2 + 5
        boxes = torch.stack([starts, starts, starts + 3, starts + 4], 1).float()
        masks = torch.zeros(count, H, W, dtype=torch.bool)
        image = torch.zeros(3, H, W, dtype=torch.uint8)
        for number, start in enumerate(starts.tolist()):
            masks[number, start : start + 4, start : start + 3] = True
            image[:, start : start + 4, start : start + 3] = 100 + number
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(H, W)),
            "points": tv_tensors.KeyPoints(boxes[:, :2], canvas_size=(H, W)),
            "masks": tv_tensors.Mask(masks),
            "labels": torch.arange(count),
        }
        return image, target


@pytest.mark.parametrize("name", ["shift", "flip", "padded crop", "resized crop", "pad", "mixed"])
def test_boxes_points_and_masks_of_objects_move_together(name):
    transforms = [each for each in GEOMETRIC[name] if not isinstance(each, v2.RandomRotation)]
    images, targets = batch_of(Detection(), [*transforms, v2.SanitizeBoundingBoxes()])
    assert isinstance(targets, list)
    assert len(targets) == N
    n_boxes = 0
    for image, target in zip(images, targets, strict=True):
        assert type(target["boxes"]) is torch.Tensor
        assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            if not len(rows):
                continue
            n_boxes += 1
            seen = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert (box - seen).abs().max() <= 1  # a resized box has parts of pixels
            assert (image[0, rows[0], columns[0]] > 0) == mask.any()
    assert n_boxes > N / 2


def test_a_flip_of_boxes_by_key_is_that_of_the_image():
    images, targets = batch_of(Detection(), [RandomFlip()])
    plain = batch_of(Detection(), [])
    n_flipped = 0
    for number in range(N):
        box, before = targets[number]["boxes"], plain[1][number]["boxes"]
        if torch.equal(images[number], plain[0][number]):
            assert torch.equal(box, before)
        else:
            n_flipped += 1
            expected = before.clone()
            expected[:, 0], expected[:, 2] = W - before[:, 2], W - before[:, 0]
            assert torch.equal(box, expected)
            points = plain[1][number]["points"].clone()
            points[:, 0] = W - 1 - points[:, 0]  # the middle of a pixel, where boxes have its edge
            assert torch.equal(targets[number]["points"], points)
    assert 0 < n_flipped < N


def jitter(image):
    return image.roll(int(torch.randint(3, ())), -1)


def still(image):
    return (image * random.random()).to(image.dtype)


still.keeps_places = True


class Roll(KeyedTransform):
    def batch(self, images, draws):
        return torch.stack(
            [x.roll(n, -1) for x, (n,) in zip(images, draws.integers(3, 1).tolist(), strict=True)]
        )


class RollWithMasks(Roll):
    def batch_masks(self, masks, draws):
        return self.batch(masks, draws)


class Darken(Roll):
    keeps_places = True


@pytest.mark.parametrize(
    ("transform", "text"),
    [
        (jitter, r"jitter receives only images: .*v2.Transform.*set `jitter.keeps_places = True`"),
        (Roll(), r"Roll moves only images: give it `move\(target, size, draws\)`"),
        (v2.RandAugment(), "torchvision's RandAugment supports only images"),
        (
            v2.RandomChoice([v2.RandAugment(), v2.RandomInvert()]),
            "RandAugment supports only images",
        ),
        (v2.RandomApply([jitter]), "RandomApply would pass the targets to jitter too"),
    ],
)
def test_a_transform_that_moves_images_alone_is_refused(transform, text):
    for source in (InMemoryDataset(IMAGES, MASKS), OneByOne()):
        with pytest.raises(DataError, match=text):
            batch_of(source, [transform])
        with pytest.raises(DataError, match=text):  # when it is built, before anything is trained
            DatasetLoader(source, 8, transforms=[transform])
        labels = InMemoryDataset(IMAGES, torch.arange(N))
        DatasetLoader(labels, 8, transforms=[transform])


def test_the_first_torchvision_is_refused_where_it_moves():
    from torchvision import transforms as v1

    with pytest.raises(DataError, match=r"use torchvision.transforms.v2.RandomRotation"):
        batch_of(OneByOne(), [v1.RandomRotation(20)])
    images, masks = batch_of(OneByOne(), [v1.ColorJitter(0.4), v1.RandomCrop(12, padding=2)])
    assert images.shape[-2:] == masks.shape[-2:] == (12, 12)


def test_one_of_your_own_may_move_masks_or_say_that_it_moves_nothing():
    images, masks = batch_of(InMemoryDataset(IMAGES, MASKS), [RollWithMasks()])
    assert torch.equal(masks, (images[:, 0] * 255).round().long() // 20)
    assert torch.equal(batch_of(OneByOne(), [RollWithMasks()])[1], masks)
    assert torch.equal(batch_of(OneByOne(), [still])[1], MASKS)
    with pytest.raises(DataError, match="moves only images"):  # it has nothing for boxes
        batch_of(Detection(), [RollWithMasks()])

    class Mine(v2.Transform):
        def make_params(self, flat_inputs):
            return {"n": int(torch.randint(3, ()))}

        def transform(self, inpt, params):
            return type(inpt)(inpt.roll(params["n"], -1))

    images, masks = batch_of(OneByOne(), [Mine()])
    assert torch.equal(masks, (images[:, 0] * 255).round().long() // 20)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (lambda mask: mask[::2, ::2], "seems to be spatial, .* size from the image"),
        (lambda mask: (mask / 9)[::2, ::2], "seems to be spatial, .* size from the image"),
        (lambda mask: mask[:, :, None].expand(H, W, 3), "has its channels last"),
        (lambda mask: {"boxes": torch.rand(2, 4), "labels": mask[0]}, "plain numbers"),
        (lambda mask: Image.fromarray(mask[:10].numpy().astype(np.uint8)), r"\(10, 16\)"),
        (lambda mask: tv_tensors.Mask(mask[:10]), r"\(10, 16\)"),
        (lambda mask: Image.new("RGB", (W, H)), "an image of mode RGB"),
    ],
)
def test_a_target_that_cannot_move_is_refused(form, text):
    with pytest.raises(DataError, match=text):
        batch_of(OneByOne(form), [RandomFlip()])


def test_boxes_that_cannot_be_stacked_say_what_to_do():
    source = OneByOne(lambda mask: torch.zeros(int(mask[0, 0]), 4))
    with pytest.raises(
        DataError, match=r"different shapes, .*: return boxes and keypoints in a dict"
    ):
        batch_of(source, [])


def test_a_transform_within_torchvisions_data_set_is_seen():
    class Pets(OneByOne):
        transform = v2.Compose([v2.ColorJitter(), v2.RandomRotation(10)])

    with pytest.raises(DataError, match="Pets's own transform, RandomRotation, moves the image"):
        DatasetLoader(Pets(), 8)


def test_torchvisions_data_set_of_masks_is_checked_when_the_loader_is_built(tmp_path):
    """Its ``targets`` are the paths of masks, in palettes, and its void is 255."""
    from torchvision.datasets import VOCSegmentation

    root = tmp_path / "VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in range(3):
        values = MASKS[number].numpy().astype(np.uint8)
        values[0] = 255
        mask = Image.fromarray(values).convert("P")
        mask.putdata(values.flatten().tolist())
        mask.save(root / f"SegmentationClass/{number}.png")
        Image.new("RGB", (W, H), (9, 9, 9)).save(root / f"JPEGImages/{number}.jpg")
    (root / "ImageSets/Segmentation/train.txt").write_text("0\n1\n2\n")
    source = VOCSegmentation(tmp_path, image_set="train")
    loader = DatasetLoader(source, 3, False, mode="RGB", transforms=[RandomFlip(1.0), v2.Pad(1)])
    loader.set_ignored(255)
    _, masks = next(loader.batches(0, 1))
    expected = MASKS[:3].clone()
    expected[:, 0] = 255
    assert torch.equal(masks, nn.functional.pad(expected.flip(-1), [1] * 4, value=255))
    with pytest.raises(DataError, match="RandAugment"):
        DatasetLoader(source, 3, transforms=[v2.RandAugment()])


def test_masks_of_a_batch_in_a_form_of_its_own_are_refused():
    class Named(InMemoryDataset):
        def get_batch(self, indices):
            images, masks = super().get_batch(indices)
            return [images, {"mask": masks}]

    assert torch.equal(batch_of(Named(IMAGES, MASKS), [])[1]["mask"], MASKS)
    with pytest.raises(DataError, match="is in a dict, so that no transform can move it"):
        batch_of(Named(IMAGES, MASKS), [RandomFlip()])
