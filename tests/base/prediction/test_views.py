"""The views of test-time augmentation, compared with torchvision's transforms."""

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from base.errors import UsageError
from base.prediction.views import each_view, views_named

IMAGES = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def test_flip_is_the_image_and_its_mirror_image_and_is_undone() -> None:
    same, mirrored = views_named("flip")
    torch.testing.assert_close(same.change(IMAGES), IMAGES)
    torch.testing.assert_close(mirrored.change(IMAGES), V.horizontal_flip(IMAGES))
    for view in (same, mirrored):
        assert view.undo is not None
        torch.testing.assert_close(view.undo(view.change(IMAGES)), IMAGES)


def test_five_crops_are_torchvisions_enlarged() -> None:
    crops = v2.FiveCrop((14, 21))(IMAGES)
    views = views_named("five_crop")
    assert len(views) == 5
    for view, crop in zip(views, crops, strict=True):
        expected = V.resize(crop, [16, 24], antialias=False)
        torch.testing.assert_close(view.change(IMAGES), expected)


def test_multi_crop_is_both_with_mirror_images() -> None:
    views = [view.change(IMAGES) for view in views_named("multi_crop")]
    assert len(views) == 12
    mirrored = [V.horizontal_flip(view) for view in views]
    for view in mirrored:
        assert any(torch.equal(view, other) for other in views)


def test_only_images_of_a_batch_are_changed() -> None:
    labels, codes = torch.arange(2), torch.ones(2, 3)
    _, mirrored = each_view([IMAGES, codes, labels], views_named("flip"))
    assert torch.equal(mirrored[0], IMAGES.flip(-1))
    assert mirrored[1] is codes
    _, by_name = each_view({"x": IMAGES, "target": labels}, views_named("flip"))
    assert torch.equal(by_name["x"], IMAGES.flip(-1))
    assert by_name["target"] is labels


def test_a_batch_without_images_is_refused() -> None:
    with pytest.raises(UsageError, match="not images"):
        each_view([torch.ones(2, 3), torch.ones(2)], views_named("flip"))
