"""A training step does not wait for the GPU: each wait of the host is counted.

Without a GPU it is simulated (`simulated_gpu.py`); `gpu` tests below count on a real one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_gpu import GPU, Machine, plain, simulated_gpu
from torch import Tensor
from torch.utils._pytree import tree_map
from toy import CPU, assert_same, make, train_in, weights

from base import base_trainer
from base.callbacks import Callback
from base.checkpoint.store import read
from base.errors import TrainingError
from base.training.rank_states import gather_state
from trainer.trainer import Trainer

NAN = float("nan")
NEVER = 10**9  # operations that the GPU is behind: nothing is done until the host waits for it
IMAGES = "model={type: MLP, args: {n_inputs: 36, hidden: [6], n_outputs: 3}}"
LOADER = """data_loader={type: DatasetLoader, args: {batch_size: 4, split: 4, %s,
dataset: {type: SyntheticDataset, args: {n_samples: 24, shape: [1, 6, 6], n_classes: 3}}}}"""
AUGMENTED = """normalize: auto, transforms: [{type: RandomShift, args: {pixels: 1}}, RandomFlip,
{type: RandomCutout, args: {pixels: 2}}, {type: RandomCrop, args: {size: 6, padding: 1}}]"""


class Waits(Callback):
    """The waits of each step, from the end of the one before it or the start of the epoch."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.of_step: dict[int, list[str]] = {}

    def on_start(self, trainer: Any) -> None:
        end_step, micro_batches = type(trainer).end_step, type(trainer)._micro_batches

        def end(values: Mapping[str, Any]) -> None:
            end_step(trainer, values)
            self.of_step[trainer.progress.step] = list(self.machine.waits)
            self.machine.waits.clear()

        def begin(bar: Any) -> Iterator[Any]:
            self.machine.waits.clear()
            return micro_batches(trainer, bar)

        vars(trainer).update(end_step=end, _micro_batches=begin)


def waits_of(*overrides: str, lag: float = NEVER, **how: Any) -> dict[int, list[str]]:
    """Return the waits of each step after the first one, which has checks of its own."""
    with simulated_gpu(lag) as machine:
        made = make(*overrides, device=GPU, **how)
        made.callbacks["Waits"] = waits = Waits(machine)
        train_in(made)
    del waits.of_step[1]
    assert waits.of_step
    return waits.of_step


STEPS = {
    "default": [],
    "AdamW": ["optimizer={type: AdamW, args: {lr: 0.01}}"],
    "Adagrad": ["optimizer={type: Adagrad, args: {lr: 0.01}}"],
    "momentum": ["optimizer={type: SGD, args: {lr: 0.1, momentum: 0.9}}"],
    "bf16": ["memory.precision=bf16"],
    "fp16": ["memory.precision=fp16"],
    "fp16 and clipping": ["memory.precision=fp16", "optimizer.clip_norm=1.0"],
    "clipped": ["optimizer.clip_norm=1.0", "optimizer.clip_value=0.1"],
    "ema": ["trainer.ema={decay: 0.9}"],
    "swa": ["trainer.swa={start: 1 step, every: 1 step}"],
    "accumulated": ["memory.accumulate=2"],
    "in micro-batches": ["memory.micro_batch=2"],
    "in micro-batches, accumulated": ["memory.micro_batch=2", "memory.accumulate=2"],
    "in the backward pass": ["memory.optimizer_in_backward=true"],
    "offloaded": ["memory.offload_optimizer=true", "optimizer={type: Adam, args: {lr: 0.1}}"],
    "accuracy": ["metrics=[accuracy]", "trainer.train_metrics=true"],
    "ignored targets": ["loss={type: cross_entropy, args: {ignore_index: 1}}"],
    "ignored, accumulated": [
        "loss={type: cross_entropy, args: {ignore_index: 1}}", "memory.accumulate=2",
        "memory.micro_batch=2",
    ],
    "class weights": ["loss={type: cross_entropy, args: {weight: [1.0, 2.0, 3.0]}}"],
    "several losses": ["loss=[cross_entropy, {type: nll_loss, weight: 0.1}]"],
    "loss gradients": [
        "loss=[cross_entropy, {type: nll_loss, weight: 0.1}]", "trainer.loss_gradients=1 step"
    ],
    "a schedule": ["lr_scheduler={type: OneCycleLR, args: {max_lr: 0.1}, every: step}"],
    "data not on the GPU": ["data_loader.args.num_workers=1"],
    "normalised": [IMAGES, LOADER % "normalize: auto"],
    "augmented": [IMAGES, LOADER % AUGMENTED],
    "augmented, read ahead": [IMAGES, LOADER % f"{AUGMENTED}, num_workers: 1"],
    "MixUp": [IMAGES, LOADER % "transforms: [MixUp]"],
    "CutMix": [IMAGES, LOADER % "transforms: [CutMix]"],
}  # fmt: skip


