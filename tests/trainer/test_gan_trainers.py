"""The shipped GANs: as by hand, each network by itself, exact resume, and samples to look at."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from toy import assert_resumes, assert_same, batches, make, run, train_in, weights

import train
from base.callbacks import Callback
from base.checkpoint.store import read
from base.datasets.array_files import read_npz
from base.errors import ConfigError
from base.names.registry import CALLBACKS, MODELS
from base.run.checks import check
from base.system.torch_compat import AUTOCAST_CACHE
from logger.csv_writer import read_rows
from trainer.gan_trainers import GANTrainer, WGANGPTrainer
from trainer.samples import GeneratedSamples, as_png, make_grid
from trainer.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent.parent
GAN = """
name: gan
seed: 3
model:
  type: Networks
  args:
    generator: {type: DCGANGenerator, args: {latent_size: 3, width: 2, image_size: 8}}
    discriminator: {type: DCGANDiscriminator, args: {width: 2, image_size: 8}}
data_loader:
  type: SyntheticDataLoader
  args: {n_samples: 24, shape: [1, 8, 8], n_classes: 2, batch_size: 4, validation_split: 4}
optimizers:
  generator: {type: Adam, args: {lr: 0.01, betas: [0.5, 0.9]}, params: "generator.*"}
  discriminator: {type: Adam, args: {lr: 0.02, betas: [0.5, 0.9]}, params: "discriminator.*"}
