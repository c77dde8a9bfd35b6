"""Durations in a scheduler of the user's own: each whole number that is annotated as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler, StepLR
from toy import CONFIG, CPU, assert_resumes, run

from base.config import load_config
from base.errors import ConfigError
from base.names.check import check_names
from base.names.registry import LR_SCHEDULERS, find
from base.names.signatures import json_schema, signature, takes_whole_numbers
from base.run.build import build_experiment
from trainer.trainer import Trainer


class Waves(LRScheduler):
    def __init__(
        self,
        optimizer,
        period: int,
        wait: int | None = None,
        rests: list[int] = (),
        shift: int | None = 0,
        power: float = 1.0,
        mode: str = "plain",
        plain=3,
    ):
        self.given = (period, wait, list(rests), shift)
        self.period, self.wait = period, wait or 0
        super().__init__(optimizer)

    def get_lr(self):
        phase = max(self.last_epoch - self.wait, 0) % self.period
        return [base / (1 + phase) for base in self.base_lrs]


class Later(StepLR):
    def __init__(self, optimizer, hold: int = 1, **more):
        self.given = hold
        super().__init__(optimizer, **more)


def halving(optimizer, period: int, factor: float = 0.5):
    return StepLR(optimizer, period, factor)


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (Waves, Later, halving):
        monkeypatch.setitem(LR_SCHEDULERS.registered, each.__name__, each)


def scheduler_of(section: str) -> Any:
    config = load_config(None, [f"lr_scheduler={section}", "trainer.epochs=4"], text=CONFIG)
    check_names(config)
    return build_experiment(config, CPU).schedules["main"].scheduler


@pytest.mark.parametrize(
    ("args", "every", "given"),
    [
        ("period: 2 epochs", "epoch", (2, None, [], 0)),
        ("period: 2 epochs", "step", (10, None, [], 0)),
        ("period: 10 steps", "epoch", (2, None, [], 0)),
        ("period: 50%, wait: 25%", "step", (10, 5, [], 0)),
        ("period: 3, wait: 1 epoch, rests: [1 epoch, 10 steps, 4]", "step", (3, 5, [5, 10, 4], 0)),
        ("period: 3, shift: 10%", "step", (3, None, [], 2)),
        ("period: 3, wait: null", "step", (3, None, [], 0)),
    ],
)
def test_durations_become_the_schedulers_own_steps(args: str, every: str, given: Any) -> None:
    made = scheduler_of(f"{{type: Waves, every: {every}, args: {{{args}}}}}")
    assert made.given == given


def test_also_within_another_scheduler_and_for_a_function() -> None:
    inner = "{type: Waves, args: {period: 2 epochs}}, {type: halving, args: {period: 1 epoch}}"
    section = (
        f"{{type: SequentialLR, every: step, args: {{milestones: [50%], schedulers: [{inner}]}}}}"
    )
    waves, steps = scheduler_of(section)._schedulers
    assert waves.given[0] == 10
    assert steps.step_size == 5


def test_what_is_passed_on_to_torchs_scheduler_keeps_its_rules() -> None:
    made = scheduler_of("{type: Later, every: step, args: {hold: 1 epoch, step_size: 2 epochs}}")
    assert (made.given, made.step_size) == (5, 10)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ("period: 2 epoks", r"lr_scheduler\.args\.period: expected a duration such as"),
        ("period: 2 minutes", r"lr_scheduler\.args\.period: .*depend on time"),
        ("period: 3, power: 2 epochs", r"args\.power: expected a number, found '2 epochs'"),
        ("period: 3, rests: [2 epoks]", r"args\.rests: expected a duration such as"),
        ("period: 1.5", r"args\.period: expected a whole number, found 1.5"),
    ],
)
def test_what_is_none_is_told_with_its_place(args: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        scheduler_of(f"{{type: Waves, args: {{{args}}}}}")


def test_a_text_stays_a_text_and_what_has_no_annotation_too() -> None:
    takes = signature("lr_scheduler", find("lr_scheduler", "Waves"))
    assert {"period", "wait", "rests", "shift"} <= takes.durations
    assert not {"power", "mode", "plain"} & takes.durations


def test_counts_of_torchs_own_schedulers_are_no_durations() -> None:
    takes = signature("lr_scheduler", torch.optim.lr_scheduler.CosineAnnealingWarmRestarts)
    assert "T_0" in takes.durations
    assert not {"T_mult", "last_epoch"} & takes.durations


@pytest.mark.parametrize(
    "annotation",
    [
        *("int", int, int | None, "int | None", "Optional[int]", "typing.Optional[int]", list[int]),
        *("list[int]", "List[int]", list[int] | None, "Sequence[int]", "tuple[int, ...]"),
        *("int | list[int]", "Union[int, None]", "None | int"),
    ],
)
def test_annotations_of_whole_numbers(annotation: Any) -> None:
    assert takes_whole_numbers(annotation)


@pytest.mark.parametrize(
    "annotation",
    [
        *(float, "float", bool, str, "int | str", "int | float", "dict[str, int]", list[float]),
        *(None, "Any", "Point", "Callable[[int], float]", object, list),
    ],
)
def test_other_annotations(annotation: Any) -> None:
    assert not takes_whole_numbers(annotation)


def test_an_editor_accepts_a_text_there() -> None:
    schema = json_schema("lr_scheduler", find("lr_scheduler", "Waves"))["properties"]
    assert "string" in schema["period"]["type"]
    assert schema["power"]["type"] == "number"


# --- Resumed runs ---------------------------------------------------------------------------------

WAVES = "lr_scheduler={type: Waves, every: step, args: {period: %s, wait: 10%%}}"


def rates(folder: Path, *overrides: str, **how: Any) -> list[float]:
    """Train with the rate of each step written down; return the last ones."""
    found: list[float] = []

    class Noting(Trainer):
        def train_step(self, batch: Any) -> dict[str, Any]:
            found.append(self.optimizers["main"].param_groups[0]["lr"])
            return super().train_step(batch)

    run(folder, "trainer.epochs=4", *overrides, trainer=Noting, **how)
    return found


def test_a_resume_is_exact(tmp_path: Path) -> None:
    for cut in (3, 7, 15):
        assert_resumes(tmp_path / str(cut), WAVES % "30%", "trainer.epochs=4", stop_at=cut)


def test_a_share_of_a_longer_training_is_longer(tmp_path: Path) -> None:
    """From the resume on as in a run that was so long from the start."""
    long = rates(tmp_path / "long", WAVES % "20%", "trainer.epochs=8")
    rates(tmp_path / "cut", WAVES % "20%", stop_at=12)
    resumed = rates(tmp_path / "cut", WAVES % "20%", "trainer.epochs=8", resume=True)
    assert resumed == long[12:]
    assert len(set(long)) == 8


def test_a_plain_number_is_the_one_that_the_run_began_with(tmp_path: Path) -> None:
    plain = "lr_scheduler={type: Waves, every: step, args: {period: %d}}"
    whole = rates(tmp_path / "whole", plain % 3)
    rates(tmp_path / "cut", plain % 3, stop_at=12)
    assert rates(tmp_path / "cut", plain % 4, resume=True) == whole[12:]
