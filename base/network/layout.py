"""Applies the ``memory:`` options of a model: layout, recomputation, in-place, compilation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from base.config.durations import RunLength, parse_duration
from base.errors import DataError
from base.network.activations import checkpoint_activations
from base.network.compilation import compile_networks
from base.network.inplace import work_in_place
from base.system.seeding import isolated_random_state
from base.system.tensor_float import allow_tf32


def prepare_model(
    model: nn.Module,
    memory: Mapping[str, Any],
    device: torch.device,
    forward: Callable[[nn.Module], Any] | None = None,
) -> list[str]:
    """Apply the options that change how the model runs; return notes for the header.

    The names of its parameters do not change.

    Args:
        forward: calls a model on a batch. ``auto`` changes the layout only if this succeeds.

    Raises:
        ConfigError: a pattern matches no module, or an option would change results.
    """
    notes = _choose_layout(model, memory["channels_last"], device, forward)
    if memory["checkpoint_activations"]:
        checkpoint_activations(model, memory["checkpoint_activations"])
    if memory["inplace"]:
        notes.append(work_in_place(model))
    allow_tf32(
        in_products=memory["precision"] == "tf32",
        in_convolutions=memory["precision"] != "fp32",  # torch's default beside bf16 and fp16
    )
    torch.backends.cudnn.benchmark = memory["cudnn_benchmark"]
    if memory["compile"]:
        notes += compile_networks(model, memory["compile"], device)
    if device.type == "cpu":
        offloaded = [key for key in ("offload_activations", "offload_optimizer") if memory[key]]
        if offloaded:
            notes.append(f"{' and '.join(offloaded)}: no effect on a CPU")
        if memory["precision"] == "tf32":
            notes.append("tf32: no effect on a CPU")
    return notes


def _choose_layout(
    model: nn.Module,
    channels_last: bool | str,
    device: torch.device,
    forward: Callable[[nn.Module], Any] | None,
) -> list[str]:
    """Use ``torch.channels_last`` for convolutions if requested, or if it is known to help.

    A convolution converts its input to the layout of its weights, and later layers preserve it, so
    batches are not converted. A model whose ``view`` needs contiguous tensors is not changed.
    """
    if not channels_last or not _convolution_weights(model):
        return []
    if channels_last == "auto":
        if device.type not in ("cpu", "cuda") or forward is None:
            return []
        try:
            twin = copy.deepcopy(model).eval()  # the first call may change the model
            _use_channels_last(twin)
            with isolated_random_state(0), torch.no_grad():
                forward(twin)
        except DataError:
            raise
        except Exception:
            return []  # an error of the model is reported at its first actual call
    _use_channels_last(model)
    return [f"channels_last{' (auto)' if channels_last == 'auto' else ''}"]


def _use_channels_last(model: nn.Module) -> None:
    for weight in _convolution_weights(model):
        weight.data = weight.data.to(memory_format=torch.channels_last)


def _convolution_weights(model: nn.Module) -> list[nn.Parameter]:
    convolutions = (module for module in model.modules() if isinstance(module, _ConvNd))
    return [p for module in convolutions for p in module.parameters() if p.dim() == 4]


class EmptyCache:
    """Empties torch's memory cache at a fixed interval."""

    def __init__(self, every: str | None, length: RunLength) -> None:
        self.n_steps = parse_duration(every).in_steps(length) if every is not None else 0
        self.is_used = self.n_steps > 0

    def after_step(self, step: int) -> None:
        """Empty the cache if it is due after this step."""
        if self.is_used and step % self.n_steps == 0 and torch.accelerator.is_available():
            torch.accelerator.empty_cache()
