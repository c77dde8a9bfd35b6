"""A training on weighted samples: its steps and means are those of one formula over them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset
from toy import CONFIG, assert_resumes, make, train_in

from base.base_data_loader import BaseDataLoader
from base.datasets.in_memory import synthetic_images
from base.errors import ConfigError, DataError
from base.names.registry import DATA_LOADERS, LOSSES, METRICS
from trainer.trainer import Trainer

N = 26  # 22 in batches of 4 train, so the last batch is short
CLASS_WEIGHTS = [0.2, 1.0, 3.0]


class Weighted(TensorDataset):
    def __init__(self, w: Tensor) -> None:
        super().__init__(*synthetic_images(N, (1, 1, 5), 3, 1.0, 0, "train"))
        self.w = w


def some_weights() -> Tensor:
    w = torch.rand(N, generator=torch.Generator().manual_seed(0)) * 3
    return w.masked_fill(w < 0.7, 0)


def loader(is_item: bool = False) -> Any:
    dataset: Any = Weighted(some_weights())
    if is_item:
        dataset = TensorDataset(*dataset.tensors, dataset.w)
    return BaseDataLoader(dataset, 4, True, 4, 0)


def zeros() -> Any:
    return BaseDataLoader(Weighted(torch.zeros(N)), 4, True, 4, 0)


def distance(output: Tensor, target: Tensor) -> Tensor:
    """A loss of the project's that knows nothing of weights."""
    return (output.softmax(1) - F.one_hot(target, 3)).square().sum(1).mean()


@pytest.fixture(autouse=True)
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (loader, zeros):
        monkeypatch.setitem(DATA_LOADERS.registered, each.__name__, each)
    monkeypatch.setitem(LOSSES.registered, "distance", distance)


def text_of(loss: str, loader: str = "loader", weight: str = "w", args: str = "{}") -> str:
    head, _, rest = CONFIG.partition("data_loader:")
    _, _, tail = rest.partition("optimizer:")
    section = f"data_loader: {{type: {loader}, args: {args}}}\nbatch: {{weight: {weight}}}\n"
    tail = tail.replace("loss: cross_entropy", f"loss: {loss}")
    return f"{head}{section}optimizer:{tail}"


LOSS_TEXTS = {
    "plain": "cross_entropy",
    "class weights": f"{{type: cross_entropy, args: {{weight: {CLASS_WEIGHTS}}}}}",
    "module": f"{{type: CrossEntropyLoss, args: {{weight: {CLASS_WEIGHTS}}}}}",
    "own": "distance",
    "several": f"[{{type: cross_entropy, args: {{weight: {CLASS_WEIGHTS}}}, weight: 0.5}}, "
    "distance]",
}


