"""Peak memory and time of a training step with each `memory:` option, on two networks.

    python benchmarks/memory.py                  a table of each model, minutes on a CPU
    python benchmarks/memory.py --steps 1 --batch-size 4

On CUDA the peak is the allocator's. On the CPU it is counted: what autograd keeps for the backward
pass, each storage once, with the gradients and the optimizer's state that are there at that time.
Left out is what is freed within the forward pass, which is most of what `inplace` saves, and what
`offload_*` keep in CPU memory, which is no gain there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from base.config import load_config
from base.data.batch import tensors_in, to_device
from base.names.check import check_names
from base.run.build import build_experiment, choose_device
from base.run.micro_batch import resolve_micro_batch
from base.training.trials import SavedBytes
from trainer.trainer import Trainer

CONFIG = """
name: memory
model: {model}
data_loader: {{type: SyntheticDataLoader, args: {{n_samples: {n}, shape: {shape}, n_classes: 10,
  batch_size: {batch_size}, validation_split: 0}}}}
optimizer: {{type: AdamW, args: {{lr: 0.001}}}}
loss: cross_entropy
memory: {{channels_last: false, fused: false}}
trainer: {{epochs: 1, tensorboard: false, progress: false, verbosity: 0}}
"""
TRANSFORMER = "image_size: 32, patch_size: 4, in_channels: 3, width: 192, depth: 6, n_heads: 3"
MODELS = {
    "ResNet-20": ("{type: ResNet, args: {depth: 20}}", None),
    "transformer": (f"{{type: TransformerClassifier, args: {{{TRANSFORMER}}}}}", "layers.*"),
}
OPTIONS = [
    "plain",
    "channels_last=true",
    "fused=true",
    "precision=bf16",
    "inplace=true",
    "micro_batch=QUARTER",
    "checkpoint_activations=BLOCKS",
    "offload_activations=true",
    "offload_optimizer=true",
    "optimizer_in_backward=true",
    "set_to_none=false",
    "precision=bf16 checkpoint_activations=BLOCKS optimizer_in_backward=true",
]


def make(model: str, option: str, arguments: argparse.Namespace) -> Trainer:
    """Build a trainer with one option, or several."""
    section, blocks = MODELS[model]
    words = {"QUARTER": str(max(1, arguments.batch_size // 4)), "BLOCKS": f"['{blocks}']"}
    settings = [] if option == "plain" else option.split()
    for word, value in words.items():
        settings = [setting.replace(word, value) for setting in settings]
    text = CONFIG.format(
        model=section,
        n=arguments.batch_size * (arguments.steps + 1),
        shape=[3, 32, 32],
        batch_size=arguments.batch_size,
    )
    config = load_config(None, [f"memory.{setting}" for setting in settings], text=text)
    check_names(config)
    torch.manual_seed(config["seed"])
    return Trainer(build_experiment(config, choose_device(arguments.device)))


def step(trainer: Trainer, batch: Any, saved: SavedBytes | None = None) -> int:
    """Make one step; return the most bytes that were counted in a part of it."""
    most = 0
    trainer.window.take(batch)
    for part, _ in trainer.window.parts(batch, 0):
        with trainer.precision.autocast(), saved or trainer.offload():
            trainer.train_step(part)
        if saved is not None:
            most = max(most, saved.peak)
    return most


def counted(trainer: Trainer, batch: Any) -> int:
    """Return the peak on a CPU: kept activations, gradients and state; two steps were made."""
    memory, parameters = trainer.config["memory"], list(trainer.model.parameters())
    there = [*parameters, *tensors_in(batch)]
    activations = step(trainer, batch, SavedBytes(there))
    if memory["offload_activations"]:
        activations = 0
    gradients = sum(p.nbytes for p in parameters)
    if memory["optimizer_in_backward"]:
        gradients = max(p.nbytes for p in parameters)
    states = [
        value.nbytes
        for state in trainer.optimizers["main"].state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    state = 0 if memory["offload_optimizer"] else sum(states)
    # Gradients come while activations go: the more of both is there; kept ones are there anyhow.
    if not memory["set_to_none"]:
        activations += gradients
    return state + sum(p.nbytes for p in parameters) + max(activations, gradients)


def measure(model: str, option: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """Return the peak in MB and the milliseconds of a step, the best of all."""
    trainer = make(model, option, arguments)
    resolve_micro_batch(trainer)
    trainer.model.train()
    loaded = trainer.train_loader.batches(0, arguments.steps + 1)
    batches = [to_device(batch, trainer.device) for batch in loaded]
    is_cuda = trainer.device.type == "cuda"
    step(trainer, batches[0])
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for batch in batches[1:]:
        begin = time.perf_counter()
        step(trainer, batch)
        if is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if is_cuda else counted(trainer, batches[0])
    return peak / 2**20, 1000 * min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device}, counted"
    print(f"{where}, torch {torch.__version__}, batch {arguments.batch_size}\n")
    for model in arguments.models:
        print(f"| {model} | peak MB | % of plain | ms a step | % of plain |\n|---|---|---|---|---|")
        plain: tuple[float, float] | None = None
        for option in OPTIONS:
            if "BLOCKS" in option and MODELS[model][1] is None:
                continue  # BatchNorm is not computed again
            found = measure(model, option, arguments)
            plain = plain or found
            cells = [f"{a:.1f} | {100 * a / b:.0f}" for a, b in zip(found, plain, strict=True)]
            print(f"| {option} | {' | '.join(cells)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
