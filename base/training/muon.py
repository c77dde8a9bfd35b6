"""Muon for the matrices of hidden layers with AdamW for all other parameters, in one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from base.network.layers import Networks
from base.network.patterns import owner_and_leaf

OF_MUON = ("lr", "weight_decay", "momentum", "nesterov", "ns_steps", "adjust_lr_fn")
OF_ADAMW = ("lr", "weight_decay", "betas", "eps", "fused")


class MuonWithAdamW(Optimizer):
    """Muon for the weights of hidden layers, AdamW for the rest (Jordan et al., 2024).

    Each step is that of `torch.optim.Muon` and `torch.optim.AdamW` on their groups. In a config,
    `hidden_weights` chooses the parameters of Muon; a rule of ``param_groups`` with ``use_muon``
    changes the choice. A convolution's kernel is a matrix with a row for each output channel.

    Args:
        params: groups with ``use_muon``; groups without it go to AdamW.
        lr: the rate of both. With ``match_rms_adamw``, Muon takes rates and decays of AdamW.
        adamw_lr: the rate of AdamW's groups, if it is another one.
        betas, eps, fused: of AdamW; all others but ``weight_decay`` are Muon's.
    """

    def __init__(  # noqa: PLR0913 -- the arguments of two optimizers
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        adamw_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool | None = None,
        use_muon: bool = False,
    ) -> None:
        self._adamw_lr = adamw_lr
        of_both: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        of_muon: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov}
        of_muon |= {"ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        of_adamw: dict[str, Any] = {"betas": tuple(betas), "eps": eps, "fused": fused}
        # Both check their arguments; each step gives them the groups.
        self._muon = Muon([torch.zeros(1, 1)], **of_both, **of_muon)
        self._adamw = AdamW([torch.zeros(1)], **of_both, **of_adamw)
        super().__init__(params, {**of_both, **of_muon, **of_adamw, "use_muon": use_muon})

    @staticmethod
    def group_options(model: nn.Module, args: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the options of each parameter, which rules of ``param_groups`` may change."""
        hidden = hidden_weights(model)
        rate = {} if args.get("adamw_lr") is None else {"lr": args["adamw_lr"]}
        return {
            name: {"use_muon": True} if name in hidden else {"use_muon": False, **rate}
            for name, _ in model.named_parameters()
        }

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group.

        Raises:
            ValueError: it is for Muon, and has a parameter that is no matrix.
        """
        uses_muon = param_group.get("use_muon", self.defaults["use_muon"])
        if not uses_muon and self._adamw_lr is not None:
            param_group.setdefault("lr", self._adamw_lr)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        names = group.get("param_names", range(len(group["params"])))
        for name, parameter in zip(names, group["params"], strict=True):
            if uses_muon and parameter.dim() < 2:
                shape = tuple(parameter.shape)
                raise ValueError(f"use_muon: Muon needs matrices, and {name} has shape {shape}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups: list[dict[str, Any]] = [g for g in self.param_groups if not g["use_muon"]]
        self._adamw.param_groups = [
            {**self._adamw.defaults, **{key: group[key] for key in OF_ADAMW}, "params": params}
            for group in groups
            if (params := [p for p in group["params"] if p.grad is not None])
        ]
        self._adamw.state = self.state
        if self._adamw.param_groups:
            self._adamw.step()
        for group in self.param_groups:
            if group["use_muon"]:
                self._step_muon(group)
        self._adamw.param_groups = []
        return loss

    def _step_muon(self, group: Mapping[str, Any]) -> None:
        """Step the parameters of a group as matrices that share their memory."""
        matrices = []
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state, order = self.state[parameter], _order_of(parameter)
            buffer = state.get("momentum_buffer")
            if buffer is None or buffer.stride() != parameter.stride():
                state["momentum_buffer"] = torch.zeros_like(parameter)
                if buffer is not None:  # loaded from a run with another layout
                    state["momentum_buffer"].copy_(buffer)
            matrix = _as_matrix(parameter.detach(), order)
            matrix.grad = parameter.grad.permute(order).reshape(matrix.shape)
            momentum = _as_matrix(state["momentum_buffer"], order)
            self._muon.state[matrix] = {"momentum_buffer": momentum}
            matrices.append(matrix)
        options = {key: group[key] for key in OF_MUON}
        self._muon.param_groups = [{**self._muon.defaults, **options, "params": matrices}]
        self._muon.step()
        self._muon.param_groups = []
        self._muon.state.clear()


def hidden_weights(model: nn.Module) -> list[str]:
    """Return the names of the weights of hidden layers, which Muon is made for.

    They are the weights with two or more dimensions, except for embeddings and for the output head:
    the last module with such a weight, in each of several networks. Position embeddings, scales and
    other parameters that are not called a weight are not among them either.
    """
    weights = {  # a shared one under each of its names
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.dim() > 1 and "weight" in owner_and_leaf(name)[1]
    }
    parts = [f"{name}." for name, _ in model.named_children()]
    lasts = [
        [name for name in weights if name.startswith(start)][-1:]
        for start in (parts if isinstance(model, Networks) else [""])
    ]
    heads = {owner_and_leaf(name)[0] for last in lasts for name in last}
    embedded = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, EMBEDDINGS)
        for parameter in module.parameters()
    }
    return [
        name
        for name, parameter in model.named_parameters()
        if name in weights
        and owner_and_leaf(name)[0] not in heads
        and id(parameter) not in embedded
        and 1 < len(parameter) < parameter.numel()
    ]


EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def _order_of(parameter: Tensor) -> tuple[int, ...]:
    """Return the dimensions with the first one in front and the others as they lie in memory."""
    others = sorted(range(1, parameter.dim()), key=parameter.stride, reverse=True)
    return (0, *others) if parameter.dim() > 2 else (0, 1)


def _as_matrix(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """Return a view (row, all other dimensions); the order of columns does not change the step."""
    return tensor if tensor.dim() == 2 else tensor.permute(order).view(len(tensor), -1)