trainer: {epochs: 2, tensorboard: false, progress: false, verbosity: 0, monitor: off}
"""
WGAN = GAN.replace("discriminator", "critic").replace(
    "{type: DCGANDiscriminator, args: {width: 2, ",
    "{type: DCGANDiscriminator, args: {norm: none, width: 2, ",
)
EVERY = "optimizers.generator.every=3 steps"
KINDS = {"dcgan": (GAN, GANTrainer), "wgan": (WGAN, WGANGPTrainer)}
OPPONENT = {"dcgan": "discriminator", "wgan": "critic"}


def built(kind: str, *overrides: str) -> Any:
    text, trainer = KINDS[kind]
    return make(*overrides, text=text, trainer=trainer)


def finished(kind: str, folder: Path, *overrides: str, **how: Any) -> Any:
    text, trainer = KINDS[kind]
    return run(folder, *overrides, text=text, trainer=trainer, **how)


# --- The step, against plain torch ---------------------------------------------------------------


def dcgan_losses(model: Any, real: Tensor) -> dict[str, Any]:
    """The losses of a step, each a function to be called when its turn comes."""
    fake = model.generator(torch.randn(len(real), 3))

    def discriminator() -> Tensor:
        on_real, on_fake = model.discriminator(real).float(), model.discriminator(fake.detach())
        return F.softplus(-on_real).mean() + F.softplus(on_fake.float()).mean()

    return {
        "discriminator": discriminator,
        "generator": lambda: F.softplus(-model.discriminator(fake).float()).mean(),
    }


def wgan_losses(model: Any, real: Tensor) -> dict[str, Any]:
    fake = model.generator(torch.randn(len(real), 3)).detach()

    def critic() -> Tensor:
        distance = model.critic(real).float().mean() - model.critic(fake).float().mean()
        share = torch.rand(len(real), 1, 1, 1)
        between = (share * real + (1 - share) * fake.float()).requires_grad_()
        with torch.autocast("cpu", enabled=False):
            score = model.critic(between).sum()
            slope = torch.autograd.grad(score, between, create_graph=True)[0]
        norms = slope.square().sum(dim=(1, 2, 3)).sqrt()
        return 10 * (norms - 1).square().mean() - distance

    def generator() -> Tensor:
        return -model.critic(model.generator(torch.randn(len(real), 3))).float().mean()

    return {"critic": critic, "generator": generator}


LOSSES = {"dcgan": dcgan_losses, "wgan": wgan_losses}


def by_hand(kind: str, lowered: bool, k: int, clip: float, every: int) -> Any:
    """The same training without any of ours: the model and the data are taken from a trainer."""
    trainer = built(kind)
    model, data = trainer.model, list(batches(trainer))
    rates = {OPPONENT[kind]: 0.2, "generator": 0.1}
    best = {
        name: torch.optim.SGD(getattr(model, name).parameters(), lr=rate)
        for name, rate in rates.items()
    }
    autocast = partial(
        torch.autocast, "cpu", torch.bfloat16, enabled=lowered, cache_enabled=AUTOCAST_CACHE
    )
    model.train()
    step = 0
    for number, (images, _) in enumerate(data):
        size = min(k, 5 - number % 5 // k * k)
        is_last = number % 5 % k == size - 1
        with autocast():
            losses = LOSSES[kind](model, 2 * images - 1)
        for name, loss in losses.items():
            if name == "generator" and (step + 1) % every:
                continue
            parameters = list(getattr(model, name).parameters())
            with autocast():
                value = loss()
            (value / size).backward(inputs=parameters)
            if is_last:
                nn.utils.clip_grad_norm_(parameters, clip)
                best[name].step()
                best[name].zero_grad()
        step += is_last
    return model


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(("kind", "every"), [("dcgan", 1), ("wgan", 1), ("wgan", 3)])
def test_a_shipped_gan_trains_as_by_hand(kind: str, every: int, k: int, precision: str) -> None:
    clip = 0.3
    torch.manual_seed(3)
    expected = by_hand(kind, precision == "bf16", k, clip, every)
    options = [f"memory={{precision: {precision}, accumulate: {k}}}"]
    for name, rate in (("generator", 0.1), (OPPONENT[kind], 0.2)):
        # Adam would make much of the last bits of a gradient that is nearly 0.
        section = f"type: SGD, args: {{lr: {rate}}}, params: '{name}.*', clip_norm: {clip}"
        options.append(f"optimizers.{name}={{{section}}}")
    trainer = built(kind, *options, f"optimizers.generator.every={every} steps")
    values = train_in(trainer)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, msg=name)
    assert f"train/{OPPONENT[kind]}_grad_norm" in values


# --- Each network by itself ----------------------------------------------------------------------


def first_of_two(trainer: Any) -> Any:
    """Return the first batch of a window of two, ready to be computed."""
    batch = next(trainer.window.read_ahead(batches(trainer), 0))
    trainer.window.place(0, 2)
    ((part, _),) = trainer.window.parts(batch, 0)
    return part


@pytest.mark.parametrize("kind", KINDS)
def test_each_network_gets_the_gradients_of_its_own_loss_alone(kind: str) -> None:
    """In the first batch of two nothing is stepped, so that all gradients are there to be seen."""
    trainer, other = built(kind, "memory.accumulate=2"), built(kind)
    batch = first_of_two(trainer)
    torch.manual_seed(5)
    trainer.train_step(batch)

    torch.manual_seed(5)
    for name, loss in LOSSES[kind](other.model, 2 * batch[0] - 1).items():
        parameters = list(getattr(other.model, name).parameters())
        expected = torch.autograd.grad(loss() / 2, parameters)
        ours = list(getattr(trainer.model, name).parameters())
        for parameter, gradient in zip(ours, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_in_fp16_are_those_in_fp32_but_for_its_digits(kind: str) -> None:
    gradients = {}
    for precision in ("fp32", "fp16"):
        trainer = built(kind, f"memory={{precision: {precision}, accumulate: 2}}")
        batch = first_of_two(trainer)
        torch.manual_seed(5)
        with trainer.precision.autocast():
            trainer.train_step(batch)
        scale = {name: one.scaler.get_scale() for name, one in trainer.steppers.items()}
        assert set(scale.values()) == {1.0 if precision == "fp32" else 2.0**16}
        gradients[precision] = {n: p.grad / scale[n.partition(".")[0]] for n, p in named(trainer)}
    for name, exact in gradients["fp32"].items():
        distance = (gradients["fp16"][name] - exact).norm()
        assert distance <= 0.02 * exact.norm() + 1e-4, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_one_network_leaves_the_other_untouched(kind: str) -> None:
    trainer = built(kind)
    plain, moves = trainer.update, []

    def watched(name: str) -> None:
        before, gradients = weights(trainer), {n: p.grad for n, p in named(trainer)}
        assert all(p.requires_grad == n.startswith(name) for n, p in named(trainer))
        plain(name)
        moved = {n.partition(".")[0] for n, w in weights(trainer).items() if not w.equal(before[n])}
        others = {n for n, p in named(trainer) if not n.startswith(name)}
        assert all(trainer.model.get_parameter(n).grad is gradients[n] for n in others)
        moves.append((name, moved))

    trainer.update = watched
    trainer.model.train()
    trainer.train_step(next(batches(trainer)))
    opponent = OPPONENT[kind]
    assert moves == [(opponent, {opponent}), ("generator", {"generator"})]


def named(trainer: Any) -> list[tuple[str, nn.Parameter]]:
    return list(trainer.model.named_parameters())


def test_the_generator_rests_between_its_steps() -> None:
    trainer = built("wgan", EVERY)
    start = weights(trainer)
    for step, data in enumerate(batches(trainer, 3)):
        trainer.progress.step = step
        values = trainer.train_step(data)
        rests = all(weights(trainer)[n].equal(start[n]) for n in start if n.startswith("generator"))
        assert rests == ("generator" not in values) == (step < 2)
        assert all(p.grad is None for p in trainer.model.generator.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_validation_changes_nothing(kind: str) -> None:
    trainer = built(kind)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    stream = torch.get_rng_state()
    values = trainer.evaluate(trainer.valid_loader, "valid")
    assert all(math.isfinite(value) for value in values.values())
    assert values == trainer.evaluate(trainer.valid_loader, "valid")
    assert_same(dict(trainer.model.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), stream)


# --- The losses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_discriminator_that_knows_nothing_has_twice_log_2(smoothing: float) -> None:
    trainer = make(text=GAN, trainer=partial(GANTrainer, label_smoothing=smoothing))
    nn.init.zeros_(trainer.model.discriminator.to_score.weight)
    nn.init.zeros_(trainer.model.discriminator.to_score.bias)
    real = torch.rand(4, 1, 8, 8)
    assert trainer.discriminator_loss(real, real).item() == pytest.approx(2 * math.log(2))
    assert trainer.generator_loss(real).item() == pytest.approx(math.log(2))


def test_with_smoothing_the_best_answer_to_real_images_is_short_of_certain() -> None:
    trainer = make(text=GAN, trainer=partial(GANTrainer, label_smoothing=0.1))
    trainer.opponent = nn.Flatten(0)
    real = torch.tensor([math.log(0.9 / 0.1)], requires_grad=True)  # a probability of 0.9
    fake = torch.tensor([-30.0], requires_grad=True)
    trainer.discriminator_loss(real, fake).backward()
    assert real.grad.item() == pytest.approx(0, abs=1e-6)
    assert fake.grad.item() == pytest.approx(0, abs=1e-6)


class Scores(nn.Module):
    """Takes images for their scores, and gives them in bfloat16."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten().bfloat16()