def formula(kind: str, model: Any, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """The loss of all these samples at once."""
    scores = model(x)
    each = F.cross_entropy(scores, y, reduction="none")
    classes = torch.tensor(CLASS_WEIGHTS)[y]
    own = (scores.softmax(1) - F.one_hot(y, 3)).square().sum(1)
    plain = (w * each).sum() / w.sum()
    balanced = (w * classes * each).sum() / (w * classes).sum()
    distances = (w * own).sum() / w.sum()
    return {
        "plain": plain, "class weights": balanced, "module": balanced, "own": distances,
        "several": 0.5 * balanced + distances,
    }[kind]  # fmt: skip


def samples(loader: Any, first: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    found = list(loader.batches(first, count))
    x, y, w = (torch.cat([batch[place] for batch in found]) for place in range(3))
    return x, y, w


@pytest.mark.parametrize("kind", LOSS_TEXTS)
@pytest.mark.parametrize("is_item", [False, True])
@pytest.mark.parametrize(
    "memory", [{}, {"accumulate": 3}, {"micro_batch": 3}, {"accumulate": 4, "micro_batch": 1}]
)
def test_steps_and_means_are_those_of_the_formula(
    kind: str, is_item: bool, memory: dict[str, int]
) -> None:
    weight, args = ("2", "{is_item: true}") if is_item else ("w", "{}")
    text = text_of(LOSS_TEXTS[kind], weight=weight, args=args)
    options = [f"memory.{key}={value}" for key, value in memory.items()]
    trainer, reference = make(*options, text=text), make(text=text)
    values = trainer.train_epoch()

    model, window = reference.model, memory.get("accumulate", 1)
    n_batches = reference.experiment.batches_per_epoch
    for first in range(0, n_batches, window):
        part = samples(reference.train_loader, first, min(window, n_batches - first))
        model.zero_grad()
        if part[2].sum() > 0:
            formula(kind, model, *part).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    for ours, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)

    # Of a model that stands still, the means over unequal batches are one formula too.
    still = make("optimizer.args.lr=0.0", *options, text=text)
    values = {**still.train_epoch(), **still.validate()}
    whole = samples(still.train_loader, 0, n_batches)
    expected = formula(kind, still.model, *whole)
    assert values["train/loss"] == pytest.approx(expected.item(), rel=1e-5)
    valid = samples(still.valid_loader, 0, 1)
    still.model.eval()
    assert values["valid/loss"] == pytest.approx(
        formula(kind, still.model, *valid).item(), rel=1e-5
    )


@pytest.mark.parametrize("options", [[], ["memory.accumulate=2"], ["memory.micro_batch=3"]])
@pytest.mark.parametrize("kind", ["class weights", "own"])
def test_weights_of_zero_train_nothing_and_give_no_nan(kind: str, options: list[str]) -> None:
    trainer = make(*options, text=text_of(LOSS_TEXTS[kind], loader="zeros"))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train_epoch()
    after = list(trainer.model.parameters())
    assert all(a.equal(b) for a, b in zip(after, before, strict=True))


def test_a_ramp_multiplies_the_weighted_mean(tmp_path: Path) -> None:
    text = text_of("{type: cross_entropy, weight: {from: 2, to: 2}}")
    trainer = make("optimizer.args.lr=0.0", text=text)
    values = trainer.train_epoch()
    part = samples(trainer.train_loader, 0, 6)
    expected = 2 * formula("plain", trainer.model, *part)
    assert values["train/loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_functions_get_ids_and_weights_by_the_names_of_their_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def by_id(output: Tensor, target: Tensor, ids: Tensor) -> Tensor:
        seen.extend(ids.tolist())
        return F.cross_entropy(output, target)

    def hits(output: Tensor, target: Tensor, sample_weight: Tensor) -> Tensor:
        return ((output.argmax(1) == target) * sample_weight).sum() / sample_weight.sum()

    def all_hits(output: Tensor, target: Tensor, sample_weight: Tensor, ids: Tensor) -> Tensor:
        assert ids.tolist() == sorted(ids.tolist())
        return hits(output, target, sample_weight)

    for registry, function in ((LOSSES, by_id), (METRICS, hits), (METRICS, all_hits)):
        monkeypatch.setitem(registry.registered, function.__name__, function)
    metrics = "metrics: [hits, {type: all_hits, over: epoch}]\n"
    text = metrics + text_of("by_id").replace("weight: w", "weight: w, ids: true")
    trainer = make("optimizer.args.lr=0.0", "trainer.train_metrics=false", text=text)
    values = {**trainer.train_epoch(), **trainer.validate()}
    x, y, _ = samples(trainer.valid_loader, 0, 1)
    ids = next(trainer.valid_loader.batches(0, 1))[2]
    expected = hits(trainer.model(x), y, some_weights()[ids])
    assert values["valid/hits"] == pytest.approx(expected.item())
    assert values["valid/all_hits"] == pytest.approx(expected.item())
    assert set(seen) == set(range(N))


def test_a_trainer_that_leaves_the_weights_out_is_warned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Own(Trainer):
        def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Any]:
            return {"loss": F.cross_entropy(outputs, batch[1])}

    with caplog.at_level("WARNING", logger="kindling"):
        train_in(make(text=text_of("cross_entropy"), trainer=Own))
    assert caplog.text.count("batch.weight: Own called none of `self.losses`") == 1
    caplog.clear()
    with caplog.at_level("WARNING", logger="kindling"):
        train_in(make(text=text_of("cross_entropy")))
    assert "batch.weight" not in caplog.text


def test_a_run_with_weights_resumes(tmp_path: Path) -> None:
    text = text_of(LOSS_TEXTS["several"]).replace("weight: w}", "weight: w, ids: true}")
    assert_resumes(tmp_path, "memory.accumulate=2", stop_at=2, text=text)


@pytest.mark.parametrize("is_reduced", [False, True])
def test_a_loss_that_draws_numbers_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_reduced: bool
) -> None:
    def noisy(output: Tensor, target: Tensor) -> Tensor:
        each = F.cross_entropy(output + torch.rand_like(output), target, reduction="none")
        return each.mean() if is_reduced else each

    monkeypatch.setitem(LOSSES.registered, "noisy", noisy)
    assert_resumes(tmp_path, stop_at=4, text=text_of("noisy"))
    trainer = make(text=text_of("noisy"))
    batch = next(trainer.train_loader.batches(0, 1))
    output = trainer.model(batch[0])
    values = [trainer.losses["noisy"](output, batch[1], batch=batch).item() for _ in range(2)]
    assert values[0] != values[1]


def test_bad_weights_of_a_batch_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def bad() -> Any:
        w = torch.ones(N)
        w[3] = -1
        return BaseDataLoader(TensorDataset(*Weighted(w).tensors, w), 4, False, 0, 0)

    monkeypatch.setitem(DATA_LOADERS.registered, "bad", bad)
    trainer = make(text=text_of("cross_entropy", loader="bad", weight="2"))
    with pytest.raises(DataError, match=r"batch.weight: sample 3 has weight -1"):
        trainer.train_epoch()


def test_what_compares_samples_cannot_be_weighted(monkeypatch: pytest.MonkeyPatch) -> None:
    def repulsion(output: Tensor, target: Tensor) -> Tensor:
        return torch.cdist(output, output).mean()

    repulsion.needs_whole_batches = True  # type: ignore[attr-defined]
    monkeypatch.setitem(LOSSES.registered, "repulsion", repulsion)
    with pytest.raises(ConfigError, match="repulsion compares the samples of a batch"):
        make(text=text_of("repulsion"))
