"""Trainings whose numbers must not depend on the number of processes.

Each case has batches of 7, 7, 7 and 1 samples: 2 processes share them unevenly, and all but one of
them have no sample of the last. Validation has batches of 7 and 2 samples.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from base.base_data_loader import BaseDataLoader
from base.base_trainer import BaseTrainer
from base.callbacks import Callback
from base.config import load_config
from base.data.batch import ids_of, in_full_precision
from base.datasets.in_memory import synthetic_images
from base.distributed import ALONE, World
from base.names.check import check_names
from base.names.registry import DATA_LOADERS, LOSSES, METRICS, MODELS
from base.run.build import build_experiment
from base.run.checks import check
from base.run.rank_checks import check_ranks
from base.run.session import open_run_in
from base.training.optimizer_step import Stepper
from base.training.run_log import RunLog
from trainer.gan_trainers import GANTrainer, WGANGPTrainer
from trainer.trainer import Trainer

N, N_VALID = 31, 9  # 22 in batches of 7, 7, 7, 1 train
TOY = """
name: equal
seed: 3
model: {type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3}}
data_loader: {type: points}
optimizer: {type: SGD, args: {lr: 0.1, momentum: 0.9}}
loss: cross_entropy
metrics: [accuracy, {type: top_k_accuracy, args: {k: 2}}]
trainer: {epochs: 2, tensorboard: false, progress: false, verbosity: 0, log_every: 1 step}
"""
NETWORKS = """
name: equal
seed: 3
model: {type: Networks, args: {generator: {type: Decoder}, OPPONENT: {type: Scorer}}}
data_loader: {type: points}
optimizers:
  generator: {type: Adam, args: {lr: 0.01}, params: "generator.*"}
  OPPONENT: {type: Adam, args: {lr: 0.01}, params: "OPPONENT.*"}
trainer:
  {epochs: 2, tensorboard: false, progress: false, verbosity: 0, log_every: 1 step, monitor: off}
"""
WEIGHTS = "[0.2, 1.0, 3.0]"


# --- Data ----------------------------------------------------------------------------------------


class Points(Dataset[Any]):
    """Points with a class each; a few are ignored. The weights are those of `batch.weight`."""

    def __init__(self, ignored: bool = False, weighted: bool = False, scaled: bool = False) -> None:
        images, targets = synthetic_images(N, (1, 1, 5), 3, 1.0, 0, "train")
        random = torch.Generator().manual_seed(0)
        self.images, self.targets = images, targets
        if ignored:
            self.targets = targets.masked_fill(torch.rand(N, generator=random) < 0.4, -100)
        weights = torch.rand(N, generator=random) * 3
        self.w = weights.masked_fill(weights < 0.7, 0) if weighted else None

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        item = (self.images[index], self.targets[index])
        return item if self.w is None else (*item, self.w[index])


def points(
    ignored: bool = False,
    weighted: bool = False,
    batch_size: int = 7,
    num_workers: int = 0,
    **more: Any,
) -> Any:
    dataset = Points(ignored, weighted)
    return BaseDataLoader(dataset, batch_size, True, N_VALID, num_workers, **more)


class Sentences(Dataset[Any]):
    """Sentences of 6 words below 10; word 0 fills the end."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        random = torch.Generator().manual_seed(index)
        words = torch.randint(1, 10, (6,), generator=random)
        words[int(torch.randint(2, 7, (), generator=random)) :] = 0
        return words, words


def words() -> Any:
    return BaseDataLoader(Sentences(), 7, True, N_VALID, 0)