@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_lowered_scores_are_computed_in_full(kind: str) -> None:
    trainer = built(kind)
    trainer.opponent, trainer.label_smoothing = Scores(), 0.1
    real, fake = torch.randn(2, 64).unbind()
    a, b = real.bfloat16().double(), fake.bfloat16().double()
    if kind == "wgan":
        expected, ours = a.mean() - b.mean(), trainer.distance(real, fake)
    else:
        expected = (F.softplus(-a) + 0.1 * a).mean() + F.softplus(b).mean()
        ours = trainer.discriminator_loss(real, fake)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)


def test_images_are_taken_from_the_range_of_the_loader() -> None:
    trainer = make(text=GAN, trainer=partial(GANTrainer, image_range=(-3, 5)))
    images = torch.tensor([-3.0, 1.0, 5.0])
    assert trainer.real_images([images, 0]).tolist() == [-1, 0, 1]
    assert trainer.real_images({"image": images, "label": 0}).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_all_losses_stay_finite_and_bounded(kind: str, precision: str, tmp_path: Path) -> None:
    finished(kind, tmp_path, f"memory.precision={precision}", "trainer.epochs=6")
    assert_bounded(tmp_path, at_most=20)


def assert_bounded(folder: Path, at_most: float) -> list[dict[str, Any]]:
    rows = read_rows(folder / "metrics.csv")
    losses = [name for name in rows[0] if name.startswith(("train/", "valid/"))]
    assert len(losses) >= 4
    for row in rows:
        for name in losses:
            assert abs(float(row[name])) < at_most, (name, row[name])  # false for nan too
    return rows


