"""The buffers at the start of a step: copied together, into memory that the next step reuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from base.checkpoint.store import read
from base.training.trials import KeptCopies, copy_all, keep_buffers
from tests.base.toy import assert_same, run


def norms() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tensors in each call that copies several."""
    found: list[int] = []
    copy = torch._foreach_copy_

    def counted(targets: Any, sources: Any) -> Any:
        found.append(len(targets))
        return copy(targets, sources)

    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    return found


def test_one_call_copies_all_buffers_of_a_type(calls: list[int]) -> None:
    model, copies = norms(), KeptCopies()
    keep_buffers(model.modules(), copies)
    expected = {name: buffer.clone() for name, buffer in model.named_buffers()}
    put_back = keep_buffers(model.modules(), copies)
    assert calls == [6, 3]  # means and variances; numbers of batches
    model(torch.randn(4, 3))
    put_back()
    assert calls == [6, 3, 6, 3]
    assert_same(dict(model.named_buffers()), expected)


def test_the_memory_of_the_copies_is_reused() -> None:
    model, copies = norms(), KeptCopies()
    buffers = list(model.buffers())
    places = [copy.data_ptr() for copy in copies.take(buffers)]
    model(torch.randn(4, 3))
    taken = copies.take(list(model.buffers()))
    assert [copy.data_ptr() for copy in taken] == places
    assert_same(list(taken), buffers)
    taken[0].zero_()
    assert buffers[0].any(), "a copy shares no memory with its buffer"


def test_other_buffers_get_other_copies() -> None:
    model, copies = norms(), KeptCopies()
    first = copies.take(list(model.buffers()))
    kept = [one.clone() for one in first]
    model[0].running_mean = torch.ones(5)
    assert copies.take(list(model.buffers()))[0].shape == (5,)
    assert_same(first, kept)


def test_the_copies_of_two_callers_are_apart() -> None:
    model = norms()
    first = keep_buffers(model.modules())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(torch.randn(4, 3))
    keep_buffers(model.modules())
    first()
    assert_same(dict(model.named_buffers()), before)


def test_tensors_of_any_layout_are_copied() -> None:
    sparse = torch.eye(2).to_sparse()
    targets = [torch.zeros(2), torch.zeros(2, 2).to_sparse(), torch.zeros(2, dtype=torch.int64)]
    copy_all(targets, [torch.ones(2), sparse, torch.ones(2, dtype=torch.int64)])
    assert [one.to_dense().sum().item() for one in targets] == [2, 2, 2]


class Spiky(nn.Module):
    """Returns NaN at its third training step, after its buffers have changed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(5), nn.Linear(5, 3))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.n_calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.n_calls += 1
            self.steps += 1
        return self.body(x) * (float("nan") if self.training and self.n_calls == 5 else 1)


def test_a_skipped_step_leaves_the_buffers_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from base.names.registry import MODELS

    monkeypatch.setitem(MODELS.registered, "Spiky", Spiky)
    options = ("model={type: Spiky}", "trainer.on_nonfinite=skip")
    trainer = run(tmp_path, *options)
    assert trainer.progress.skipped == 1
    state = read(tmp_path)["model"]
    assert int(state["steps"]) == int(state["body.1.num_batches_tracked"]) == 9  # of 10
