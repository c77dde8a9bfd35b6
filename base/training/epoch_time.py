"""The time of an epoch by part, and one recommendation based on it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from base.system.cores import usable_cores
from logger.csv_writer import number, read_rows
from logger.files import write_whole

PARTS = ("data", "copy", "compute", "logging")
HIGH_SHARE = 0.2  # a share of the epoch outside of computation that is reported
HIGH_IDLE_SHARE = 0.5  # a share of the steps that is reported
MIN_SECONDS = 1.0  # shorter epochs need no advice


class Clock:
    """Measures the time of each part: `lap` adds the time since the last call to a part.

    ``data`` is the time waiting for the loader, ``copy`` for copies to the device, ``logging`` for
    logs and checkpoints; ``compute`` is the rest. A GPU computes asynchronously: the first three
    are the time of this process, and waiting for the GPU counts as ``compute``, or as ``logging``
    where a number is read for the log.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Reset all times to 0."""
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._n_steps = self._n_idle = 0
        self._last = time.perf_counter()

    def end_step(self, device_is_idle: bool) -> None:
        """Add the time to ``compute``; count the steps after which the GPU is idle."""
        self.lap("compute")
        self._n_steps += 1
        self._n_idle += device_is_idle

    def idle_share(self) -> float:
        """Return the share of steps after which the GPU was idle."""
        return self._n_idle / max(self._n_steps, 1)

    def lap(self, part: str) -> None:
        """Add the time since the last lap to a part."""
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """Return the seconds of each part and reset them."""
        taken, self.seconds = self.seconds, dict.fromkeys(PARTS, 0.0)
        self._n_steps = self._n_idle = 0
        return taken


def speed_factors(loader: Any, config: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the settings that `advice` depends on.

    ``readers`` is ``none`` for batches from memory, or else ``threads`` or ``processes``;
    ``num_workers``, ``cache`` and ``pin_memory`` are None if the loader has no such argument.
    ``profiled`` lists the epochs, counted from 1, that a profiler slows down; ``idle`` holds the
    last `Clock.idle_share`.
    """
    profile = config["profile"]
    return {
        "readers": loader.readers() if hasattr(loader, "readers") else "processes",
        "num_workers": getattr(loader, "num_workers", None),
        "cache": getattr(loader, "cache", None),
        "pin_memory": getattr(loader, "pin_memory", None),
        "prefetch": config["memory"]["prefetch"],
        "batch_size": getattr(loader, "batch_size", None),
        "idle": 0.0,
        "profiled": [] if profile is None else profile["epochs"],
        "cores": usable_cores(),
        "device": device.type,
    }


def advice(seconds: Mapping[str, float], factors: Mapping[str, Any]) -> str | None:
    """Return the one change that would make an epoch faster, or None.

    Args:
        seconds: the result of `Clock.take`.
        factors: the result of `speed_factors`.
    """
    total = sum(seconds.values())
    if total < MIN_SECONDS:
        return None
    shares = {part: seconds[part] / total for part in PARTS}
    if shares["data"] > HIGH_SHARE:
        change = _faster_data(factors)
        return change and f"{shares['data']:.0%} of the time is waiting for data: {change}"
    if (
        shares["copy"] > HIGH_SHARE and factors["device"] == "cuda"
    ):  # other devices do not copy asynchronously
        text = f"{shares['copy']:.0%} of the time is copying to the device: "
        if factors["pin_memory"] is False:
            return f"{text}set data_loader.args.pin_memory: true"
        if factors["prefetch"] == 0:
            return f"{text}set memory.prefetch: 2"
        return f"{text}reduce the size of samples, for example with images in uint8"
    if shares["logging"] > HIGH_SHARE:
        text = f"{shares['logging']:.0%} of the time is logging and saving"
        return f"{text}: raise trainer.save_every and trainer.log_every"
    if factors["idle"] > HIGH_IDLE_SHARE and factors["batch_size"] is not None:
        text = f"after {factors['idle']:.0%} of the steps the GPU is idle: "
        return f"{text}raise data_loader.args.batch_size above {factors['batch_size']}"
    return None


def _faster_data(factors: Mapping[str, Any]) -> str | None:
    """Return what makes the data faster; None for images in memory that all cores read already."""
    n_workers, n_cores = factors["num_workers"], factors["cores"]
    if factors["readers"] != "none" and n_workers is not None and n_workers < n_cores:
        return f"set data_loader.args.num_workers: {n_cores}"
    if factors["cache"] == "none" and factors["readers"] != "none":
        return "set data_loader.args.cache: memory, or disk"
    if factors["cache"] == "memory":
        return None
    return "make the data set faster, for example with smaller files"


def write_times(folder: Path, factors: Mapping[str, Any]) -> None:
    """Write the times of all epochs, and the advice, to ``report/time.txt``."""
    names = [f"time/{part}" for part in PARTS]
    rows = [row for row in read_rows(folder / "metrics.csv") if row.get(names[0])]
    if rows:
        titles = "".join(f"{part:>10}" for part in ("epoch", *PARTS))
        lines = [f"seconds of each epoch by part (see docs/speed.md)\n\n{titles}"]
        for row in rows:
            cells = "".join(f"{number(row[name]):10.2f}" for name in names)
            lines.append(f"{row['epoch']:>10}{cells}")
        plain = [row for row in rows if number(row["epoch"]) not in factors["profiled"]]
        of_epoch = {
            part: sum(number(row[f"time/{part}"]) for row in plain) / max(len(plain), 1)
            for part in PARTS
        }
        lines.append(f"\nfaster: {advice(of_epoch, factors) or 'no advice'}")
        write_whole(folder / "report" / "time.txt", ("\n".join(lines) + "\n").encode())
