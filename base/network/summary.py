"""Summarizes a model's layers in a table: shapes, parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from base.network.shapes import inputs_text, shape_text
from base.system.seeding import isolated_random_state


@dataclass(frozen=True)
class LayerRow:
    """A layer at one input shape. ``n_calls`` is 0 for a layer that was not called.

    Such a layer is unused, or another layer uses its weights, as attention uses ``out_proj``.

    Parameters and multiply-adds exclude those of inner layers. A shared parameter counts only in
    the first row, so that columns add up. Multiply-adds are those of all calls on the whole batch.
    """

    name: str
    type: str
    inputs: str
    outputs: str
    n_parameters: int
    n_trainable: int
    multiply_adds: int
    n_calls: int


def summarise_model(model: nn.Module, run: Callable[[], Any]) -> list[LayerRow]:
    """Call ``run``, which does a forward pass, and return a row per layer in order of call.

    A layer is a module without children, or with direct parameters or multiply-adds. The pass runs
    in eval mode and without gradients, in which torch's layers do not change buffers. The mode and
    the random state are restored, but not other changes by ``run`` (a data loader's position, a
    buffer of a custom layer). Compiled code runs uncompiled while operations are counted.

    Multiply-adds are counted for matrix products, convolutions, attention and recurrent layers,
    regardless of masks and padding. Norms, activations, pooling, embeddings, sums,
    ``nn.Bilinear`` and kernels of other packages count as 0.
    """
    record = _Record()
    with ExitStack() as stack:
        stack.enter_context(_eval_mode(model))
        for name, module in model.named_modules():
            leave = partial(record.leave, name)
            stack.callback(module.register_forward_pre_hook(record.enter).remove)
            hook = module.register_forward_hook(leave, with_kwargs=True, always_call=True)
            stack.callback(hook.remove)
        stack.enter_context(record.counter)
        run()
    return record.rows(model)


def table_rows(layers: Sequence[LayerRow]) -> list[tuple[str, ...]]:
    """Return the cells of a table: header, one row per layer, and totals."""
    total = LayerRow(
        *("total", "", "", ""),
        n_parameters=sum(layer.n_parameters for layer in layers),
        n_trainable=sum(layer.n_trainable for layer in layers),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        n_calls=1,
    )
    head = ("layer", "type", "input", "output", "parameters", "trainable", "multiply-adds")
    return [head, *map(_texts, layers), _texts(total)]


def _texts(layer: LayerRow) -> tuple[str, ...]:
    n_all, n_trainable = layer.n_parameters, layer.n_trainable
    trainable = "yes" if n_trainable == n_all else "partly" if n_trainable else "frozen"
    return (
        (layer.name or "(model)") + (f" (x{layer.n_calls})" if layer.n_calls > 1 else ""),
        *(layer.type, layer.inputs, layer.outputs),
        *((f"{n_all:,}", trainable) if n_all else ("-", "-")),
        f"{layer.multiply_adds:,}" if layer.multiply_adds else "-",
    )


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel cannot be counted
    try:
        with isolated_random_state(0), torch.no_grad():
            model.eval()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in modes.items():
            module.training = mode


class _Record:
    """Records each call and its operations with hooks, and computes the rows."""

    def __init__(self) -> None:
        from torch.utils.flop_counter import FlopCounterMode  # slow to import

        self.counter = FlopCounterMode(display=False, custom_mapping=_FUSED)
        self.calls: dict[int, LayerRow] = {}  # by starting order
        self.running: list[list[int]] = []  # (order, flops before it, flops of calls inside it)
        self.order = count()

    def enter(self, *_: Any) -> None:
        self.running.append([next(self.order), self.counter.get_total_flops(), 0])

    def leave(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        order, before, inside = self.running.pop()
        flops = self.counter.get_total_flops() - before
        if self.running:
            self.running[-1][2] += flops
        if flops > inside or _has_parameters(module) or not any(module.children()):
            texts = (name, type(module).__name__, inputs_text(args, kwargs), shape_text(output))
            self.calls[order] = LayerRow(*texts, 0, 0, (flops - inside) // 2, 1)

    def rows(self, model: nn.Module) -> list[LayerRow]:
        rows: dict[tuple[str, str, str], LayerRow] = {}
        for _, new in sorted(self.calls.items()):
            key = (new.name, new.inputs, new.outputs)
            old = rows.get(key, replace(new, multiply_adds=0, n_calls=0))
            multiply_adds = old.multiply_adds + new.multiply_adds
            rows[key] = replace(old, multiply_adds=multiply_adds, n_calls=old.n_calls + 1)
        called = {row.name for row in rows.values()}
        idle = [
            LayerRow(name, type(module).__name__, "not called", "-", 0, 0, 0, 0)
            for name, module in model.named_modules()
            if name not in called and _has_parameters(module)
        ]
        return _with_parameters([*rows.values(), *idle], model)


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _with_parameters(rows: list[LayerRow], model: nn.Module) -> list[LayerRow]:
    counted: set[int] = set()
    result = []
    for row in rows:
        own = model.get_submodule(row.name).parameters(recurse=False)
        new = [p for p in own if id(p) not in counted and not is_lazy(p)]
        counted.update(map(id, new))
        n_trainable = sum(p.numel() for p in new if p.requires_grad)
        n_all = sum(p.numel() for p in new)
        result.append(replace(row, n_parameters=n_all, n_trainable=n_trainable))
    return result


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    return 2 * prod((*query[:-1], key[-2], query[-1] + value[-1]))


def _recurrent(inputs: Sequence[int], weights: Sequence[Sequence[int]]) -> int:
    return 2 * prod(inputs[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


# Formulas for kernels unknown to torch's counter. They receive shapes instead of tensors.
_FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: _attention(query, key, value)
    ),
    torch.ops.aten._cudnn_rnn: lambda x, weights, *_, **__: _recurrent(x, weights),
    torch.ops.aten.mkldnn_rnn_layer: lambda x, w, r, *_, **__: _recurrent(x, [w, r]),
}
