"""Several processes train as one does: gradients, weights, logged values, metrics, decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from equal_cases import CASES, WEIGHTS, registered, trainer_of, write_prices
from groups import start_group
from torch import Tensor

WORKER = Path(__file__).with_name("equal_worker.py")
QUICK = [
    "plain", "ids", "micro batch of one, accumulate", "clip norm", "ignored, accumulate",
    "several, separate, micro batch", "sample weights, accumulate", "shifted, accumulate",
    "sometimes", "gathering", "gan, late", "wgan, accumulate", "freeze", "branches", "nonfinite",
    "plateau", "hard examples", "stream", "pixels, accumulate", "whole epochs", "buffers",
]  # fmt: skip
EXACT = ("accuracy", "recall", "Confusion", "F1", "IoU", "AUROC", "order")

Results = list[dict[str, dict[str, Any]]]
"""What each rank left of each case, by name."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, bool], Results]:
    """Train the quick cases or the others; return what each rank left, the same at each call."""
    known: dict[tuple[int, bool], Results] = {}

    def train(size: int, is_quick: bool) -> Results:
        if (size, is_quick) not in known:
            out = tmp_path_factory.mktemp("out")
            write_prices(out)
            names = [name for name in CASES if (name in QUICK) == is_quick]
            scripts = start_group([WORKER, out, *names], out, size)
            done = [script.wait(300) for script in scripts]
            assert [one.returncode for one in done] == [0] * size, done
            files = [out / f"{size}.{rank}" for rank in range(size)]
            known[size, is_quick] = [torch.load(file, weights_only=True) for file in files]
        return known[size, is_quick]

    return train


CHOSEN = [
    pytest.param(name, size, marks=[] if name in QUICK and size == 2 else pytest.mark.slow)
    for size in (2, 4)
    for name in CASES
]


@pytest.mark.parametrize(("name", "size"), CHOSEN)
def test_several_processes_train_as_one(name: str, size: int, trained: Any) -> None:
    case, is_quick = CASES[name], name in QUICK
    one, ranks = trained(1, is_quick)[0], trained(size, is_quick)
    reached = [each.get(name, {"error": "an earlier case failed"}) for each in ranks]
    errors = [each["error"] for each in (one[name], *reached) if "error" in each]
    assert not errors, errors[0]
    one, first = one[name], reached[0]
    for rank, each in enumerate(reached):
        assert each["digests"] == first["digests"], f"the state of rank {rank}"
        assert each["gradients_digest"] == first["gradients_digest"], f"gradients of rank {rank}"
        assert repr(each["epochs"]) == repr(first["epochs"]), f"the values of rank {rank}"
    for key, value in first["constants"].items():
        assert torch.equal(value, one["constants"][key]), key
    if case.is_equal:
        assert_equal(one, first, case.tolerance, case.differing)
        assert merged_ids(reached) == one["ids"]


def assert_equal(
    one: Mapping[str, Any], other: Mapping[str, Any], tolerance: float, differing: tuple[str, ...]
) -> None:
    """Compare what one process left with what rank 0 of several left."""
    assert len(one["gradients"]) == len(other["gradients"]), "the number of steps"
    for step, pair in enumerate(zip(one["gradients"], other["gradients"], strict=True)):
        assert_close(*pair, tolerance, f"the gradient of step {step}")
    assert_close(one["weights"], other["weights"], tolerance, "the weights")
    for when in ("steps", "epochs"):
        assert len(one[when]) == len(other[when])
        for place, (ours, theirs) in enumerate(zip(one[when], other[when], strict=True)):
            assert list(ours) == list(theirs), "the names and their order"
            for key in ours.keys() - set(differing):
                is_exact = any(part in key for part in EXACT) and tolerance <= 1e-6
                expected = pytest.approx(ours[key], rel=2 * tolerance, abs=tolerance, nan_ok=True)
                if is_exact:
                    expected = pytest.approx(ours[key], rel=1e-12, nan_ok=True)
                assert theirs[key] == expected, (when, place, key)
    assert one["progress"] == other["progress"]
    for key in one["monitor"].keys() - {"best"}:
        assert one["monitor"][key] == other["monitor"][key], key


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    assert ours.shape == theirs.shape, what
    assert float((ours - theirs).norm()) <= tolerance * float(ours.norm()) + 1e-12, what


def merged_ids(ranks: list[dict[str, Any]]) -> list[tuple[int, list[int]]]:
    """Return the ids of each batch in order, of which rank r noted those at [r::size]."""
    batches: dict[int, dict[int, int]] = {}
    for rank, each in enumerate(ranks):
        for number, ids in each["ids"]:
            places = {len(ranks) * place + rank: one for place, one in enumerate(ids)}
            batches.setdefault(number, {}).update(places)
    return [(n, [ids for _, ids in sorted(found.items())]) for n, found in sorted(batches.items())]


# --- A second way: the gradient of the whole window, in plain torch ------------------------------


def by_hand(name: str, model: Any, batches: list[Any]) -> Tensor:
    """Return the loss of all samples of a window at once."""
    x, y = (torch.cat([batch[place] for batch in batches]) for place in range(2))
    if name.startswith("shifted"):
        scores = model(x)[:, :-1].flatten(0, 1)
        return F.cross_entropy(scores, y[:, 1:].flatten(), ignore_index=0)
    weight = torch.tensor(eval(WEIGHTS)) if name == "class weights" else None
    return F.cross_entropy(model(x), y, weight=weight)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("plain", 2),
        ("ignored, accumulate", 2),
        ("micro batch of one, accumulate", 2),
        ("shifted, accumulate", 2),
        pytest.param("class weights", 4, marks=pytest.mark.slow),
        pytest.param("accumulate two", 4, marks=pytest.mark.slow),
        pytest.param("shifted", 4, marks=pytest.mark.slow),
    ],
)
def test_the_gradients_are_those_of_plain_torch(name: str, size: int, trained: Any) -> None:
    found = trained(size, name in QUICK)[0][name]["gradients"]
    with registered():
        trainer = trainer_of(CASES[name])
    model, window = trainer.model, trainer.config["memory"]["accumulate"]
    optimizer = next(iter(trainer.optimizers.values()))
    n_batches = trainer.experiment.batches_per_epoch
    for epoch in range(2):
        batches = list(trainer.train_loader.batches(epoch * n_batches, n_batches))
        for first in range(0, n_batches, window):
            model.zero_grad()
            by_hand(name, model, batches[first : first + window]).backward()
            expected = torch.cat([p.grad.flatten() for p in model.parameters()])
            assert_close(expected, found.pop(0), 1e-5, name)
            optimizer.step()
    assert not found
