"""Adversarial training: DCGAN, and WGAN with gradient penalty.

Both take ``model: {type: Networks, args: {generator: ..., discriminator or critic: ...}}`` and an
optimizer for each network. The generator has a ``latent_size``. Generated images, and the images
that its opponent receives, are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from base import BaseTrainer, ConfigError, Experiment, gradient_penalty, inputs_of, nearest


class AdversarialTrainer(BaseTrainer):
    """Base of the trainers below: the two networks, images in [-1, 1], and samples.

    Args:
        opponent: the name of the network that receives real and generated images.
        image_range: the values of black and white in the data.
    """

    def __init__(
        self, experiment: Experiment, opponent: str, image_range: Sequence[float] = (0.0, 1.0)
    ) -> None:
        super().__init__(experiment)
        self.low, self.high = image_range
        self._check(opponent)
        self.generator = self.model.get_submodule("generator")
        self.opponent = self.model.get_submodule(opponent)
        latent_size = getattr(self.generator, "latent_size", None)
        if not isinstance(latent_size, int):
            text = f"{type(self.generator).__name__} needs an attribute `latent_size`, an integer"
            raise ConfigError([self.config.problem(("model",), text)])
        self.latent_size = latent_size

    def _check(self, opponent: str) -> None:
        """Check that both networks exist, and an optimizer with the name of each."""
        networks = [name for name, _ in self.model.named_children()]
        faults = [
            self.config.problem((key,), f"there is no {name!r}{nearest(name, known)}")
            for key, known in {"model": networks, "optimizers": self.optimizers}.items()
            for name in ("generator", opponent)
            if name not in known
        ]
        if faults:
            raise ConfigError(faults)

    def real_images(self, batch: Any) -> Tensor:
        """Return the images of a batch, scaled to [-1, 1]."""
        args, kwargs = inputs_of(batch, self.config["batch"])
        images = [*args, *kwargs.values()][0]
        return 2 * (images - self.low) / (self.high - self.low) - 1

    def noise(self, n_images: int) -> Tensor:  # (batch, latent_size)
        """Draw the inputs of the generator."""
        return torch.randn(n_images, self.latent_size, device=self.device)

    def generate(self, n_images: int) -> Tensor:
        """Return generated images in [0, 1], for display."""
        return (self.generator(self.noise(n_images)) + 1) / 2


class GANTrainer(AdversarialTrainer):
    """DCGAN (Radford et al., 2016): a discriminator learns to tell generated images from real ones.

    The generator has the non-saturating loss (Goodfellow et al., 2014): the cross entropy of its
    images against the label of real ones. A discriminator that guesses has a loss of log 2 (0.69)
    for each image, real or generated.

    Args:
        label_smoothing: subtracted from the target 1 of real images (Salimans et al., 2016); the
            target of generated images is 0.
    """

    def __init__(
        self,
        experiment: Experiment,
        label_smoothing: float = 0.0,
        image_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__(experiment, "discriminator", image_range)
        self.label_smoothing = label_smoothing

    def discriminator_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        real_loss = cross_entropy(self.opponent(real), 1 - self.label_smoothing)
        return real_loss + cross_entropy(self.opponent(fake), 0.0)

    def generator_loss(self, fake: Tensor) -> Tensor:
        return cross_entropy(self.opponent(fake), 1.0)

    def train_step(self, batch: Any) -> dict[str, Any]:
        real = self.real_images(batch)
        fake = self.generator(self.noise(len(real)))

        with self.only("discriminator"):
            discriminator_loss = self.discriminator_loss(real, fake.detach())
            self.backward(discriminator_loss, only="discriminator")
            self.update("discriminator")

        with self.only("generator"):
            generator_loss = self.generator_loss(fake)
            self.backward(generator_loss, only="generator")
            self.update("generator")
        return {"discriminator": discriminator_loss, "generator": generator_loss}

    def valid_step(self, batch: Any) -> dict[str, Any]:
        real = self.real_images(batch)
        fake = self.generator(self.noise(len(real)))
        discriminator_loss = self.discriminator_loss(real, fake)
        return {"discriminator": discriminator_loss, "generator": self.generator_loss(fake)}


class WGANGPTrainer(AdversarialTrainer):
    """Wasserstein GAN with gradient penalty (Gulrajani et al., 2017). The critic has no BatchNorm.

    The critic is updated at every step, the generator at every fifth: ``optimizers: {generator:
    {every: 5 steps, ...}}``. ``distance`` is the critic's estimate of the Wasserstein distance.

    Args:
        penalty_weight: the weight of ``(norm of the critic's gradient - 1) ** 2``.
    """

    def __init__(
        self,
        experiment: Experiment,
        penalty_weight: float = 10.0,
        image_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__(experiment, "critic", image_range)
        self.penalty_weight = penalty_weight

    def distance(self, real: Tensor, fake: Tensor) -> Tensor:
        return self.opponent(real).float().mean() - self.opponent(fake).float().mean()

    def train_step(self, batch: Any) -> dict[str, Any]:
        real = self.real_images(batch)
        with torch.no_grad():
            fake = self.generator(self.noise(len(real)))

        with self.only("critic"):
            distance = self.distance(real, fake)
            penalty = gradient_penalty(self.opponent, real, fake)
            self.backward(self.penalty_weight * penalty - distance, only="critic")
            self.update("critic")
        values = {"distance": distance, "penalty": penalty}

        if self.is_due("generator"):
            with self.only("generator"):
                fake = self.generator(self.noise(len(real)))
                values["generator"] = -self.opponent(fake).float().mean()
                self.backward(values["generator"], only="generator")
                self.update("generator")
        return values

    def valid_step(self, batch: Any) -> dict[str, Any]:
        """Return the distance on images that the critic was not trained on."""
        real = self.real_images(batch)
        return {"distance": self.distance(real, self.generator(self.noise(len(real))))}


def cross_entropy(scores: Tensor, target: float) -> Tensor:
    """Return the mean binary cross entropy of logits against one target probability."""
    scores = scores.float()  # a target of 0.9 would be 0.8984 in bf16
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, target))
