"""Predict the time of a step for a number of GPUs: ``python benchmarks/scaling_model.py``.

A model, not a measurement: docs/scaling.md explains each term and where its constants come from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """What one GPU does in a step.

    Args:
        name: shown in the table.
        compute: seconds of forward and backward pass and update, on the samples of one GPU.
        gradient_bytes: bytes of the gradients.
        input_seconds: seconds to read a rank's samples with its workers.
        save_seconds: seconds that a checkpoint keeps rank 0 from training.
    """

    name: str
    compute: float
    gradient_bytes: float
    input_seconds: float
    save_seconds: float


@dataclass(frozen=True)
class Machine:
    """The machine between the GPUs.

    Args:
        node: GPUs in one node.
        node_bandwidth: bytes per second between GPUs of a node, each direction.
        net_bandwidth: bytes per second of each GPU's network card.
        hop: seconds of latency of one message between two ranks of the reduction.
        message_hop: seconds per rank of one message of `base/distributed/agreement.py`.
    """

    node: int = 8
    node_bandwidth: float = 300e9
    net_bandwidth: float = 40e9
    hop: float = 10e-6
    message_hop: float = 50e-6


def reduction_seconds(n_bytes: float, n_ranks: int, machine: Machine) -> float:
    """Return the time of a ring all-reduce: each rank sends 2 (n - 1) / n times the bytes."""
    if n_ranks == 1:
        return 0.0
    bandwidth = machine.node_bandwidth if n_ranks <= machine.node else machine.net_bandwidth
    rounds = 2 * (n_ranks - 1)
    return rounds / n_ranks * n_bytes / bandwidth + rounds * machine.hop


def step_seconds(
    job: Job, n_ranks: int, machine: Machine, save_every: int, overlap: float = 0.6
) -> dict[str, float]:
    """Return the parts of the time of a step in seconds.

    Args:
        save_every: steps between two checkpoints.
        overlap: the share of the computation behind which a reduction can hide.
    """
    reduction = reduction_seconds(job.gradient_bytes, n_ranks, machine)
    exposed = max(0.0, reduction - overlap * job.compute)
    message = machine.message_hop * (n_ranks - 1)
    # One of the two messages of a step hides behind the forward pass.
    messages = message + max(0.0, message - 0.3 * job.compute)
    busy = job.compute + exposed + messages
    waiting = max(0.0, job.input_seconds - busy)
    return {
        "compute": job.compute,
        "reduction": exposed,
        "messages": messages,
        "input": waiting,
        "checkpoint": job.save_seconds / save_every,
    }


JOBS = (
    Job("25 M parameters, 100 ms", 0.100, 25e6 * 4, 0.080, 0.2),
    Job("350 M parameters, 250 ms", 0.250, 350e6 * 4, 0.050, 2.0),
    Job("1.3 G parameters, 800 ms", 0.800, 1.3e9 * 4, 0.050, 8.0),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--message-hop", type=float, default=Machine.message_hop)
    options = parser.parse_args(arguments)
    machine = Machine(message_hop=options.message_hop)
    print(f"{'job':26} {'GPUs':>5}  step ms  efficiency  largest cost beside the computation")
    for job in JOBS:
        for n_ranks in (1, 8, 64, 1024):
            parts = step_seconds(job, n_ranks, machine, options.save_every)
            total = sum(parts.values())
            cost, seconds = max(list(parts.items())[1:], key=lambda part: part[1])
            shown = f"{cost} {1e3 * seconds:.1f} ms" if seconds > 1e-3 * total else "none"
            efficiency = f"{job.compute / total:10.0%}"
            print(f"{job.name:26} {n_ranks:5}  {1e3 * total:7.1f}  {efficiency}  {shown}")


if __name__ == "__main__":
    main()
