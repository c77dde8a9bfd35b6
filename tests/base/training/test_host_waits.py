"""A training step does not wait for the GPU: each wait of the host is counted.

Without a GPU it is simulated (`simulated_gpu.py`); `gpu` tests below count on a real one.
"""

from __future__ import annotations

import json
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from simulated_gpu import GPU, Machine, machine, plain, simulated_gpu
from torch import Tensor
from torch.utils._pytree import tree_map
from torchvision import transforms
from torchvision.transforms import v2
from toy import CPU, StopAt, assert_same, make, train_in, weights

from base import base_trainer
from base.callbacks import Callback
from base.checkpoint.background import Snapshot
from base.checkpoint.store import read
from base.config import load_config
from base.datasets.mixing import CutMix, MixUp
from base.datasets.pipeline import Pipeline
from base.datasets.transforms import RandomCutout, RandomFlip, RandomShift
from base.errors import TrainingError
from base.names.check import check_names
from base.names.registry import OPTIMIZERS, names
from base.run.build import build_experiment, build_trainer
from base.system.signals import InterruptedRunError
from base.system.torch_compat import TORCH
from base.training.denominators import denominator_of
from base.training.host_copy import HostCopy
from base.training.losses import build_losses
from base.training.metrics import build_metrics
from base.training.progress import Progress
from base.training.rank_states import gather_state
from base.training.recovery import MOST_BATCHES_AHEAD
from base.training.run_log import ShownLoss
from logger.meters import Meters
from model.model import DigitsNet
from trainer.trainer import Trainer

NAN = float("nan")
NEVER = 10**9  # operations that the GPU is behind: nothing is done until the host waits for it
IMAGES = "model={type: MLP, args: {n_inputs: 36, hidden: [6], n_outputs: 3}}"
LOADER = """data_loader={type: DatasetLoader, args: {batch_size: 4, split: 4, %s,
dataset: {type: SyntheticDataset, args: {n_samples: 24, shape: [1, 6, 6], n_classes: 3}}}}"""
LARGE = """data_loader={type: DatasetLoader, args: {batch_size: 4, split: 4, pin_memory: false,
workers: processes, num_workers: 1, dataset: {type: SyntheticDataset, args: {n_samples: 24,
shape: [1, 80, 80], n_classes: 3}}}}"""
SHIFT = "[{type: RandomShift, args: {pixels: 1}}]"
MANY = """data_loader={type: DatasetLoader, args: {batch_size: 9000, split: 9000, transforms: %s,
dataset: {type: SyntheticDataset, args: {n_samples: 54000, shape: [1, 2, 2], n_classes: 3}}}}"""
AUGMENTED = """normalize: auto, transforms: [{type: RandomShift, args: {pixels: 1}}, RandomFlip,
{type: RandomCutout, args: {pixels: 2}}, {type: RandomCrop, args: {size: 6, padding: 1}}]"""


class Waits(Callback):
    """The waits of each step, from the end of the one before it or the start of the epoch."""

    def __init__(self, machine: Machine | RealGPU) -> None:
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


@contextmanager
def two_batches_behind(machine: Machine) -> Iterator[None]:
    """Let the GPU finish a batch when the host has queued two more: both are still to compute."""
    ends: list[int] = []  # of the batches, among the operations

    def advance(progress: Progress, n_samples: int) -> None:
        ends.append(machine.n_queued)
        machine.complete(ends[-1 - MOST_BATCHES_AHEAD] if len(ends) > MOST_BATCHES_AHEAD else 0)
        count(progress, n_samples)

    count = Progress.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "advance", advance)
        yield