def padded() -> Any:
    """Batches as long as their longest sentence."""

    def collate(sentences: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        cut = [words[words > 0] for words, _ in sentences]
        words = nn.utils.rnn.pad_sequence(cut, batch_first=True)
        return [words, words]

    return BaseDataLoader(Sentences(), 7, True, N_VALID, 0, collate)


class Masks(Dataset[Any]):
    """Images (3, 6, 6) and the class of each pixel; 255 is ignored, everywhere in some images."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        random = torch.Generator().manual_seed(index)
        image = torch.randn(3, 6, 6, generator=random)
        mask = (image.mean(0) > 0).long() + (image[0] > 1).long()
        share = 1.0 if index % 5 == 0 else float(torch.rand((), generator=random))
        return image, mask.masked_fill(torch.rand(6, 6, generator=random) < share, 255)


def scenes() -> Any:
    return BaseDataLoader(Masks(), 7, True, N_VALID, 0)


class Letters(Dataset[Any]):
    """Words as strings."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return {"text": "abcdefgh"[index % 5 :] * (1 + index % 3), "target": index % 3}


def texts() -> Any:
    return BaseDataLoader(Letters(), 7, True, N_VALID, 0)


def stock(**more: Any) -> Any:
    """A loader of torch."""
    given = torch.utils.data.Subset(Points(), range(22))
    return DataLoader(given, batch_size=7, shuffle=True, **more)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        given = Points()
        yield from (given[index] for index in range(22))


def stream() -> Any:
    return DataLoader(Endless(), batch_size=7)


class Handmade:
    """A loader as people write them: an iterator and a length."""

    def __init__(self) -> None:
        self.points = Points()

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        for first in range(0, 22, 7):
            items = [self.points[index] for index in range(first, min(first + 7, 22))]
            yield torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])


# --- Networks ------------------------------------------------------------------------------------


class Decoder(nn.Module):
    latent_size = 3

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5))

    def forward(self, noise: Tensor) -> Tensor:
        return self.net(noise)[:, None, None]


class Scorer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


class Branches(nn.Module):
    """A network with a layer for some samples only, and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.rare, self.unused = nn.Linear(5, 3), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        output, chosen = self.body(flat), flat[:, 0] > 1
        if chosen.any():
            output = output + torch.where(chosen[:, None], self.rare(flat), 0)
        return output


class Tagger(nn.Module):
    """The scores of each word."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 6), nn.Linear(6, 10)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.embed(words).cumsum(1).tanh())


class Segmenter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


class Speller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(128, 4), nn.Linear(4, 3)

    def forward(self, text: list[str]) -> Tensor:
        each = [self.embed(torch.tensor(list(map(ord, word)))).mean(0) for word in text]
        return self.head(torch.stack(each))


class Buffered(nn.Module):
    """BatchNorm, and buffers that no step changes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
        )
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]))
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) - self.mean


# --- Losses and metrics --------------------------------------------------------------------------


class Running(nn.Module):
    """A cross entropy with a running mean of the outputs, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(3))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.centre.lerp_(output.detach().mean(0), 0.1)
        return F.cross_entropy(output - self.centre, target)


def of_one_class(output: Tensor, target: Tensor) -> Tensor:
    """The mean over the samples of class 1, which some batches lack."""
    each = F.cross_entropy(output, target, reduction="none")
    return (each * (target == 1)).sum() / max(int((target == 1).sum()), 1)


of_one_class.denominator = lambda target: int((target == 1).sum())  # type: ignore[attr-defined]


def macro_recall(output: Tensor, target: Tensor) -> float:
    """A metric of a whole epoch."""
    found = output.argmax(1)
    rates = [(found[target == c] == c).double().mean() for c in range(3)]
    return float(torch.stack(rates).nansum())


def order_of_samples(output: Tensor, target: Tensor) -> float:
    """A metric that depends on the order of the samples."""
    places = torch.arange(1, len(target) + 1, dtype=torch.float64)
    return float((places * (1 + target.double())).sum())


# --- Trainers ------------------------------------------------------------------------------------


class Noted(Trainer):
    """Notes the ids of its samples."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        if self._n_samples:
            ids = ids_of(batch, self.config["batch"]).tolist()
            self.noted.append((self.progress.batches_total, ids))
        return super().train_step(batch)


class Shifted(Trainer):
    """Predicts the next word; the targets are known in the step only."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Any]:
        words = batch[1]
        loss = self.losses["cross_entropy"]
        return {"words": loss(outputs[:, :-1].flatten(0, 1), words[:, 1:].flatten(), batch=batch)}


def penalty(model: nn.Module) -> Tensor:
    return 0.01 * sum((p.square().sum() for p in model.parameters()), start=torch.zeros(()))


class Penalised(Trainer):
    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Any]:
        return {**super().compute_losses(outputs, batch), "penalty": penalty(self.model)}


class ShiftedPenalised(Shifted):
    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Any]:
        return {**super().compute_losses(outputs, batch), "penalty": penalty(self.model)}


