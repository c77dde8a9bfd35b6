"""What the options make of a model before it is trained: layout, recomputation, compilation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from base.config.durations import parse_duration
from base.errors import DataError
from base.network.activations import checkpoint_activations
from base.network.inplace import work_in_place
from base.system.seeding import isolated_random_state


def prepare_model(
    model: nn.Module,
    memory: Mapping[str, Any],
    device: torch.device,
    forward: Callable[[nn.Module], Any] | None = None,
) -> list[str]:
    """Apply the options that change how the model runs; return what to tell of them.

    The names of its parameters stay as they are.

    Args:
        forward: calls a model on a batch; ``auto`` changes nothing without having tried.

    Raises:
        ConfigError: a pattern matches no module, or an option would change what is computed.
    """
    notes = _lay_out(model, memory["channels_last"], device, forward)
    if memory["checkpoint_activations"]:
        checkpoint_activations(model, memory["checkpoint_activations"])
    if memory["inplace"]:
        notes.append(work_in_place(model))
    if memory["precision"] == "tf32":
        torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = memory["cudnn_benchmark"]
    if memory["compile"]:
        model.compile(mode=None if memory["compile"] is True else memory["compile"])
    if device.type == "cpu":
        offloaded = [key for key in ("offload_activations", "offload_optimizer") if memory[key]]
        if offloaded:
            notes.append(f"{' and '.join(offloaded)}: nothing to move, all is in CPU memory")
        if memory["precision"] == "tf32":
            notes.append("tf32: a GPU's; on a CPU the same as fp32")
    return notes


def _lay_out(
    model: nn.Module,
    wish: bool | str,
    device: torch.device,
    forward: Callable[[nn.Module], Any] | None,
) -> list[str]:
    """Put the channels of convolutions innermost where asked for, or where it is known to help.

    A convolution brings its input into the layout of its weights, and what follows keeps it: the
    batch need not be converted. A model whose ``view`` wants the other layout stays as it is.
    """
    if not wish or not _convolution_weights(model):
        return []
    if wish == "auto":
        if device.type not in ("cpu", "cuda") or forward is None:
            return []
        try:
            twin = copy.deepcopy(model).eval()  # whatever a first call changes, it changes there
            _innermost(twin)
            with isolated_random_state(0), torch.no_grad():
                forward(twin)
        except DataError:
            raise
        except Exception:
            return []  # if the model itself is wrong, it is told where it is called for good
    _innermost(model)
    return [f"channels_last{' (auto)' if wish == 'auto' else ''}"]


def _innermost(model: nn.Module) -> None:
    for weight in _convolution_weights(model):
        weight.data = weight.data.to(memory_format=torch.channels_last)


def _convolution_weights(model: nn.Module) -> list[nn.Parameter]:
    convolutions = (module for module in model.modules() if isinstance(module, _ConvNd))
    return [p for module in convolutions for p in module.parameters() if p.dim() == 4]


class EmptyCache:
    """Gives the memory that torch keeps for later use back to the device, once in a while."""

    def __init__(self, every: str | None, steps_per_epoch: int, total_steps: int) -> None:
        lengths = (steps_per_epoch, total_steps)
        self.n_steps = parse_duration(every).in_steps(*lengths) if every is not None else 0

    def after_step(self, step: int) -> None:
        """Follow one step of the run."""
        if self.n_steps and step % self.n_steps == 0 and torch.accelerator.is_available():
            torch.accelerator.empty_cache()
