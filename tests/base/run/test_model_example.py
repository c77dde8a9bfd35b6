"""What the model takes and returns is noted before training and saved with the checkpoints."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from base.run.model_example import example_tensors, note_example


class Mixed(nn.Module):
    def forward(self, image, *, age):
        return {"class": image.flatten(1) + age, "parts": (image, age)}


def noted(model: nn.Module, *args, **kwargs) -> dict:
    experiment = SimpleNamespace(model=model, example={})
    with note_example(experiment):
        model(*args, **kwargs)
        model(*args, **kwargs)
    return experiment.example


def test_shapes_and_dtypes_of_the_first_call_are_noted_as_plain_data() -> None:
    age = torch.zeros(5, 1, dtype=torch.float64)
    found = noted(Mixed(), torch.zeros(5, 3, 2, 2), age=age)
    assert json.loads(json.dumps(found)) == found
    assert found["args"] == [{"shape": [3, 2, 2], "dtype": "float32"}]
    assert found["kwargs"] == {"age": {"shape": [1], "dtype": "float64"}}
    assert found["outputs"]["class"] == {"shape": [12], "dtype": "float64"}
    assert [each["shape"] for each in found["outputs"]["parts"]] == [[3, 2, 2], [1]]


def test_tensors_are_made_of_the_note() -> None:
    found = noted(Mixed(), torch.zeros(5, 3, 2, 2), age=torch.zeros(5, 1, dtype=torch.int64))
    (image,), kwargs = (example_tensors(found[name], 4) for name in ("args", "kwargs"))
    assert image.shape == (4, 3, 2, 2)
    assert kwargs["age"].shape == (4, 1)
    assert kwargs["age"].dtype == torch.int64


def test_other_arguments_are_named() -> None:
    class Takes(nn.Module):
        def forward(self, x, flag):
            return x

    found = noted(Takes(), torch.zeros(2, 1), "yes")
    with pytest.raises(ValueError, match="a str, not a tensor"):
        example_tensors(found["args"])


def test_the_hook_is_removed_and_a_container_notes_nothing() -> None:
    model = nn.ModuleDict({"generator": nn.Linear(1, 1)})
    experiment = SimpleNamespace(model=model, example={})
    with note_example(experiment):
        model["generator"](torch.zeros(2, 1))
    assert experiment.example == {}
    assert not model._forward_hooks