@pytest.mark.parametrize("overrides", STEPS.values(), ids=STEPS)
def test_a_step_does_not_wait(overrides: list[str]) -> None:
    """Whether the GPU is done at once, or not before the host waits for it."""
    for lag in (0, NEVER):
        waits = waits_of(*overrides, lag=lag)
        assert not any(waits.values()), json.dumps(waits, indent=1)


# --- Non-finite losses, which are read late -------------------------------------------------------


class BadLoss(Trainer):
    """Its loss is NaN at some batches, with finite gradients: nothing but the loss can tell."""

    at: tuple[int, ...] = (4,)

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        losses = super().compute_losses(outputs, batch)
        if self.progress.batches_total in self.at and self.model.training:
            losses = {name: loss + torch.full_like(loss, NAN) for name, loss in losses.items()}
        return losses


def ending_of(
    folder: Path, *overrides: str, device: torch.device, trainer: type[Trainer] = BadLoss
) -> tuple[str, Any]:
    """Train until a loss is not finite; return the message and the trainer."""
    folder.mkdir()
    made = make(*overrides, trainer=trainer, device=device)
    with pytest.raises(TrainingError) as caught:
        train_in(made, folder)
    return str(caught.value), made


def on_cpu(state: Any) -> Any:
    """Return a copy of a nested state with plain tensors."""

    def copied(value: Any) -> Any:
        return plain(value).detach().clone() if isinstance(value, Tensor) else value

    return tree_map(copied, state)


@pytest.fixture(autouse=True)
def _plain_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save tensors of the simulated GPU as plain ones."""
    monkeypatch.setattr(base_trainer, "gather_state", lambda *how: on_cpu(gather_state(*how)))


BAD = {
    "SGD": [],
    "momentum": ["optimizer={type: SGD, args: {lr: 0.1, momentum: 0.9}}"],
    "AdamW": ["optimizer={type: AdamW, args: {lr: 0.01}}", "optimizer.clip_norm=1.0"],
    "Adagrad": ["optimizer={type: Adagrad, args: {lr: 0.01}}", "trainer.ema={decay: 0.9}"],
    "without a fused kernel": ["optimizer={type: RMSprop, args: {lr: 0.01}}"],
    "not fused": ["memory.fused=false"],
    "accumulated": ["memory.accumulate=2"],
    "in micro-batches": ["memory.micro_batch=2"],
    "in the backward pass": ["memory.optimizer_in_backward=true"],
    "a schedule": ["lr_scheduler={type: OneCycleLR, args: {max_lr: 0.1}, every: step}"],
    "each step logged and saved": ["trainer.log_every=1 step", "trainer.save_every=1 step"],
    "fp16": ["memory.precision=fp16"],
    "fp16 and clipping": ["memory.precision=fp16", "optimizer.clip_norm=1.0"],
}


@pytest.mark.parametrize("lag", [0, 150, NEVER])
@pytest.mark.parametrize("overrides", BAD.values(), ids=BAD)
def test_a_loss_that_is_read_late_ends_a_run_as_on_the_cpu(
    tmp_path: Path, overrides: list[str], lag: float
) -> None:
    """The same message and step, weights, moments and files, however far the GPU is behind."""
    expected, theirs = ending_of(tmp_path / "cpu", *overrides, device=CPU)
    with simulated_gpu(lag):
        found, ours = ending_of(tmp_path / "gpu", *overrides, device=GPU)
        assert found == expected
        assert ours.progress == theirs.progress
        assert_same(on_cpu(weights(ours)), weights(theirs))
        for name, optimizer in theirs.optimizers.items():
            moments, expected = ours.optimizers[name].state_dict()["state"], optimizer.state_dict()
            assert_same(on_cpu(moments), on_cpu(expected["state"]))
    assert files_of(tmp_path / "gpu") == files_of(tmp_path / "cpu")
    if "trainer.save_every=1 step" in overrides:
        assert_same(read(tmp_path / "gpu")["model"], read(tmp_path / "cpu")["model"])


def files_of(folder: Path) -> list[str]:
    files = (each.relative_to(folder) for each in folder.rglob("*") if each.is_file())
    return sorted(str(each) for each in files)