# --- Exact resume --------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shipped_gan_resumes_to_the_same_bits(kind: str, precision: str, tmp_path: Path) -> None:
    text, trainer = KINDS[kind]
    options = [
        f"memory={{precision: {precision}, accumulate: 2}}",
        f"optimizers.{OPPONENT[kind]}.clip_norm=0.5",
        "optimizers.generator.lr_scheduler={type: CosineAnnealingLR, every: step}",
        "trainer.ema={decay: 0.9}",
        "callbacks=[GeneratedSamples]",
    ]
    assert_resumes(tmp_path, *options, text=text, trainer=trainer, stop_at=4)
    pictures = [tmp_path / name / "report" / "samples.png" for name in ("whole", "cut")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_a_cut_between_two_steps_of_the_generator(stop_at: int, tmp_path: Path) -> None:
    assert_resumes(tmp_path, EVERY, text=WGAN, trainer=WGANGPTrainer, stop_at=stop_at)


# --- Samples -------------------------------------------------------------------------------------


class Seen(Callback):
    """Keeps the samples of each epoch, and the weights they were made by."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def on_epoch_end(self, trainer: Any, values: Mapping[str, float]) -> None:
        self.images.append(trainer.callbacks["GeneratedSamples"].draw(trainer))


class Seen300(GeneratedSamples):
    """Leaves the tensor of 300 samples in the run's folder."""

    def __init__(self) -> None:
        super().__init__(n_images=300)

    def on_end(self, trainer: Any) -> None:
        torch.save(self.draw(trainer), trainer.folder / "samples.pt")


@pytest.fixture(autouse=True)
def _seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CALLBACKS.registered, "Seen", Seen)
    monkeypatch.setitem(CALLBACKS.registered, "Seen300", Seen300)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_leave_the_training_as_it_is(kind: str, tmp_path: Path) -> None:
    ema = "trainer.ema={decay: 0.9}"
    finished(kind, tmp_path / "without", ema)
    finished(kind, tmp_path / "with", ema, "callbacks=[GeneratedSamples]")
    states = [read(tmp_path / name) for name in ("with", "without")]
    states[0].pop("callback.GeneratedSamples")
    assert_same(*states)


