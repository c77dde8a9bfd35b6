"""The state that differs between ranks, in the one checkpoint that rank 0 writes.

The parts of a checkpoint are the state of rank 0. If there were several ranks, ``ranks`` holds
their number and the parts that differ on the others: random streams, and the sums of an incomplete
epoch. Each rank continues with its own if their number is the same. Otherwise rank 0 takes the sums
of all, and the other ranks start from empty sums and new random streams: the position in the data
is global, so each sample is still seen once an epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from base.checkpoint.state_file import plain_copy
from base.data.bad_samples import BadSamples
from base.distributed.group import World
from base.system.seeding import derive_seed, seed_everything
from base.training.progress import Stateful
from base.training.state import matches_name

log = logging.getLogger("kindling")

RANKS = "ranks"
SUMS = ("meters", "metric.")
OF_RANK = ("random", *SUMS)


def gather_state(stateful: Mapping[str, Stateful], world: World) -> dict[str, Any]:
    """Return the state to save; on rank 0 with the parts that differ on other ranks.

    All ranks must call it.

    Raises:
        CheckpointError: a rank has a value that a checkpoint cannot hold.
    """
    if world.is_active and isinstance(bad := stateful.get("bad_samples"), BadSamples):
        gather_bad_samples(bad, world)
    state = {name: one.state_dict() for name, one in stateful.items()}
    if not world.is_active:
        return state
    own: dict[str, Any] = {}
    if not world.is_main:
        own = {name: part for name, part in state.items() if matches_name(name, OF_RANK)}
        own["random"] = _of_this_device(own["random"])
        own = plain_copy(own, "state", {})  # an error must not come after the others begin to send
    states = world.gather(own)
    if states is not None:
        state[RANKS] = {"size": world.size, "states": states[1:]}
    return state


def state_of_rank(
    state: Mapping[str, Any], stateful: Mapping[str, Any], world: World
) -> dict[str, Any]:
    """Return the part of a checkpoint's state that this rank loads.

    Args:
        stateful: the objects that load it, in their initial state.
    """
    mine = {name: part for name, part in state.items() if name != RANKS}
    others = state[RANKS]["states"] if RANKS in state else []
    if saved_size(state) == world.size:
        if not world.is_main:
            mine.update(others[world.rank - 1])
            mine["random"] = _on_this_device(mine["random"])
        return mine
    for name, one in stateful.items():
        if name not in mine or not matches_name(name, SUMS):
            continue
        if not world.is_main:
            mine[name] = one.state_dict()
        else:  # of one process too: its batches are whole, those to come are parts
            parts = [mine[name], *(each[name] for each in others if name in each)]
            mine[name] = one.merged(parts)  # `Meters.merged`, `Metric.merged`
    return mine


def start_random_streams(
    seed: int, world: World, state: Mapping[str, Any] | None = None, step: int = 0
) -> None:
    """Give each rank but the first random streams of its own, unless a checkpoint has them.

    Args:
        state: the state of the checkpoint; None for a new run.
        step: the step of the checkpoint.
    """
    if state is None and not world.is_main:
        seed_everything(derive_seed(seed, "rank", world.rank))
    if state is None or saved_size(state) == world.size:
        return
    if world.is_main:
        text = "the checkpoint is of %s, and the run continues with %s: each sample is still seen "
        text += "once an epoch, but the result is no longer equal to the bit"
        log.warning(text, _processes(saved_size(state)), _processes(world.size))
    else:
        seed_everything(derive_seed(seed, "rank", world.rank, step))


def saved_size(state: Mapping[str, Any]) -> int:
    """Return the number of ranks that a checkpoint was saved by."""
    return int(state[RANKS]["size"]) if RANKS in state else 1


def gather_bad_samples(bad: BadSamples, world: World) -> None:
    """Add the bad samples of the other ranks to those of rank 0, which lists them.

    Raises:
        DataError: all ranks together have more than the config allows.
    """
    if not (world.is_active and bad.skips):
        return
    found = world.gather([bad.state_dict(), bad.rows()])
    for state, rows in (found or [])[1:]:
        bad.load_state_dict(state)
        for row in rows:
            bad.add_row(row)
    if found is not None:
        for part in bad.known:
            bad.check(part)


def _of_this_device(random: Mapping[str, Any]) -> dict[str, Any]:
    """Return random states without those of the devices of other ranks."""
    if not random["cuda"]:
        return dict(random)
    number = random["cuda_device"]
    return {**random, "cuda": random["cuda"][number : number + 1], "cuda_device": 0}


def _on_this_device(random: Mapping[str, Any]) -> dict[str, Any]:
    """Return the random states of a rank, of which the only one of a GPU is for this device."""
    used = {"cuda_device": 0} if random["cuda"] else {}  # missing in earlier checkpoints
    return {**random, **used}


def _processes(number: int) -> str:
    return f"{number} process{'es' * (number > 1)}"