class OwnValues(Trainer):
    """Logs numbers of its own, one of them for some batches only."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        values = super().train_step(batch)
        values["mean_input"] = float(batch[0].mean())
        if (rows := batch[0][batch[0].flatten(1)[:, 0] > 0.5]).numel():
            values["large"] = rows.mean() * len(rows) / len(batch[0])
        return values


class Alternating(Trainer):
    """Makes no update in some steps, and two in others."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for _ in range((self.progress.step + 1) % 3):
            values = self.total(self.compute_losses(self.forward(batch), batch))
            self.backward(values["loss"])
            self.update()
        return values


class Gathering(Trainer):
    """Compares the outputs with the mean of all samples of the batch."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Any]:
        losses = super().compute_losses(outputs, batch)
        centre = self.gather(outputs.detach()).mean(0)
        return {**losses, "spread": (outputs - centre).square().sum(1).mean()}


class Nonfinite(Trainer):
    """The loss of a few samples is not finite, in the first epoch."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Any]:
        is_bad = (batch[0].flatten(1)[:, 0] > 1.5) & (self.progress.epoch == 0)
        outputs = outputs.masked_fill(is_bad[:, None] & self.model.training, torch.nan)
        return super().compute_losses(outputs, batch)


class OwnLoss(Trainer):
    """Builds a loss of its own, with class weights."""

    def __init__(self, experiment: Any) -> None:
        super().__init__(experiment)
        section = {"type": "cross_entropy", "args": {"weight": [0.2, 1.0, 3.0]}}
        self.own = self.build("loss", section)

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Any]:
        losses = super().compute_losses(outputs, batch)
        return {**losses, "own": self.own(outputs.square(), batch[1], batch=batch)}


class _FromImages:
    """The noise of a GAN depends on its samples."""

    def real_images(self, batch: Any) -> Tensor:
        images: Tensor = super().real_images(batch)  # type: ignore[misc]
        self._images = images
        return images

    def noise(self, n_images: int) -> Tensor:
        assert n_images == len(self._images)
        return torch.sin(100 * self._images.flatten(1)[:, :3])


class DeterministicGAN(_FromImages, GANTrainer):
    pass


class Late(_FromImages, GANTrainer):
    """Steps both networks at the end, outside of their contexts."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        real = self.real_images(batch)
        fake = self.generator(self.noise(len(real)))
        with self.only("discriminator"):
            discriminator_loss = self.discriminator_loss(real, fake.detach())
            self.backward(discriminator_loss, only="discriminator")
        with self.only("generator"):
            generator_loss = self.generator_loss(fake)
            self.backward(generator_loss, only="generator")
            self.update("discriminator")
        self.update("generator")
        return {"discriminator": discriminator_loss, "generator": generator_loss}


class NonfiniteGAN(_FromImages, GANTrainer):
    """The loss of the generator is not finite in a step that it leaves out."""

    def generator_loss(self, fake: Tensor) -> Tensor:
        loss = super().generator_loss(fake)
        return loss * torch.nan if self.progress.step == 2 and self.world.rank == 0 else loss


class DeterministicWGAN(_FromImages, WGANGPTrainer):
    def train_step(self, batch: Any) -> dict[str, Any]:
        mixed = torch.rand_like

        def half(*size: Any, **more: Any) -> Tensor:
            return mixed(*size, **more) * 0 + 0.5

        torch.rand_like = half  # of the points between real and generated images
        try:
            return super().train_step(batch)
        finally:
            torch.rand_like = mixed


# --- The cases -----------------------------------------------------------------------------------


@dataclass
class Case:
    """A training: a config, changed, and a trainer.

    Args:
        is_equal: whether one process gives the same numbers; else only all ranks of a training.
        tolerance: the largest difference relative to the norm of the gradient.
        differing: logged values that depend on the number of processes.
    """

    overrides: tuple[str, ...] = ()
    trainer: type[BaseTrainer] = Trainer
    text: str = TOY
    is_equal: bool = True
    tolerance: float = 1e-6
    differing: tuple[str, ...] = ()


def case(*overrides: str, **more: Any) -> Case:
    return Case(overrides, **more)


def points_of(**args: Any) -> str:
    inner = ", ".join(f"{key}: {value}" for key, value in args.items())
    return f"data_loader={{type: points, args: {{{inner}}}}}"


IGNORING = points_of(ignored="true")
SEVERAL = (
    f"loss=[{{type: cross_entropy, args: {{weight: {WEIGHTS}}}, weight: 0.5}},"
    " {type: cross_entropy, args: {ignore_index: 2}, name: few},"
    " {type: cross_entropy, args: {reduction: sum}, name: sum, weight: 0.01},"
    " {type: multi_margin_loss}]"
)
PIXELS = (
    "model={type: Segmenter}",
    "data_loader={type: scenes}",
    "loss={type: cross_entropy, args: {ignore_index: 255}}",
    "metrics=[accuracy, {type: IoU, args: {n_classes: 3}}, "
    "{type: ConfusionMatrix, args: {n_classes: 3}}]",
)
LANGUAGE = (
    "model={type: Tagger}",
    "data_loader={type: words}",
    "loss={type: cross_entropy, args: {ignore_index: 0}}",
    "metrics=[]",
)
PRICES = """
name: equal
seed: 3
model: {type: MLP, args: {n_inputs: 2, hidden: [6], n_outputs: 1}}
data_loader:
  type: DatasetLoader
  args:
    dataset: {type: CsvDataset, args: {file: prices.csv, target: [price], task: regression}}
    batch_size: 7
    split: 9
    normalize: auto