def waits_of(
    *overrides: str, lag: float = NEVER, is_two_behind: bool = False, **how: Any
) -> dict[int, list[str]]:
    """Return the waits of each step after the first one, which has checks of its own."""
    with simulated_gpu(lag) as machine:
        made = make(*overrides, device=GPU, **how)
        made.callbacks["Waits"] = waits = Waits(machine)
        with two_batches_behind(machine) if is_two_behind else nullcontext():
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
    "large data that are not pinned": [IMAGES.replace("36", "6400"), LARGE],
    "many samples a batch": [IMAGES.replace("36", "4"), MANY % SHIFT],
    "many samples a batch, MixUp": [IMAGES.replace("36", "4"), MANY % "[MixUp]"],
    "many samples a batch, CutMix": [IMAGES.replace("36", "4"), MANY % "[CutMix]"],
    "activations recomputed": ["memory.checkpoint_activations=[hidden.*]"],
    "activations offloaded": ["memory.offload_activations=true"],
    "gradients set to zero": ["memory.set_to_none=false"],
    "steps that could be repeated": ["trainer.on_oom=halve"],
    "frozen for a time": ["freeze=[{match: hidden.*, until: 3 steps}]"],
    "offloaded and clipped in fp16": [
        "memory.offload_optimizer=true", "optimizer={type: AdamW, args: {lr: 0.1}, clip_norm: 1.0}",
        "memory.precision=fp16",
    ],
    "losses one by one": [
        "loss=[cross_entropy, {type: nll_loss, weight: 0.1}]", "trainer.backward=separate"
    ],
    "a moving weight": ["loss={type: cross_entropy, weight: {from: 0.1, to: 1.0, over: 5 steps}}"],
    "a plateau": ["lr_scheduler={type: ReduceLROnPlateau}"],
    "ids": ["batch={ids: true}"],
    "many metrics": ["metrics=[F1, IoU, {type: top_k_accuracy, args: {k: 2}}, ConfusionMatrix]"],
    "callbacks": ["callbacks=[MemoryReport, ImageSamples]"],
    "MixUp": [IMAGES, LOADER % "transforms: [MixUp]"],
    "CutMix": [IMAGES, LOADER % "transforms: [CutMix]"],
}  # fmt: skip


@pytest.mark.parametrize("overrides", STEPS.values(), ids=STEPS)
def test_a_step_does_not_wait(overrides: list[str]) -> None:
    """Although the GPU is two whole batches behind the host, so that it never idles."""
    waits = waits_of(*overrides, is_two_behind=True)
    assert not any(waits.values()), json.dumps(waits, indent=1)


