"""State that waits in CPU memory, and steps within the backward pass: the numbers stay the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_memory_options import Boundary
from torch import Tensor, nn
from toy import assert_resumes, assert_same, batches, make, train_in, weights

from base.checkpoint.store import read
from base.errors import TrainingError
from base.names.registry import MODELS, OPTIMIZERS
from trainer.trainer import Trainer

GROUPS = "param_groups: [{match: '*.bias', lr: 0.02}, {match: 'head.*', weight_decay: 0.1}]"
SECTIONS = [
    f"optimizer={{type: AdamW, args: {{lr: 0.01}}, {GROUPS}}}",
    f"optimizer={{type: SGD, args: {{lr: 0.1, momentum: 0.9}}, {GROUPS}}}",
    "optimizer={type: SGD, args: {lr: 0.1}}",
    "optimizer={type: Adam, args: {lr: 0.01, amsgrad: true, fused: false}}",
    "optimizer={type: NAdam, args: {lr: 0.01}}",
    "optimizer={type: Adafactor, args: {lr: 0.01}}",
]
SCHEDULE = "lr_scheduler={type: CosineAnnealingLR, every: step}"
IN_BACKWARD = "memory.optimizer_in_backward=true"


@pytest.fixture
def boundaries(monkeypatch: pytest.MonkeyPatch) -> list[Boundary]:
    made: list[Boundary] = []
    monkeypatch.setattr(
        "base.run.build.offload_state",
        lambda optimizer, _: made.append(Boundary(optimizer)),
    )
    return made


# --- Offloaded state ------------------------------------------------------------------------------


@pytest.mark.parametrize("more", ["memory.precision=fp32", "memory.precision=fp16", IN_BACKWARD])
@pytest.mark.parametrize("section", SECTIONS)
def test_offloaded_state_gives_equal_checkpoints(
    section: str, more: str, boundaries: list[Boundary], tmp_path: Path
) -> None:
    states = []
    for offloaded in ("false", "true"):
        folder = tmp_path / offloaded
        folder.mkdir()
        option = f"memory.offload_optimizer={offloaded}"
        train_in(make(section, SCHEDULE, more, option), folder)
        states.append(read(folder))
    assert_same(states[1], states[0])
    (boundary,) = boundaries
    assert (boundary.sent > boundary.brought > 0) == (section != SECTIONS[2]), "SGD keeps nothing"


@pytest.mark.parametrize("section", SECTIONS[:2])
@pytest.mark.usefixtures("boundaries")
def test_offloaded_state_resumes(section: str, tmp_path: Path) -> None:
    assert_resumes(tmp_path, section, SCHEDULE, "memory.offload_optimizer=true")


def test_the_state_of_a_part_alone_is_on_the_device() -> None:
    parameters = [nn.Parameter(torch.randn(10)) for _ in range(6)]  # 40 bytes each
    optimizer = torch.optim.Adam(parameters)
    there: set[int] = set()
    most = 0

    class Counting(Boundary):
        def send(self, value: Tensor, host: Tensor | None) -> Tensor:
            there.discard(id(value))
            return super().send(value, host)

        def bring(self, host: Tensor, like: Tensor) -> Tensor:
            nonlocal most
            value = super().bring(host, like)
            there.add(id(value))
            most = max(most, len(there))
            return value

    Counting(optimizer, part_bytes=80)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(10)
        optimizer.step()
    assert most == 4  # two moments of two parameters
    assert not there


@pytest.mark.parametrize("option", ["memory.offload_optimizer=true", IN_BACKWARD])
@pytest.mark.usefixtures("boundaries")
def test_an_optimizer_that_counts_in_its_groups_is_refused(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counting(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                group["k"] = group.get("k", 0) + 1
            return super().step(closure)

    monkeypatch.setitem(OPTIMIZERS.registered, "Counting", Counting)
    with pytest.raises(TrainingError, match=r"Counting changes options of its groups \(k\)"):
        train_in(make("optimizer={type: Counting, args: {lr: 0.1}}", option))


# --- Steps in the backward pass -------------------------------------------------------------------


@pytest.mark.parametrize("section", SECTIONS)
def test_a_step_in_the_backward_pass_is_the_plain_one(section: str, tmp_path: Path) -> None:
    states = []
    for wish in ("false", "true"):
        folder = tmp_path / wish
        folder.mkdir()
        train_in(make(section, SCHEDULE, f"memory.optimizer_in_backward={wish}"), folder)
        states.append(read(folder))
        entries = states[-1]["optimizer.main"]["state"]  # whose order is that of the first steps
        states[-1]["optimizer.main"]["state"] = dict(sorted(entries.items()))
    assert_same(states[1], states[0])


@pytest.mark.parametrize("section", SECTIONS[:2])
def test_it_resumes_to_the_same_bits(section: str, tmp_path: Path) -> None:
    assert_resumes(tmp_path, section, SCHEDULE, IN_BACKWARD)


class Tied(nn.Module):
    """One matrix used twice, and one parameter that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.head = nn.Linear(5, 3)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.flatten(1)).tanh()))


@pytest.mark.parametrize("freeze", ["[]", "['first.bias']", "[{match: 'head.*', until: 4 steps}]"])
def test_tied_frozen_and_thawing_parameters_are_trained_as_before(
    freeze: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(MODELS.registered, "Tied", Tied)
    made = []
    for wish in ("false", "true"):
        caplog.clear()
        option = f"memory.optimizer_in_backward={wish}"
        trainer = make("model={type: Tied}", SECTIONS[4],
                       f"freeze={freeze}", option)  # fmt: skip
        train_in(trainer)
        made.append(trainer)
        assert "no loss reaches unused: not trained" in caplog.text
    assert_same(made[1].model.state_dict(), made[0].model.state_dict())


def test_each_gradient_is_freed_at_once() -> None:
    trainer = make(IN_BACKWARD)
    most = 0

    def count(_: Any) -> None:
        nonlocal most
        most = max(most, sum(p.grad is not None for p in trainer.model.parameters()))

    for parameter in trainer.model.parameters():
        parameter.register_post_accumulate_grad_hook(count)
    trainer.model.train()
    trainer.train_step(next(batches(trainer)))
    assert most == 0, "ours came first and has freed it"


class NotFinite(Trainer):
    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        factor = float("nan") if self.progress.step == 2 else 1.0
        return {"loss": factor * super().compute_losses(outputs, batch)["cross_entropy"]}


def test_a_loss_that_is_not_finite_is_noticed_before_anything_is_updated() -> None:
    trainer = make(IN_BACKWARD, trainer=NotFinite)
    kept: list[dict[str, Tensor]] = []
    trainer._changing.append(SimpleNamespace(after_step=lambda _: kept.append(weights(trainer))))
    with pytest.raises(TrainingError, match="not finite at step 3"):
        train_in(trainer)
    assert_same(weights(trainer), kept[1])


class TwoPasses(Trainer):
    def train_step(self, batch: Any) -> dict[str, Any]:
        for _ in range(2):
            losses = self.compute_losses(self.forward(batch), batch)
            self.backward(losses["cross_entropy"])
        self.update()
        return losses


def test_a_second_backward_pass_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"a second backward pass before .self.update"):
        train_in(make(IN_BACKWARD, trainer=TwoPasses))