def test_samples_are_of_the_same_noise_each_time_and_of_the_averaged_weights() -> None:
    rates = [f"optimizers.{name}.args.lr=0.0" for name in ("generator", "discriminator")]
    averaging = "trainer.ema={decay: 0.9}"
    trainer = built("dcgan", averaging, "callbacks=[GeneratedSamples, Seen]", *rates)
    norms = [m for m in trainer.model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 0.0  # so that nothing at all changes
    train_in(trainer)
    first, second = trainer.callbacks["Seen"].images
    assert torch.equal(first, second)
    assert first.shape == (64, 1, 8, 8)
    assert first.min() >= 0
    assert first.max() <= 1
    assert len({tuple(image.flatten().tolist()) for image in first}) == 64

    before = weights(trainer)
    for average in trainer.ema.averages.values():
        average.zero_()
    averaged = trainer.callbacks["GeneratedSamples"].draw(trainer)
    assert torch.equal(averaged, torch.full_like(averaged, 0.5))  # tanh of nothing
    assert_same(weights(trainer), before)


def test_samples_go_to_tensorboard_and_to_the_report(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    samples = "callbacks=[{type: GeneratedSamples, args: {n_images: 6, columns: 4}}]"
    finished("dcgan", tmp_path, samples, "trainer.tensorboard=true")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    shown = events.Images("visuals/samples")
    assert [image.step for image in shown] == [5, 10]
    report = (tmp_path / "report" / "samples.png").read_bytes()
    pictures = [Image.open(io.BytesIO(each)) for each in (shown[-1].encoded_image_string, report)]
    assert pictures[1].size == (4 * 34, 2 * 34)  # 8 pixels are shown as 32, and framed
    ours, theirs = (picture.convert("L").tobytes() for picture in pictures)
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1  # of 255, by rounding


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_has_each_image_at_its_place(channels: int) -> None:
    images = torch.rand(5, channels, 40, 40)
    grid = make_grid(images, columns=3)
    assert grid.shape == (channels, 2 * 42, 3 * 42)
    for number, image in enumerate(images):
        top, left = number // 3 * 42 + 1, number % 3 * 42 + 1
        assert torch.equal(grid[:, top : top + 40, left : left + 40], image)
    picture = Image.open(io.BytesIO(as_png(grid)))
    assert picture.mode == ("L" if channels == 1 else "RGB")
    assert picture.size == (3 * 42, 2 * 42)


# --- What does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (GAN, "    discriminator", "    critic", "model: there is no 'discriminator'"),
        (GAN, "  generator: {type: Adam", "  gen: {type: Adam", "optimizers: there is no 'gene"),
        (WGAN, "    critic:", "    critik:", "model: there is no 'critic'; did you mean 'critik'"),
    ],
)
def test_a_network_that_is_not_there_is_reported(
    text: str, old: str, new: str, message: str
) -> None:
    trainer = GANTrainer if text is GAN else WGANGPTrainer
    pattern = f'params: "{new.strip(" :")}.*"'
    text = text.replace(old, new).replace(f'params: "{old.strip(" :")}.*"', pattern)
    with pytest.raises(ConfigError, match=message):
        make(text=text, trainer=trainer)


def test_a_generator_that_has_no_latent_size_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 64)

    monkeypatch.setitem(MODELS.registered, "Plain", Plain)
    with pytest.raises(ConfigError, match="Plain needs an attribute `latent_size`"):
        built("dcgan", "model.args.generator={type: Plain}")


def test_samples_of_a_trainer_that_makes_none_are_reported() -> None:
    with pytest.raises(ConfigError, match=r"needs Trainer\.generate"):
        check(make("callbacks=[GeneratedSamples]", trainer=Trainer))


def test_samples_that_are_no_images_are_reported_before_the_first_step() -> None:
    class Points(GANTrainer):
        def generate(self, n_images: int) -> Tensor:
            return torch.zeros(n_images, 2)

    trainer = make("callbacks=[GeneratedSamples]", text=GAN, trainer=Points)
    with pytest.raises(ConfigError, match=r"trainer.type: .*Points.generate returned \(64, 2\)"):
        check(trainer)
    assert trainer.progress.step == 0


# --- On real digits ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_dcgan", "digits_wgan_gp"])
def test_a_shipped_config_makes_digits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seventh of the run: losses in bounds, and samples near to real digits, of every class."""
    monkeypatch.chdir(ROOT)
    shorter = [f"trainer.save_dir={tmp_path}", "trainer.steps=600", "trainer.epoch_steps=150"]
    assert train.main(["-c", f"config/{name}.yaml", "--set", *shorter, "callbacks=[Seen300]"]) == 0
    (folder,) = (tmp_path / name).iterdir()
    assert_bounded(folder, at_most=10)

    arrays = read_npz(ROOT / "data" / "digits.npz")
    images, labels = arrays["images"].flatten(1) / 16, arrays["labels"].long()
    samples = torch.load(folder / "samples.pt", weights_only=True).flatten(1)
    nearest_image = torch.cdist(samples, images).min(dim=1).values.mean()
    assert nearest_image < 1.8  # noise has 3.0, digits that are left out have 1.0
    centres = torch.stack([images[labels == k].mean(dim=0) for k in range(10)])
    classes = torch.cdist(samples, centres).argmin(dim=1)
    assert len(classes.unique()) == 10
