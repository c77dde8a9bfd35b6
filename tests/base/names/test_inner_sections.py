"""Which arguments hold sections: an annotation decides, or the table of names."""

from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Any, Optional

import pytest
from torch.utils.data import Dataset, IterableDataset, Sampler
from torchvision.transforms import v2

from base.config import load_config
from base.names.check import check_names
from base.names.construction import build
from base.names.inner_sections import inner_kind, takes_list

PLAIN = """
name: test
model: {type: Linear, args: {in_features: 2, out_features: 2}}
optimizer: Adam
loss: cross_entropy
trainer: {type: Coach, epochs: 1}
data_loader: {type: Loader, args: {%s}}
"""
LOADER = """
from __future__ import annotations

from collections.abc import Callable

from torch.utils.data import Dataset


class Numbers(Dataset):
    def __init__(self, n: int):
        self.n = n


class Loader:
    def __init__(
        self,
        labeled: Dataset,
        augment: Callable | None = None,
        steps: list[Callable] = (),
        settings: dict | None = None,
        source=None,
        train_transform=None,
        target_transform=None,
    ):
        self.__dict__.update(locals())

    def __iter__(self):
        return iter(())
"""


def parameter(annotation: Any) -> Parameter:
    return Parameter("x", Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (Dataset, "dataset"),
        (Dataset[Any] | None, "dataset"),
        (IterableDataset, "dataset"),
        ("list[Dataset]", "dataset"),
        ("FlowersDataset", "dataset"),
        (Sampler[int] | None, "sampler"),
        ("WeightedRandomSampler", "sampler"),
        (v2.Transform, "transform"),
        (Optional[Callable], "transform"),  # noqa: UP045 -- as torchvision writes it
        (Callable[[Dataset], Any], "transform"),
        ("Sequence[Callable[..., Any]]", "transform"),
        (type[Dataset], None),
        (dict, None),
        (Any, None),
        (Parameter.empty, None),
    ],
)
def test_an_annotation_says_what_an_argument_holds(annotation: Any, expected: str | None) -> None:
    assert inner_kind("data_loader", "x", parameter(annotation), {}) == expected
    assert inner_kind("metric", "x", parameter(annotation), {}) is None


@pytest.mark.parametrize(
    ("name", "annotation", "expected"),
    [
        ("transform", Parameter.empty, False),
        ("transforms", Parameter.empty, True),
        ("transforms", Optional[Callable], False),  # noqa: UP045 -- torchvision's data sets
        ("transforms", Sequence[Callable], True),
        ("transforms", Iterable[Callable], True),
        ("transform", "list[Callable]", True),
        ("transform", "None | list[Callable]", True),
        ("augment", Callable[[list[Any]], Any], False),
    ],
)
def test_a_list_of_transforms_stays_one_where_a_list_is_asked_for(
    name: str, annotation: Any, expected: bool
) -> None:
    assert takes_list(name, parameter(annotation)) is expected


def test_what_is_annotated_or_in_the_table_is_built(project: Callable[..., Path]) -> None:
    project({"data_loader/own.py": LOADER})
    numbers, image = {"type": "Numbers", "args": {"n": 3}}, {"type": "ToImage"}
    args = {
        "labeled": numbers, "augment": [image, image], "steps": [image, image],
        "train_transform": [image], "target_transform": image,
        "settings": numbers, "source": numbers,
    }  # fmt: skip
    loader = build("data_loader", {"type": "Loader", "args": args})
    assert type(loader.labeled).__name__ == "Numbers"
    assert loader.labeled.n == 3
    assert isinstance(loader.augment, v2.Compose)
    assert [type(each) for each in loader.steps] == [v2.ToImage, v2.ToImage]
    assert isinstance(loader.train_transform, v2.Compose)
    assert isinstance(loader.target_transform, v2.ToImage)
    assert loader.settings == loader.source == numbers


def test_a_section_that_is_not_built_is_logged(project: Callable[..., Path]) -> None:
    coach = "from base import BaseTrainer\nclass Coach(BaseTrainer): ..."
    project({"data_loader/own.py": LOADER, "trainer/coach.py": coach})
    args = "labeled: {type: Numbers, args: {n: 3}}, source: {type: Numbers}, settings: {a: 1}"
    config = load_config(None, text=PLAIN % args)
    check_names(config)
    assert config.notes == [
        "data_loader.args.source is passed unchanged, not built; to have it built, annotate "
        "the argument of Loader, such as `source: Dataset`"
    ]
