"""Predictions that are not finite, arrays with reserved names, and files that were there before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from base.errors import UsageError
from base.prediction.found_files import FoundFile
from base.prediction.masks import LEGEND, MaskFolder
from base.prediction.output import OutputFile
from base.prediction.predictions import Predictions
from base.training.task import find_task

PETS = ["cat", "dog", "fox"]


def predicted(batches: list[Any], loss: str = "cross_entropy") -> Predictions:
    """Return the predictions of a run whose model returns these batches."""
    names = [f"{n}.png" for n in range(sum(len(next(iter(b.values())) if isinstance(b, dict) else b)
                                           for b in batches))]  # fmt: skip
    run = SimpleNamespace(
        folder="saved/pets/run",
        record={},
        config={"data_loader": {"type": "DatasetLoader", "args": {}}, "valid_data_loader": None},
        input_shape=[],
        task=lambda scores: find_task(
            [loss], scores if isinstance(scores, torch.Tensor) else None, PETS
        ),
        batches=lambda loader: iter(()),
        predict_batch=lambda batch: batch,
    )
    loader = SimpleNamespace(skip_bad_samples=lambda *a, **k: None)
    samples = SimpleNamespace(
        names=names, unreadable=[], columns={}, key="file", files=[], loader=loader
    )
    made = Predictions(run, samples)  # type: ignore[arg-type]
    starts = np.cumsum([0, *(len(next(iter(b.values())) if isinstance(b, dict) else b)
                             for b in batches)])  # fmt: skip
    made.run.batches = (
        lambda loader: (  # type: ignore[method-assign]
            x
            for x in [
                (torch.arange(start, end), batch)
                for start, end, batch in zip(starts[:-1], starts[1:], batches, strict=True)
            ]
        )
    )
    return made


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_sample_without_finite_predictions_has_no_class(bad: float) -> None:
    scores = torch.tensor([[3.0, 0.0, 0.0], [bad, bad, bad], [0.0, 0.0, 3.0]])
    found = predicted([scores])
    assert [row["class"] for row in found.rows] == ["cat", "fox"]
    assert found.unreadable == [("1.png", "the model returns NaN or infinite values")]


def test_a_model_that_returns_nothing_finite_is_an_error() -> None:
    with pytest.raises(UsageError, match="NaN or infinite values for all"):
        _ = predicted([torch.full((2, 3), torch.nan)]).rows


def test_outputs_may_have_the_names_of_numpys_parameters(tmp_path) -> None:
    outputs = {name: torch.arange(2.0) for name in ("names", "file", "classes", "value")}
    with OutputFile(tmp_path / "o.npz") as file:
        assert predicted([outputs], "mse_loss").to_npz(file) == 2
    arrays = np.load(tmp_path / "o.npz")
    assert list(arrays["names"]) == ["0.png", "1.png"]
    for name in ("names_predicted", "file_predicted", "classes_predicted", "value"):
        assert list(arrays[name]) == [0, 1]


def test_outputs_of_different_sizes_are_no_array(tmp_path) -> None:
    batches = [torch.zeros(1, 2, 3), torch.zeros(1, 2, 4)]
    with (
        pytest.raises(UsageError, match="differ in shape"),
        OutputFile(tmp_path / "o.npz") as file,
    ):
        predicted(batches, "own").to_npz(file)
    assert not list(tmp_path.iterdir())


def test_a_legend_replaces_no_other_file(tmp_path) -> None:
    (tmp_path / LEGEND).write_text("my labels")
    folder = MaskFolder(tmp_path, [FoundFile("a.jpg", "a.jpg")])
    with pytest.raises(UsageError, match="no legend of these classes"):
        folder.begin(PETS, None)
    assert (tmp_path / LEGEND).read_text() == "my labels"
    MaskFolder(tmp_path, [FoundFile("a.jpg", "a.jpg")], overwrite=True).begin(PETS, None)
    MaskFolder(tmp_path, [FoundFile("b.jpg", "b.jpg")]).begin(PETS, None)  # the same legend