@pytest.mark.parametrize("overrides", STEPS.values(), ids=STEPS)
def test_a_host_that_is_further_ahead_waits_for_one_loss(overrides: list[str]) -> None:
    """Of the batch before the last two, in a window for each of its batches; for nothing else.

    Here the GPU is done with nothing before the host waits for it.
    """
    size = 2 if "memory.accumulate=2" in overrides else 1
    n_steps = -(-5 // size)  # of an epoch
    for step, each in waits_of(*overrides).items():
        n_read = size * (step <= n_steps)  # after the first step, by its check
        ends = range(*((step - 1) % n_steps * size + more for more in (1, size + 1)))
        expected = sum(n_read < end - MOST_BATCHES_AHEAD for end in ends if end <= 5)
        assert len(each) == expected, f"{step}: {each}"
        assert all("refuse_late" in wait for wait in each), f"{step}: {each}"


class RealGPU:
    """Counts the waits for a real GPU."""

    def __init__(self) -> None:
        self.waits: list[str] = []

    @contextmanager
    def watched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        wait = torch.cuda.Event.synchronize

        def synchronize(event: Any) -> None:
            self.waits.append("Event.synchronize")
            wait(event)

        monkeypatch.setattr(torch.cuda.Event, "synchronize", synchronize)
        with warnings.catch_warnings():
            warnings.filterwarnings("always", message="called a synchronizing CUDA operation")
            warnings.showwarning = lambda message, *_, **__: self.waits.append(str(message))
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("overrides", STEPS.values(), ids=STEPS)
def test_a_step_does_not_wait_for_a_real_gpu(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = RealGPU()
    made = make(*overrides, device=GPU)
    made.callbacks["Waits"] = waits = Waits(counted)
    with counted.watched(monkeypatch):
        train_in(made)
    del waits.of_step[1]
    assert not any(waits.of_step.values()), json.dumps(waits.of_step, indent=1)


LOGGED = ["trainer.log_every=2 steps", "metrics=[accuracy]", "trainer.train_metrics=true"]


@pytest.mark.parametrize("lag", [0, NEVER])
def test_a_step_that_is_logged_waits_once(lag: float) -> None:
    waits = waits_of(*LOGGED, "loss=[cross_entropy, {type: nll_loss, weight: 0.1}]", lag=lag)
    assert {step: len(each) for step, each in waits.items()} == {
        step: int(step % 2 == 0) for step in waits
    }


def test_a_progress_bar_does_not_wait_for_the_loss_that_it_shows() -> None:
    with simulated_gpu(NEVER) as machine:
        values = {"loss": torch.full((), 0.25, device=GPU)}
        text = ShownLoss(lambda: values)
        assert text() == text() == ""
        machine.complete(machine.n_queued)
        values["loss"] = torch.full((), 0.5, device=GPU)
        assert text() == text() == "loss 0.2500"  # the next one is on its way
        machine.complete(machine.n_queued)
        assert text() == "loss 0.5000"
        assert not machine.waits


WAITING_STEPS = {
    "recorded": (
        "capture=[{match: hidden.*, record: [scalars, histograms], every: 1 step}]",
        ["Event.synchronize", "a copy", "a copy"],
    ),
    "skip": ("trainer.on_nonfinite=skip", ["Event.synchronize", "a copy"]),
    "rollback": ("trainer.on_nonfinite=rollback", ["Event.synchronize", "a copy"]),
    "no fused kernel": ("optimizer={type: RMSprop, args: {lr: 0.01}}", ["Event.synchronize"]),
    "not fused": ("memory.fused=false", ["Event.synchronize"]),
}
if TORCH < (2, 11):  # its fused Adagrad is for the CPU only
    del STEPS["Adagrad"]


@pytest.mark.parametrize(("override", "expected"), WAITING_STEPS.values(), ids=WAITING_STEPS)
def test_what_must_wait_waits_as_often_as_the_docs_say(override: str, expected: list[str]) -> None:
    """Before a step that a flag on the GPU cannot undo; not once for each parameter."""
    for step, waits in waits_of(override).items():
        assert [wait.partition(" ")[0] for wait in waits] == [e.partition(" ")[0] for e in expected]
        assert step


# --- Shipped trainers, metrics, losses and transforms ---------------------------------------------


def made_up(shape: str, *names: str) -> list[str]:
    """Return the overrides that replace a config's data sets by generated ones."""
    section = f"{{type: SyntheticDataset, args: {{n_samples: 120, shape: [{shape}]}}}}"
    return [f"data_loader.args.{name}={section}" for name in names]


GREY = "data_loader={type: DatasetLoader, args: {batch_size: 16, split: 20}}"
SHIPPED: dict[str, list[str]] = {
    "cifar10": [GREY, *made_up("3, 32, 32", "dataset")],
    "cifar10_fast": [
        *made_up("3, 32, 32", "dataset", "test_dataset"),
        "memory.compile=false",
        "data_loader.args.batch_size=16",
        "model.args.layers=[{type: ResNet9, args: {width: 4, whitens: true}}]",
    ],
    "digit_scenes": ["data_loader.args.num_workers=0"],
    "digits": [],
    "digits_dcgan": [],
    "digits_distillation": ["model.args.teacher={type: DigitsNet, args: {width: 4}, weights: %s}"],
    "digits_muon": [],
    "digits_swa": [],
    "digits_teacher": [],
    "digits_wgan_gp": [],
    "fashion_mnist": [GREY, *made_up("1, 28, 28", "dataset")],
    "fashion_mnist_92": made_up("1, 28, 28", "dataset", "test_dataset"),
    "fashion_mnist_93": made_up("1, 28, 28", "dataset", "test_dataset"),
    "fashion_mnist_fast": [GREY, *made_up("1, 28, 28", "dataset")],
    "hard_digits": [],
    "mnist": [GREY, *made_up("1, 28, 28", "dataset")],
    # The simulation has no views of parameters in inference mode.
    "single_variables": ["data_loader.args.validation_split=0", "trainer.monitor=off"],
    "synthetic": [],
    "wine": [],
}
SMALL = [
    "trainer.tensorboard=false", "trainer.progress=false", "trainer.verbosity=0",
    "trainer.epochs=null", "trainer.steps=8", "memory.channels_last=false", "trainer.test=false",
]  # fmt: skip


def test_each_shipped_config_is_among_these() -> None:
    assert SHIPPED.keys() == {path.stem for path in Path("config").glob("*.yaml")}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_does_not_wait(name: str, tmp_path: Path) -> None:
    """Neither a step, nor an evaluation for each of its batches."""
    teacher = tmp_path / "teacher.pt"
    torch.save(DigitsNet(width=4).state_dict(), teacher)
    more = [each % teacher if "%s" in each else each for each in SHIPPED[name]]
    with simulated_gpu(NEVER) as machine:
        config = load_config(Path("config") / f"{name}.yaml", [*more, *SMALL])
        check_names(config)
        torch.manual_seed(config["seed"])
        made = build_trainer(config, build_experiment(config, GPU))
        made.callbacks["Waits"] = waits = Waits(machine)
        valid_step, of_batch = made.valid_step, []

        def noted(batch: Any) -> Any:
            machine.waits.clear()
            values = valid_step(batch)
            of_batch.extend(machine.waits)
            return values

        made.valid_step = noted
        with two_batches_behind(machine):
            train_in(made)
    del waits.of_step[1]
    assert len(waits.of_step) >= 4
    expected = ["Event.synchronize"] if "muon" in name else []
    for each in waits.of_step.values():
        assert [wait.partition(" ")[0] for wait in each] == expected, json.dumps(each)
    assert not of_batch


N = 12
RANDOM = torch.Generator().manual_seed(0)
SCORES, CLASSES = torch.randn(N, 4, generator=RANDOM), torch.randint(4, (N,), generator=RANDOM)
LABELS = torch.randint(2, (N, 4), generator=RANDOM)
CASES = {
    "classes": (SCORES, CLASSES),
    "class probabilities": (SCORES, SCORES.flip(0).softmax(1)),
    "labels": (SCORES, LABELS.float()),
    "signs": (SCORES, 2.0 * LABELS - 1),
    "one score": (SCORES[:, 0], LABELS[:, 0]),
    "values": (SCORES, SCORES.flip(0)),
    "probabilities": (SCORES.sigmoid(), LABELS.float()),
    "log probabilities": (SCORES.log_softmax(1), SCORES.flip(0).softmax(1)),
    "masks": (SCORES[:, :, None, None].expand(N, 4, 3, 3), CLASSES[:, None, None].expand(N, 3, 3)),
}


def shipped_sections(kind: str) -> list[dict[str, Any]]:
    more = {
        "SigmoidFocalLoss": {"alpha": 0.25}, "top_k_accuracy": {"k": 2}, "top_k_acc": {"k": 2},
        "ConfusionMatrix": {"n_classes": 4},
    }  # fmt: skip
    sections = [{"type": name, "args": more.get(name, {}), "name": name} for name in names(kind)]
    ignoring = ("cross_entropy", "CrossEntropyLoss", "nll_loss", "accuracy", "IoU", "FocalLoss")
    sections += [
        {"type": name, "args": {"ignore_index": 1}, "name": name}
        for name in ignoring
        if name in names(kind)
    ]
    weights = {"weight": [1.0, 2.0, 3.0, 4.0]}
    if kind == "loss":
        sections.append({"type": "CrossEntropyLoss", "args": weights, "name": "weighted"})
    return sections


def works_on(section: Mapping[str, Any], use: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the cases that a metric or a loss takes, on the CPU."""
    taken = []
    for case in CASES.values():
        with suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("error")
            use(section, case, CPU)
            taken.append(case)
    return taken


def measure(section: Mapping[str, Any], case: tuple[Tensor, Tensor], device: Any) -> Any:
    metric = build_metrics([{**section, "over": "batch"}])[section["name"]]
    output, target = (each.to(device) for each in case)
    if device is GPU:
        machine().waits.clear()
    for _ in range(3):
        metric.update(output, target, None, N)
    waits = list(machine().waits) if device is GPU else []
    assert not waits, f"{section}: {waits}"
    return metric.compute()


def minimise(section: Mapping[str, Any], case: tuple[Tensor, Tensor], device: Any) -> Any:
    loss = build_losses([{**section, "weight": 1.0}])[section["name"]].to(device)
    output, target = (each.to(device) for each in case)
    output = output.detach().clone().requires_grad_()
    meters = Meters(device)
    if device is GPU:
        machine().waits.clear()
    for _ in range(2):
        value = loss(output, target)
        meters.add("loss", value, None if (it := denominator_of(value)) is None else it.number)
        value.backward()
    waits = list(machine().waits) if device is GPU else []
    assert not waits, f"{section}: {waits}"
    return float(value.detach()), meters.compute()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "use"), [("metric", measure), ("loss", minimise)])
def test_no_shipped_metric_or_loss_waits(kind: str, use: Any) -> None:
    """Each, on each kind of output and target that it takes; with the numbers of the CPU."""
    n_taken = 0
    for section in shipped_sections(kind):
        for case in works_on(section, use):
            n_taken += 1
            expected = use(section, case, CPU)
            with simulated_gpu(NEVER):
                found = on_cpu(use(section, case, GPU))
            assert repr(found) == repr(on_cpu(expected)), section
    assert n_taken > {"metric": 30, "loss": 60}[kind]


TRANSFORMS = [
    [RandomShift(1)], [RandomFlip()], [RandomFlip(dim=-2)], [RandomCutout(2)],
    [transforms.RandomCrop(6, padding=1)], [transforms.RandomResizedCrop(6)],
    [transforms.RandomHorizontalFlip()], [transforms.RandomVerticalFlip()],
    [transforms.CenterCrop(4)], [transforms.Pad(1)],
    [MixUp(3)], [CutMix(3)], [RandomFlip(), CutMix(3)],
    [v2.RandomChoice([v2.MixUp(num_classes=3), v2.CutMix(num_classes=3)])],
]  # fmt: skip


@pytest.mark.parametrize("stages", TRANSFORMS, ids=lambda each: type(each[-1]).__name__)
def test_no_transform_of_a_batch_on_the_gpu_waits(stages: list[Any]) -> None:
    is_resized = isinstance(stages[0], transforms.RandomResizedCrop)
    images = torch.randint(256, (N, 1, 6, 6), generator=RANDOM, dtype=torch.uint8)

    def transformed(device: torch.device) -> Any:
        pipeline = Pipeline(stages, mean=[0.4], std=[0.2])
        batch = images.to(device), CLASSES.clamp(max=2).to(device)
        for _ in range(2):  # the first one places mean and std
            waits = machine().waits if device is GPU else []
            waits.clear()
            places = torch.arange(N)
            inputs, targets = pipeline.with_targets(batch[0], [batch[1]], 0, 0, places)
            found = pipeline.mixed(inputs, targets, 0, 0, places)
        assert not waits
        return found

    with simulated_gpu(NEVER):
        found = on_cpu(transformed(GPU))
    for ours, theirs in zip(found, transformed(CPU), strict=True):
        # torchvision resizes uint8 on a CPU in integers.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 if is_resized else 0)


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
    monkeypatch.setattr(Snapshot, "take", lambda _, state: on_cpu(state))
    monkeypatch.setattr(base_trainer, "gather_state", lambda *how: on_cpu(gather_state(*how)))


LAGS = [NEVER, *(pytest.param(lag, marks=pytest.mark.slow) for lag in (0, 150))]
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
if TORCH < (2, 11):  # as above
    del BAD["Adagrad"]


@pytest.mark.parametrize("lag", LAGS)
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


def test_a_copy_is_complete_when_the_device_of_its_tensor_has_made_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loss of a model on several GPUs is not on the one of the process."""
    recorded: list[Any] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=recorded.append))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    tensor = SimpleNamespace(device="cuda:1", to=lambda *_, **__: torch.zeros(()))
    tensor.detach = lambda: tensor
    HostCopy(tensor)  # type: ignore[arg-type]
    assert recorded == ["the stream of cuda:1"]


def test_torch_may_say_that_its_count_of_waits_is_a_prototype() -> None:
    """As a warning, which would be an error in the first test on a GPU that asks it to count."""
    ask: Any = getattr(torch._C, "_cuda_set_sync_debug_mode", None)
    if ask is None:
        pytest.skip("torch without CUDA")
    torch.set_warn_always(True)
    try:
        ask(0)
    finally:
        torch.set_warn_always(False)


class Interrupted(BaseException):
    """As a KeyboardInterrupt, which would end the tests."""


class Failing(Trainer):
    """Fails in step 4, when the losses of the steps before are not read yet."""

    error: BaseException

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        if self.progress.step == 3 and self.model.training:
            raise self.error
        return super().compute_losses(outputs, batch)


@pytest.mark.parametrize("error", [RuntimeError("labels are wrong"), Interrupted("ended")])
def test_an_error_of_a_step_is_not_replaced_by_one_of_the_wait(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed assertion on the device each wait raises an error; an interrupt has none."""

    def fail(copy: HostCopy) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(Failing, "error", error, raising=False)
    with simulated_gpu(NEVER):
        made = make("trainer.log_every=99 steps", trainer=Failing, device=GPU)
        made.callbacks["Broken"] = broken = Callback()
        broken.on_step_end = lambda trainer: (  # type: ignore[method-assign]
            monkeypatch.setattr(HostCopy, "wait", fail) if trainer.progress.step == 3 else None
        )
        with pytest.raises(type(error), match=str(error)):
            train_in(made)


class Wide(BadLoss):
    """Its losses have the shape (1,), which torch minimises too."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        losses = super().compute_losses(outputs, batch)
        return {name: loss.reshape(1) for name, loss in losses.items()}


def test_a_loss_with_a_dimension_is_read_late(tmp_path: Path) -> None:
    expected, theirs = ending_of(tmp_path / "cpu", device=CPU, trainer=Wide)
    with simulated_gpu(NEVER):
        found, ours = ending_of(tmp_path / "gpu", device=GPU, trainer=Wide)
        assert found == expected
        assert_same(on_cpu(weights(ours)), weights(theirs))


class Shrinking(torch.optim.Adam):
    """Changes the weights after torch's kernel has, whatever the flag says."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            parameter.mul_(0.9)


def test_an_optimizer_with_a_step_of_its_own_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPTIMIZERS.registered, "Shrinking", Shrinking)
    option = "optimizer={type: Shrinking, args: {lr: 0.1}}"
    expected, theirs = ending_of(tmp_path / "cpu", option, device=CPU)
    with simulated_gpu(NEVER):
        found, ours = ending_of(tmp_path / "gpu", option, device=GPU)
        (optimizer,) = ours.optimizers.values()
        assert optimizer.param_groups[0]["fused"]
        assert found == expected
        assert_same(on_cpu(weights(ours)), weights(theirs))


class Unfused(BadLoss):
    """Has its optimizers' groups no longer fused, from a step on."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        for optimizer in self.optimizers.values() if self.progress.step >= 2 else ():
            for group in optimizer.param_groups:
                group["fused"] = False
        return super().train_step(batch)


@pytest.mark.parametrize("at", [2, 4])
def test_groups_that_are_no_longer_fused_are_waited_for(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag cannot make them leave out a step: no loss is read after it."""
    monkeypatch.setattr(BadLoss, "at", (at,))
    expected, theirs = ending_of(tmp_path / "cpu", device=CPU, trainer=Unfused)
    with simulated_gpu(NEVER):
        found, ours = ending_of(tmp_path / "gpu", device=GPU, trainer=Unfused)
        assert found == expected
        assert f"at step {at + 1} " in found
        assert_same(on_cpu(weights(ours)), weights(theirs))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_unfused_run_is_resumed_with_a_fused_optimizer(tmp_path: Path, precision: str) -> None:
    """The checkpoint says that its groups are not fused."""
    option = f"memory.precision={precision}"
    with simulated_gpu(NEVER):
        made = make("memory.fused=false", option, device=GPU)
        made.callbacks["StopAt"] = StopAt(3)
        with pytest.raises(InterruptedRunError):
            train_in(made, tmp_path)
        resumed = make(option, device=GPU, weights=False)
        train_in(resumed, tmp_path, tmp_path, True)
        assert resumed.progress.step == 10


@pytest.mark.parametrize(("lag", "most"), [(NEVER, MOST_BATCHES_AHEAD + 1), (0, 1)])
def test_few_batches_of_losses_that_are_read_late_are_held(lag: float, most: int) -> None:
    """Those that the host is ahead, and the one in progress; else they would fill the GPU."""
    seen: list[weakref.ref[Tensor]] = []
    n_alive: list[int] = []

    class Noting(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            values = super().train_step(batch)
            seen.append(weakref.ref(batch[0]))
            n_alive.append(sum(ref() is not None for ref in seen))
            return values

    with simulated_gpu(lag):
        made = make("trainer.epochs=1", "trainer.log_every=99 steps", trainer=Noting, device=GPU)
        train_in(made)
        assert made.finite.reads_late
    assert len(n_alive) == 5
    assert max(n_alive) == most


class CountedReads(BadLoss):
    """Counts how often batches are asked for; computes the parts of 2 samples, of batches of 4."""

    n_reads = 0

    def __init__(self, experiment: Any) -> None:
        super().__init__(experiment)
        batches = self.train_loader.batches

        def counted(first: int, count: int) -> Any:
            self.n_reads += 1
            return batches(first, count)

        self.train_loader.batches = counted

    def forward(self, batch: Any) -> Any:
        assert len(batch[0]) <= 2, "a whole batch, which may not fit"
        return super().forward(batch)


def test_the_part_of_a_loss_that_is_read_late_is_at_hand(tmp_path: Path) -> None:
    """A user's own loader would read the epoch again up to it, and memory may not hold the rest."""
    few = ["memory.micro_batch=2", "trainer.log_every=99 steps", "data_loader.args.n_samples=22",
           "data_loader.args.validation_split=2"]  # fmt: skip
    expected, theirs = ending_of(tmp_path / "cpu", *few, device=CPU, trainer=CountedReads)
    with simulated_gpu(NEVER):
        found, ours = ending_of(tmp_path / "gpu", *few, device=GPU, trainer=CountedReads)
    assert found == expected
    assert "first non-finite value" in found
    assert (ours.n_reads, theirs.n_reads) == (1, 1)


def files_of(folder: Path) -> list[str]:
    files = (each.relative_to(folder) for each in folder.rglob("*") if each.is_file())
    return sorted(str(each) for each in files)