optimizer: {type: SGD, args: {lr: 0.1}}
loss: mse_loss
metrics: [{type: MeanLoss, args: {loss: l1_loss}, name: mae}, RMSE, R2]
trainer: {epochs: 2, tensorboard: false, progress: false, verbosity: 0, log_every: 1 step}
"""
GAN = NETWORKS.replace("OPPONENT", "discriminator")
WGAN = NETWORKS.replace("OPPONENT", "critic")

CASES: dict[str, Case] = {
    "plain": case(),
    "adam": case("optimizer={type: AdamW, args: {lr: 0.01, weight_decay: 0.1}}"),
    "ids": case("batch.ids=true", trainer=Noted),
    "accumulate": case("memory.accumulate=3"),
    "accumulate two": case("memory.accumulate=2"),
    "micro batch": case("memory.micro_batch=2"),
    "micro batch of one, accumulate": case("memory.micro_batch=1", "memory.accumulate=3"),
    "clip norm": case("optimizer.clip_norm=0.2"),
    "clip value": case("optimizer.clip_value=0.02", "memory.accumulate=3"),
    "class weights": case(f"loss={{type: cross_entropy, args: {{weight: {WEIGHTS}}}}}"),
    "ignored": case(IGNORING),
    "ignored, accumulate": case(IGNORING, "memory.accumulate=3"),
    "ignored, micro batch": case(IGNORING, "memory.micro_batch=1"),
    # The mean over no sample is NaN for several processes; the loss says 0.
    "own denominator": case(
        "loss=[of_one_class, {type: cross_entropy, weight: 0.1}]",
        differing=("of_one_class", "loss"),
    ),
    "own denominator, accumulate": case(
        "loss=of_one_class", "memory.accumulate=3", differing=("loss",)
    ),
    "sum": case("loss={type: cross_entropy, args: {reduction: sum}}", "optimizer.args.lr=0.01"),
    "several": case(SEVERAL),
    "several, separate": case(SEVERAL, "trainer.backward=separate"),
    "several, accumulate": case(SEVERAL, "memory.accumulate=3"),
    "several, separate, micro batch": case(
        SEVERAL, "trainer.backward=separate", "memory.micro_batch=2"
    ),
    "ramp": case(
        "loss=[cross_entropy, {type: multi_margin_loss, weight: {from: 0, to: 1, over: 4 steps}}]"
    ),
    "sample weights": case(points_of(weighted="true"), "batch.weight=2"),
    "sample weights, accumulate": case(
        points_of(weighted="true"), "batch.weight=2", "memory.accumulate=3"
    ),
    "shifted": case(*LANGUAGE, trainer=Shifted),
    "shifted, accumulate": case(*LANGUAGE, "memory.accumulate=3", trainer=Shifted),
    "shifted, penalty": case(*LANGUAGE, trainer=ShiftedPenalised),
    "penalty": case(trainer=Penalised),
    "penalty, accumulate": case("memory.accumulate=3", trainer=Penalised),
    "penalty, separate": case(SEVERAL, "trainer.backward=separate", trainer=Penalised),
    # The mean of a value that some batches log is over the samples of these batches.
    "own values": case(trainer=OwnValues, differing=("large", "train/large")),
    "alternating": case(trainer=Alternating),
    "gathering": case(trainer=Gathering),
    "gan": case(text=GAN, trainer=DeterministicGAN),
    "gan, accumulate": case("memory.accumulate=2", text=GAN, trainer=DeterministicGAN),
    "gan, late": case(text=GAN, trainer=Late),
    "wgan": case("optimizers.generator.every=3 steps", text=WGAN, trainer=DeterministicWGAN),
    "wgan, accumulate": case(
        "optimizers.generator.every=2 steps",
        "memory.accumulate=2",
        text=WGAN,
        trainer=DeterministicWGAN,
    ),
    "freeze": case(
        "freeze=[{match: 'hidden.*', until: 3 steps}]", "optimizer={type: Adam, args: {lr: 0.01}}"
    ),
    "gan, every": case("optimizers.generator.every=2 steps", text=GAN, trainer=DeterministicGAN),
    "nonfinite": case("trainer.on_nonfinite=skip", trainer=Nonfinite),
    "nonfinite, accumulate": case(
        "trainer.on_nonfinite=skip",
        "memory.accumulate=3",
        "memory.micro_batch=2",
        trainer=Nonfinite,
        differing=("train/loss", "train/accuracy", "train/top_k_accuracy"),  # of a skipped step
    ),
    "nonfinite, left out": case(
        "trainer.on_nonfinite=skip",
        "optimizers.generator.every=2 steps",
        text=GAN,
        trainer=NonfiniteGAN,
    ),
    "rollback": case("trainer.on_nonfinite=rollback", trainer=Nonfinite),
    "own loss": case(trainer=OwnLoss),
    "own loss, accumulate": case("memory.accumulate=3", "memory.micro_batch=2", trainer=OwnLoss),
    "branches": case(
        "model={type: Branches}", "optimizer={type: AdamW, args: {lr: 0.01, weight_decay: 0.1}}"
    ),
    "branches, zeros": case(
        "model={type: Branches}",
        "optimizer={type: AdamW, args: {lr: 0.01, weight_decay: 0.1}}",
        "memory.set_to_none=false",
    ),
    "ema": case("trainer.ema={decay: 0.9}"),
    "schedule": case("lr_scheduler={type: OneCycleLR, args: {max_lr: 0.2}, every: step}"),
    "plateau": case(
        "lr_scheduler={type: ReduceLROnPlateau, args: {patience: 0, threshold: 0.5}}",
        "trainer.epochs=4",
    ),
    "early stop": case(
        "trainer.epochs=6", "trainer.early_stop=1", "trainer.monitor=max valid/loss"
    ),
    "valid batches": case("trainer.valid_batches=1"),
    "steps": case("trainer.epochs=null", "trainer.steps=8"),
    "no train metrics": case("trainer.train_metrics=false"),
    "bf16": case("memory.precision=bf16", tolerance=0.02),
    "balanced": case(points_of(sampling="balanced")),
    "hard examples": case(
        points_of(sampler="{type: HardExampleSampler}"), "batch.ids=true", "trainer.epochs=3"
    ),
    "torch's loader": case("data_loader={type: stock}"),
    "stream": case("data_loader={type: stream}", "trainer.epoch_steps=4"),
    "handmade": case("data_loader={type: Handmade}"),
    "workers": case(points_of(num_workers=2)),
    "padded": case(*LANGUAGE, "data_loader={type: padded}", trainer=Shifted),
    "target units": case(text=PRICES),
    "pixels": case(*PIXELS),
    "pixels, accumulate": case(*PIXELS, "memory.accumulate=3", "memory.micro_batch=2"),
    "texts": case("model={type: Speller}", "data_loader={type: texts}"),
    "whole epochs": case(
        "metrics=[accuracy, {type: macro_recall, over: epoch}, "
        "{type: order_of_samples, over: epoch}, ConfusionMatrix, F1, AUROC]"
    ),
    "state of a loss": case("loss={type: Running}", is_equal=False),
    "buffers": case("model={type: Buffered}", points_of(batch_size=11), is_equal=False),
}


def write_prices(folder: Path) -> None:
    """Write the table of the case "target units"."""
    random = torch.Generator().manual_seed(0)
    sizes = (torch.rand(N, 2, generator=random) * 100).tolist()
    rows = (f"{a:.1f},{b:.1f},{1000 * a + 300 * b:.0f}" for a, b in sizes)
    (folder / "prices.csv").write_text("\n".join(["size,garden,price", *rows]))


@contextmanager
def registered() -> Iterator[None]:
    """Make the classes above known to configs."""
    loaders = (points, words, padded, scenes, texts, stock, stream, Handmade)
    models = (Decoder, Scorer, Branches, Tagger, Segmenter, Speller, Buffered)
    kinds: dict[Any, tuple[Any, ...]] = {
        DATA_LOADERS: loaders,
        MODELS: models,
        LOSSES: (Running, of_one_class),
        METRICS: (macro_recall, order_of_samples),
    }
    try:
        for kind, named in kinds.items():
            kind.registered.update({each.__name__: each for each in named})
        yield
    finally:
        for kind, named in kinds.items():
            for each in named:
                kind.registered.pop(each.__name__, None)


# --- A training and what it leaves ---------------------------------------------------------------


class Watch(Callback):
    """Notes the values and the state after each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_epoch_end(self, trainer: Any, values: Mapping[str, float]) -> None:
        measured = ("seconds", "samples_per_second", "memory_mb", "wait")
        kept = {
            key: float(value)
            for key, value in values.items()
            if key not in measured and not key.startswith("time/")
        }
        self.epochs.append(kept)


