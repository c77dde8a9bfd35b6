"""Modules for networks defined in a config: Sequential, Residual, MirrorAverage and Networks."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from base.errors import TrainingError

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class NoForward(TrainingError, NotImplementedError):  # noqa: N818 (named after the event)
    """Raised when a model without a ``forward`` is called."""


class Sequential(nn.Sequential):
    """A sequence of named layers: ``model.stem``. A layer without a name is numbered.

    A layer is ``{type, name, args}`` or, without arguments, only its type. It may be a Sequential,
    a Residual or a MirrorAverage.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class Residual(nn.Module):
    """``layers(x) + shortcut(x)``; without a shortcut, ``layers(x) + x`` (He et al., 2016)."""

    def __init__(
        self, layers: dict[str, nn.Module], shortcut: dict[str, nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.layers = Sequential(layers)
        self.shortcut = Sequential(shortcut) if shortcut else nn.Identity()

    @property
    def last_norm(self) -> str | None:
        """The name of the norm layer that ``init: zero_last_norm`` sets to 0."""
        names = [f"layers.{n}" for n, layer in self.layers.named_modules() if _is_norm(layer)]
        return names[-1] if names else None

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.shortcut(x)  # type: ignore[no-any-return]


class MirrorAverage(nn.Module):
    """``layers(x)``; in evaluation, its mean over images ``x`` and their mirror images.

    This is test-time augmentation as a part of the model: validation, test, predictions and
    exports use it. The layers return scores or values of each image, (sample, ...), not of its
    pixels. Train them with `RandomFlip`.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.layers = Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.layers(x)  # type: ignore[no-any-return]
        return (self.layers(x) + self.layers(x.flip(-1))) / 2  # type: ignore[no-any-return]


class Networks(nn.Module):
    """Several named networks, such as ``model.generator``. The trainer calls each of them."""

    def __init__(self, **networks: nn.Module) -> None:
        super().__init__()
        for name, network in networks.items():
            self.add_module(name, network)

    def forward(self, *inputs: object) -> object:
        names = ", ".join(dict(self.named_children()))
        text = f"Networks contains {names} and is not callable itself: call each of them"
        raise NoForward(f"{text} in a trainer's train_step (`trainer: {{type: ...}}`)")


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, NORMS)
