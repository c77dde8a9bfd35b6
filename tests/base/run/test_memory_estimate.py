"""`--dry-run` estimates the memory of a step: against what is alive after each operation of one."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy import assert_same, batches, make

from base.data.batch import tensors_in
from base.names.registry import MODELS
from base.run.dry_run_report import dry_run
from base.run.memory_estimate import MB, Estimate, estimate_memory
from base.system.resources import UNLIMITED
from base.training.trials import trial
from trainer.trainer import Trainer

IMAGES = (
    "data_loader={type: SyntheticDataLoader, args: {n_samples: 200, shape: [1, 16, 16], "
    "n_classes: 10, batch_size: %d, validation_split: 8}}"
)
NETS = {
    "convolutions": "model={type: Convolutions}",
    "transformer": "model={type: TransformerClassifier, "
    "args: {image_size: 16, width: 32, depth: 2}}",
}
ADAM = "optimizer={type: Adam}"


class Convolutions(nn.Sequential):
    """Convolutions with BatchNorm, dropout and pooling."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for n_in, n_out in ((1, 16), (16, 16), (16, 32)):
            layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()]
        head = [nn.Dropout2d(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
        super().__init__(*layers, *head)


@pytest.fixture(autouse=True)
def _convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Convolutions", Convolutions)


class LiveBytes(TorchDispatchMode):
    """Looks after each operation which of the storages that it has seen made are alive."""

    def __init__(self, there: Iterator[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._there = {t.untyped_storage()._cdata for t in there}
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._there:
                storage = tensor.untyped_storage()
                self._seen[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._seen = {k: pair for k, pair in self._seen.items() if not pair[0].expired()}
        self.peak = max(self.peak, sum(n_bytes for _, n_bytes in self._seen.values()))
        return made


def estimate_of(net: str, *overrides: str, n_samples: int = 16, **how: Any) -> Estimate:
    trainer = make(NETS[net], IMAGES % n_samples, *overrides, **how)
    return estimate_memory(trainer, next(batches(trainer)))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("n_samples", [8, 48])
def test_a_third_batch_takes_the_estimate_or_a_little_less(net: str, n_samples: int) -> None:
    estimated = estimate_of(net).total(n_samples)
    trainer = make(NETS[net], IMAGES % n_samples)
    batch = next(batches(trainer))
    there = (*trainer.model.parameters(), *trainer.model.buffers(), *tensors_in(batch))
    with trial(trainer.training_state, trainer), LiveBytes(iter(there)) as live:
        trainer.try_step(batch)
    found = live.peak + sum(tensor.nbytes for tensor in there)
    assert 0.85 * estimated <= found <= 1.01 * estimated


@pytest.mark.parametrize("net", NETS)
def test_nothing_is_left_of_it(net: str) -> None:
    """Weights, BatchNorm's statistics, random streams, the optimizer's state, gradients."""
    trainer = make(NETS[net], IMAGES % 16, ADAM)
    trainer.train_step(next(batches(trainer)))
    batch = next(batches(trainer))
    before = copy.deepcopy({name: one.state_dict() for name, one in trainer.stateful.items()})
    window = dict(vars(trainer.window))
    estimate_memory(trainer, batch)
    assert_same({name: one.state_dict() for name, one in trainer.stateful.items()}, before)
    assert vars(trainer.window) == window
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_the_optimizer_counts_by_the_state_that_it_has() -> None:
    trainer = make(NETS["transformer"], IMAGES % 16, ADAM)
    batch = next(batches(trainer))
    trainer.train_step(batch)
    n_bytes = 4 * sum(p.numel() for p in trainer.model.parameters())
    estimate = estimate_memory(trainer, batch)
    assert estimate.optimizer == 2 * n_bytes
    assert estimate.gradients == n_bytes


@pytest.mark.parametrize("optimizer", ["optimizer={type: Adam}", "optimizer={type: SGD}"])
def test_parameters_that_are_unfrozen_later_count(optimizer: str) -> None:
    """The whole after the first steps is that of a run without `freeze:`, but for activations."""
    whole = estimated_after_a_step(optimizer)
    frozen = estimated_after_a_step(optimizer, "freeze={match: 're:(?!head).*', until: 1 epoch}")
    assert 0 < frozen.gradients < whole.gradients
    total = frozen.gradients + frozen.optimizer + frozen.thawed
    assert total == pytest.approx(whole.gradients + whole.optimizer, rel=0.01)
    assert frozen.largest(10**9) < frozen._replace(thawed=0).largest(10**9)
    assert "(model" in frozen.text(10**9)
    assert "the largest batch that may fit" in frozen.text(10**9)
    assert "The activations are those while they are frozen" in frozen.text(10**9)
    assert "freeze" not in whole.text(10**9)
    forever = estimated_after_a_step(optimizer, "freeze='re:(?!head).*'")
    assert forever.thawed == 0


def estimated_after_a_step(*overrides: str) -> Estimate:
    trainer = make(NETS["transformer"], IMAGES % 16, *overrides)
    batch = next(batches(trainer))
    trainer.window.take(batch)
    trainer.train_step(batch)
    return estimate_memory(trainer, batch)


def test_several_backward_passes_of_a_step_do_not_add_up() -> None:
    class Twice(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            Trainer.train_step(self, batch)
            return Trainer.train_step(self, batch)

    assert estimate_of("convolutions", trainer=Twice) == estimate_of("convolutions")


def test_with_micro_batches_a_part_is_there_at_a_time() -> None:
    cut = estimate_of("convolutions", "memory.micro_batch=4")
    whole = estimate_of("convolutions")
    rest = 12 * whole.batch  # of the samples that wait for their turn
    assert cut.total(16) == pytest.approx(whole.total(4) + rest, rel=1e-6)


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    estimated = Estimate(8, model=100, gradients=50, optimizer=20, batch=3, fixed=10, activations=7)
    free = 1234
    largest = estimated.largest(free)
    assert estimated.total(largest) - 100 - 20 <= free < estimated.total(largest + 1) - 100 - 20
    assert estimated.largest(10) == 0


def test_a_model_for_one_size_of_batch_is_reported_without_a_largest() -> None:
    class Sixteen(Trainer):
        def forward(self, batch: Any) -> Any:
            return self.model(batch[0].view(16, 1, 16, 16))

    estimated = estimate_of("convolutions", trainer=Sixteen)
    assert estimated.total(16) == pytest.approx(estimate_of("convolutions").total(16))
    assert estimated.text(10**9).endswith("cannot be cut, so other sizes are unknown")


def test_a_lone_sample_is_taken_for_all() -> None:
    estimated = estimate_of("transformer", n_samples=1)
    assert estimated.total(16) == pytest.approx(estimate_of("transformer").total(16), rel=0.05)


def test_the_line_says_parts_free_memory_and_the_largest_batch() -> None:
    estimated = Estimate(128, MB // 4, MB // 4, MB // 2, MB / 1280, 0.0, 60 * MB / 128)
    parts = "(model 0.25, gradients 0.25, optimizer 0.5, batch 0.1, activations 60)"
    assert estimated.text(20_400 * MB) == (
        f"about 61 MB with batch 128 {parts}; "
        "the largest batch that fits 20,400 MB free: about 43,000"
    )
    assert estimated.text(UNLIMITED) == f"about 61 MB with batch 128 {parts}"


@pytest.mark.parametrize(
    ("option", "end"),
    [
        ("precision=bf16", r"the largest batch that fits \S+ MB free: about [1-9][\d,]*"),
        ("micro_batch=auto", "larger batches take little more, as memory.micro_batch splits them"),
        ("micro_batch=3", "larger batches take little more, as memory.micro_batch splits them"),
    ],
)
def test_a_dry_run_shows_it_with_each_option(option: str, end: str) -> None:
    shown = dry_run(make(NETS["transformer"], IMAGES % 16, f"memory.{option}"))
    line = rf"^memory of a step: about \S+ MB with batch 16 \(model .*, activations \S+\); {end}$"
    assert re.search(line, shown, re.MULTILINE), shown