def trainer_of(one: Case, world: World = ALONE) -> Any:
    """Return the trainer of a case, as train.py builds it."""
    config = load_config(None, one.overrides, text=one.text)
    check_names(config)
    torch.manual_seed(config["seed"])
    experiment = build_experiment(config, torch.device("cpu"))
    experiment.share_with(world)
    trainer = one.trainer(experiment)
    check_ranks(experiment, world)
    return trainer


def train_case(one: Case, world: World) -> dict[str, Any]:
    """Train; return all numbers that must not depend on the number of processes."""
    trainer = trainer_of(one, world)
    check(trainer)
    trainer.noted = []
    trainer.callbacks["Watch"] = watch = Watch()
    gradients: list[Tensor] = []
    steps: list[dict[str, float]] = []
    with noting(gradients, steps), open_run_in(trainer) as run:
        trainer.train(run)
    state = {
        name: part.state_dict()
        for name, part in trainer.stateful.items()
        if name not in ("random", "epoch_rows")
    }
    return {
        "gradients": gradients,
        "weights": flat(p for p in trainer.model.parameters()),
        "steps": steps,
        "epochs": watch.epochs,
        "ids": trainer.noted,
        "progress": trainer.progress.state_dict(),
        "monitor": trainer.monitor.state_dict(),
        "digests": {name: digest(part) for name, part in state.items()},
        "gradients_digest": digest(gradients),
        "constants": {k: b for k, b in trainer.model.named_buffers() if k in ("mean", "mask")},
    }


