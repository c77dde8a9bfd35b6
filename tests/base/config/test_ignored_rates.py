"""Settings of ``lr`` that the scheduler replaces, compared with the rates of the first steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from base.config import load_config
from base.config.durations import RunLength
from base.config.ignored_rates import ignored_rates, rate_warnings
from base.training.schedules import build_schedule

LR = "optimizer.args.lr"
ONE_CYCLE = "lr_scheduler={type: OneCycleLR, every: step, args: {max_lr: 0.01}}"
FOLLOWS = "lr_scheduler={type: OneCycleLR, every: step, args: {max_lr: '${optimizer.args.lr}'}}"
CYCLIC = "lr_scheduler={type: CyclicLR, every: step, args: {base_lr: 0.001, max_lr: 0.01}}"
COSINE = "lr_scheduler={type: CosineAnnealingLR, every: step}"
GROUPS = "optimizer.param_groups=[{match: '*.bias', lr: 0.2}]"


def rates(path: Path, overrides: list[str]) -> list[list[float]]:
    """Return the rates of the first steps of two groups, as torch has them."""
    config = load_config(path, overrides)
    lr, groups = config["optimizer"]["args"]["lr"], config["optimizer"]["param_groups"]
    own = next((each["lr"] for each in groups if "lr" in each), lr)
    given = [{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": own}]
    optimizer = torch.optim.SGD(given, lr=lr, momentum=0.9)
    schedule = build_schedule(optimizer, config["lr_scheduler"], RunLength(10, 20))
    found = []
    for _ in range(4):
        found.append([float(group["lr"]) for group in optimizer.param_groups])
        if schedule is not None:
            optimizer.step()
            schedule.scheduler.step()
    return found


@pytest.mark.parametrize(
    "others",
    [[ONE_CYCLE], [CYCLIC], [FOLLOWS], [COSINE], ["lr_scheduler=null"], [ONE_CYCLE, GROUPS]],
)
def test_a_rate_is_ignored_where_it_changes_no_step(others: list[str], project_root: Path) -> None:
    path = project_root / "config" / "digits.yaml"
    first, other = ([*others, f"{LR}={rate}"] for rate in (0.05, 0.1))
    is_ignored = rates(path, first) == rates(path, other)
    config = load_config(path, first)
    assert bool(ignored_rates(config, [LR])) == is_ignored
    assert len(rate_warnings(config)) == is_ignored
    assert ignored_rates(config, ["seed"]) == {}


def test_each_of_several_optimizers_has_its_own_place(project_root: Path) -> None:
    path = project_root / "config" / "digits_dcgan.yaml"
    name = next(iter(load_config(path)["optimizers"]))
    key = f"optimizers.{name}.args.lr"
    overrides = [f"optimizers.{name}.{ONE_CYCLE}", f"{key}=1e-3"]
    (line,) = rate_warnings(load_config(path, overrides))
    assert line == (
        f"{key}=0.001 has no effect: OneCycleLR replaces it; "
        f"use optimizers.{name}.lr_scheduler.args.max_lr"
    )
