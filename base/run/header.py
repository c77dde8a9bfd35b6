"""The header that a run logs before it trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from base.config.normal_form import optimizer_sections
from base.distributed.group import World
from base.distributed.shard import class_name
from base.network.layer_depth import layer_order
from base.system.signals import resume_command
from base.training.parameter_groups import parameter_names

if TYPE_CHECKING:
    from base.base_trainer import BaseTrainer


def header_entries(trainer: BaseTrainer, folder: Path | None) -> dict[str, Any]:
    """Return the entries of a run's header by name; None for one to omit."""
    parameters = list(trainer.model.parameters())
    n_trainable = sum(p.numel() for p in parameters if p.requires_grad)
    n_all = sum(p.numel() for p in parameters)
    frozen = "" if n_trainable == n_all else f" ({n_all - n_trainable:,} more are frozen)"
    experiment = trainer.experiment
    sizes = [f"{experiment.batches_per_epoch:,} batches an epoch"]
    for name, loader in (("train", trainer.train_loader), ("valid", trainer.valid_loader)):
        n_samples = getattr(loader, "n_samples", None)
        if n_samples is not None:
            sizes.append(f"{n_samples:,} {name}")
    if hasattr(trainer.train_loader, "how_read"):
        sizes.append(trainer.train_loader.how_read())
    device = str(trainer.device)
    if trainer.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(trainer.device)})"
    return {
        "folder": folder,
        "processes": processes_text(trainer.world),
        "device": f"{device}, {trainer.precision.name}{_threads(trainer.device)}",
        "model": f"{class_name(trainer.model)}, {n_trainable:,} parameters{frozen}",
        "layers": layers_text(trainer),
        "data": ", ".join(sizes),
        "inputs": input_text(trainer),
        "memory": ", ".join(memory_options_in_use(trainer)) or None,
        "length": f"{experiment.n_epochs} epochs, {experiment.total_steps:,} steps",
        "best by": trainer.monitor.rule,
        "resume by": None if folder is None else resume_command(folder),
    }


def processes_text(world: World) -> str | None:
    """Return a description of the processes, if there are several."""
    if world.is_sharded:
        return f"{world.size}, each with a part of the weights; rank 0 logs"
    return None if world.size == 1 else f"{world.size}; rank 0 writes and logs"


def input_text(trainer: BaseTrainer) -> str | None:
    """Return a description of the inputs, if they are the columns of a table."""
    text: str | None = getattr(trainer.train_loader, "input_text", None)
    return text


def layers_text(trainer: BaseTrainer) -> str | None:
    """Return the layers that an optimizer's ``layer_decay`` distinguishes."""
    texts = {
        layer_order(trainer.model, names).text(): None
        for name, section in optimizer_sections(trainer.config).items()
        if section["layer_decay"] is not None
        for names in [parameter_names(trainer.optimizers[name])]
    }
    return "; ".join(texts) or None


def _threads(device: torch.device) -> str:
    n_threads = torch.get_num_threads()
    return f", {n_threads} thread{'s' * (n_threads > 1)}" if device.type == "cpu" else ""


def memory_options_in_use(trainer: BaseTrainer) -> list[str]:
    """Return the memory options in use, with those chosen automatically."""
    chosen = " (auto)" if trainer.config["memory"]["fused"] == "auto" else ""
    fused = {
        f"fused {type(optimizer).__name__}{chosen}": None
        for optimizer in trainer.optimizers.values()
        if any(group.get("fused") for group in optimizer.param_groups)
    }
    return [*trainer.experiment.memory_notes, *fused]