@contextmanager
def noting(gradients: list[Tensor], steps: list[dict[str, float]]) -> Iterator[None]:
    """Note the gradients that each optimizer receives, and the values that each step logs."""
    step, log_step = Stepper.step, RunLog.log_step

    def noted_step(self: Any, *args: Any) -> Any:
        gradients.append(flat(p.grad for p in self.parameters if p.grad is not None))
        return step(self, *args)

    def noted_values(self: Any, values: Any, progress: Any) -> None:
        steps.append({**{k: float(v) for k, v in values.items()}, **progress.rates})
        log_step(self, values, progress)

    Stepper.step, RunLog.log_step = noted_step, noted_values  # type: ignore[method-assign]
    try:
        yield
    finally:
        Stepper.step, RunLog.log_step = step, log_step  # type: ignore[method-assign]


def flat(tensors: Any) -> Tensor:
    parts = [in_full_precision(tensor.detach()).flatten().clone() for tensor in tensors]
    return torch.cat(parts) if parts else torch.empty(0)


def digest(value: Any) -> str:
    """Return a hash of plain data and tensors."""
    stream = io.BytesIO()
    torch.save(_plain(value), stream)
    return hashlib.sha256(stream.getvalue()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (str(value.dtype), value.detach().flatten().tolist().__repr__(), list(value.shape))
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return repr(value)
