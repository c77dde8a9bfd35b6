"""Chooses the network to export, and makes inputs for it: random tensors of the noted shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from base.errors import UsageError, listed, nearest
from base.network.layers import Networks
from base.prediction.trained_run import TrainedRun

FEW = 2  # values of integer inputs, if no embedding gives their number
CPU = torch.device("cpu")
STEP = 32  # most networks halve images up to five times


@dataclass
class Inputs:
    """What a network takes: a description of each tensor, as in `base/run/model_example.py`."""

    args: list[Any]
    kwargs: dict[str, Any]
    n_codes: int = FEW
    """Integers are from 0 to below this."""
    device: torch.device = CPU

    def random(
        self, n_samples: int, size: tuple[int, int] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return random arguments for the network; the same at each call.

        Args:
            size: height and width of all images, if not the noted ones.
        """
        generator = torch.Generator().manual_seed(n_samples)

        def make(described: Any) -> Any:
            if isinstance(described, list):
                return [make(each) for each in described]
            if not is_tensor(described):
                return {name: make(each) for name, each in described.items()}
            shape, dtype = list(described["shape"]), getattr(torch, described["dtype"])
            if size is not None and is_image(described):
                shape[1:] = size
            made = random_tensor([n_samples, *shape], dtype, self.n_codes, generator)
            return made.to(self.device)

        return tuple(map(make, self.args)), {k: make(each) for k, each in self.kwargs.items()}

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the images, if there are any and all have the same."""
        described = tensors_in([self.args, self.kwargs])
        sizes = {tuple(each["shape"][1:]) for each in described if is_image(each)}
        if len(sizes) != 1:
            return None
        height, width = sizes.pop()
        return height, width

    @property
    def other_size(self) -> tuple[int, int] | None:
        """Another size of images, of another shape, which networks for any size can take."""
        if self.image_size is None:
            return None
        height, width = self.image_size
        down, right = (STEP if side % STEP == 0 else side for side in (height, width))
        return height + down, width + 2 * right


def random_tensor(
    shape: Sequence[int], dtype: torch.dtype, n_codes: int, generator: torch.Generator
) -> Tensor:
    """Return normal numbers, integers below ``n_codes``, pixels of uint8, or yes and no."""
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype, generator=generator)
    highest = {torch.bool: 2, torch.uint8: 256}.get(dtype, n_codes)
    return torch.randint(highest, shape, generator=generator).to(dtype)


def is_tensor(described: Any) -> bool:
    """Return whether this describes a tensor, and not several."""
    return isinstance(described, Mapping) and set(described) == {"shape", "dtype"}


def is_image(described: Mapping[str, Any]) -> bool:
    """Return whether a sample is (channel, height, width)."""
    return len(described["shape"]) == 3


def tensors_in(described: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the description of each tensor."""
    if is_tensor(described):
        yield described
    elif isinstance(described, Mapping):
        for each in described.values():
            yield from tensors_in(each)
    elif isinstance(described, list):
        for each in described:
            yield from tensors_in(each)


def choose_network(run: TrainedRun, module: str | None) -> nn.Module:
    """Return the model of a run, or the named part of it.

    Raises:
        UsageError: there is no such part, or the model cannot be called as a whole.
    """
    model = run.model
    parts = [name for name, _ in model.named_children()]
    if module is not None:
        try:
            return model.get_submodule(module)
        except AttributeError:
            known = [name for name, _ in model.named_modules() if name]
            hint = nearest(module, known) or f"; the model has {listed(parts)}"
            raise UsageError(f"--module: there is no {module!r}{hint}") from None
    return model


def refuse_container(run: TrainedRun, network: nn.Module) -> None:
    """Check that a network can be called, and not only its parts.

    Raises:
        UsageError: names the parts.
    """
    is_container = isinstance(network, (Networks, nn.ModuleDict, nn.ModuleList))
    if is_container or type(network).forward is nn.Module.forward:
        parts = [name for name, _ in network.named_children()]
        text = f"{run.folder}: the trainer calls the networks of {type(network).__name__} by name"
        raise UsageError(f"{text}: choose one, --module {' or '.join(parts)}")


def inputs_of_network(
    run: TrainedRun, network: nn.Module, input_shape: Sequence[int] | None
) -> Inputs:
    """Return what a network takes: as given, as noted in the run, or as its data imply.

    Args:
        input_shape: of a sample, if the network takes one float32 tensor.

    Raises:
        UsageError: it is unknown, or not only tensors.
    """
    counts = (m.num_embeddings for m in network.modules() if isinstance(m, nn.Embedding))
    n_codes = min(counts, default=FEW)
    if input_shape is not None:
        return Inputs([{"shape": list(input_shape), "dtype": "float32"}], {}, n_codes, run.device)
    example = run.example
    if example and network is run.model:
        odd = [each for each in leaves_of([example["args"], example["kwargs"]]) if "other" in each]
        if odd:
            text = f"the model takes a {odd[0]['other']}, and only tensors can be inputs of a graph"
            raise UsageError(f"{run.checkpoint}: {text}: export weights, -o model.safetensors")
        return Inputs(example["args"], example["kwargs"], n_codes, run.device)
    latent_size = getattr(network, "latent_size", None)
    shape = [latent_size] if isinstance(latent_size, int) else run.input_shape
    if not shape:
        text = "the shape of the network's input is not known"
        raise UsageError(
            f"{run.checkpoint}: {text}: give that of a sample, --input-shape 3,224,224"
        )
    return Inputs([{"shape": shape, "dtype": "float32"}], {}, n_codes, run.device)


def leaves_of(described: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the description of each value, a tensor or not."""
    if is_tensor(described) or (isinstance(described, Mapping) and set(described) == {"other"}):
        yield described
        return
    values = described.values() if isinstance(described, Mapping) else described
    for each in values:
        yield from leaves_of(each)
