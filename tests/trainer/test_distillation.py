"""Distillation: the loss by its formula, a teacher that stays as it is and needs no file later."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import CONFIG, CPU, assert_resumes, assert_same, batches, make, run, train_in, weights

import train
from base.checkpoint.store import CheckpointStore, read
from base.config import load_config
from base.errors import ConfigError
from base.names.registry import MODELS
from base.run.build import build_experiment
from base.run.testing import run_test
from logger.csv_writer import read_rows
from trainer.distillation_trainer import DistillationTrainer, soft_cross_entropy

ROOT = Path(__file__).resolve().parent.parent.parent
STUDENT = "{type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3}}"
TEXT = CONFIG.replace(
    "model: {type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3}}",
    f"""model:
  type: Networks
  args:
    student: {STUDENT}
    teacher: {{type: Teacher, weights: TEACHER}}
freeze: ["teacher.*"]
metrics: [accuracy]""",
)


class Teacher(nn.Sequential):
    """Has all that training mode would change: dropout, and statistics of batches."""

    def __init__(self, width: int = 8) -> None:
        layers = [nn.Linear(5, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5)]
        super().__init__(nn.Flatten(), *layers, nn.Linear(width, 3))


@pytest.fixture(autouse=True)
def _teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Teacher", Teacher)


@pytest.fixture
def teacher_file(tmp_path: Path) -> Path:
    torch.manual_seed(9)
    teacher = Teacher()
    teacher(torch.randn(50, 5))  # the statistics of BatchNorm are no longer those of a new one
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    return tmp_path / "teacher.pt"


def taught_by(file: Path) -> str:
    return TEXT.replace("TEACHER", str(file))


def built(file: Path, *overrides: str, **arguments: Any) -> Any:
    trainer = functools.partial(DistillationTrainer, **arguments)
    return make(*overrides, text=taught_by(file), trainer=trainer)


# --- The loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_soft_loss_is_the_divergence_of_softened_answers(temperature: float) -> None:
    ours, theirs = torch.randn(2, 7, 5, dtype=torch.float64).unbind()
    p, q = (scores.div(temperature).softmax(1) for scores in (theirs, ours))
    expected = F.kl_div(q.log(), p, reduction="batchmean") * temperature**2
    torch.testing.assert_close(soft_cross_entropy(ours, theirs, temperature), expected)
    assert soft_cross_entropy(ours, ours, temperature).item() == pytest.approx(0, abs=1e-12)


def test_its_gradient_is_that_of_cross_entropy_with_soft_targets() -> None:
    """Hinton et al., 2015, equation 2: (q - p) / T for each score, here times T squared."""
    scores, theirs = torch.randn(2, 7, 5, dtype=torch.float64).unbind()
    scores.requires_grad_()
    soft_cross_entropy(scores, theirs, 3.0).backward()
    p, q = ((each / 3).softmax(1) for each in (theirs, scores.detach()))
    torch.testing.assert_close(scores.grad, 3 * (q - p) / 7)
    assert torch.autograd.gradcheck(soft_cross_entropy, (scores, theirs, 3.0))


def test_at_a_high_temperature_it_compares_the_scores_themselves() -> None:
    """Hinton et al., 2015, equation 4: for scores of mean 0, half their mean square distance."""
    ours, theirs = torch.randn(2, 7, 5, dtype=torch.float64).unbind()
    ours, theirs = (each - each.mean(dim=1, keepdim=True) for each in (ours, theirs))
    expected = F.mse_loss(ours, theirs) / 2
    torch.testing.assert_close(
        soft_cross_entropy(ours, theirs, 1e4), expected, rtol=1e-3, atol=1e-8
    )


def test_each_pixel_counts_as_a_sample() -> None:
    ours, theirs = torch.randn(2, 2, 5, 3, 4).unbind()  # (batch, n_classes, height, width)
    flat = [each.movedim(1, -1).reshape(-1, 5) for each in (ours, theirs)]
    torch.testing.assert_close(
        soft_cross_entropy(ours, theirs, 2.0), soft_cross_entropy(*flat, 2.0)
    )


# --- Training ------------------------------------------------------------------------------------


def test_without_the_soft_part_the_student_learns_as_if_alone(teacher_file: Path) -> None:
    trainer = built(teacher_file, alpha=0.0)
    train_in(trainer)
    alone = make()
    train_in(alone)
    ours = {f"student.{name}": value for name, value in weights(alone).items()}
    assert_same({n: w for n, w in weights(trainer).items() if n in ours}, ours)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("k", [1, 2])
def test_a_distillation_trains_as_by_hand(teacher_file: Path, precision: str, k: int) -> None:
    options = f"memory={{precision: {precision}, accumulate: {k}}}"
    trainer = built(teacher_file, options, temperature=2.0)
    student, teacher = copy.deepcopy(trainer.model.student), Teacher().eval()
    teacher.load_state_dict(torch.load(teacher_file, weights_only=True))
    data = list(batches(trainer))
    train_in(trainer)

    best = torch.optim.SGD(student.parameters(), lr=0.1)
    for number, (images, target) in enumerate(data):
        size = min(k, 5 - number % 5 // k * k)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            ours, theirs = student(images), teacher(images).detach()
            q, p = (each.float().div(2).log_softmax(1) for each in (ours, theirs))
            soft = 4 * F.kl_div(q, p, log_target=True, reduction="batchmean")
            loss = 0.9 * soft + 0.1 * F.cross_entropy(ours, target)
        (loss / size).backward()
        if number % 5 % k == size - 1:
            best.step()
            best.zero_grad()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(weights(trainer)[f"student.{name}"], parameter.detach())


def test_the_teacher_is_as_in_its_file_and_stays_so(teacher_file: Path) -> None:
    trainer = built(teacher_file, "trainer.ema={decay: 0.9}")
    saved = torch.load(teacher_file, weights_only=True)
    train_in(trainer)
    assert_same(dict(trainer.model.teacher.state_dict()), dict(saved))
    trained = {
        p for one in trainer.optimizers.values() for g in one.param_groups for p in g["params"]
    }
    assert trained == set(trainer.model.student.parameters())
    assert all(p.grad is None for p in trainer.model.teacher.parameters())
    assert len(trainer.ema.averages) == len(trained)


def test_metrics_and_loss_are_those_of_the_student(teacher_file: Path) -> None:
    trainer = built(teacher_file)
    values = trainer.evaluate(trainer.valid_loader, "valid")
    images, target = next(trainer.valid_loader.batches(0, 1))
    scores = trainer.model.student.eval()(images)
    right = (scores.argmax(1) == target).float().mean()
    assert values["valid/accuracy"] == pytest.approx(right.item())
    assert values["valid/hard"] == pytest.approx(F.cross_entropy(scores, target).item())
    expected = 0.9 * values["valid/soft"] + 0.1 * values["valid/hard"]
    assert values["valid/loss"] == pytest.approx(expected)


def test_several_losses_of_the_student_keep_their_weights(teacher_file: Path) -> None:
    losses = "loss=[{type: cross_entropy, weight: 0.5}, {type: smooth_cross_entropy, weight: 2}]"
    trainer = built(teacher_file, losses, alpha=0.0)
    batch = next(batches(trainer))
    parts = trainer.compute_losses(trainer.forward(batch), batch)
    scores = trainer.model.student(batch[0])
    expected = 0.5 * F.cross_entropy(scores, batch[1])
    expected = expected + 2 * F.cross_entropy(scores, batch[1], label_smoothing=0.1)
    torch.testing.assert_close(parts["loss"], expected)


@pytest.mark.parametrize("parts", ["micro_batch: 3", "accumulate: 2"])
def test_class_weights_count_alike_in_parts_of_a_batch(teacher_file: Path, parts: str) -> None:
    loss = "loss={type: cross_entropy, args: {weight: [0.1, 3.0, 1.0], ignore_index: 2}}"
    trainer = built(teacher_file, loss, f"memory={{{parts}}}", alpha=0.5)
    found: list[torch.Tensor] = []

    def keep(optimizer: Any, *_: Any) -> None:
        found.extend(p.grad.clone() for p in optimizer.param_groups[0]["params"])
        raise StopIteration

    data = list(batches(trainer, 2))[: trainer.config["memory"]["accumulate"]]
    images, target = (torch.cat(each) for each in zip(*data, strict=True))
    parts_of_loss = trainer.compute_losses(trainer.forward((images, target)), (images, target))
    hard = F.cross_entropy(
        trainer.model.student(images), target, torch.tensor([0.1, 3.0, 1.0]), ignore_index=2
    )
    torch.testing.assert_close(parts_of_loss["hard"], hard)
    expected = torch.autograd.grad(parts_of_loss["loss"], trainer.model.student.parameters())
    trainer.optimizers["main"].register_step_pre_hook(keep)
    with pytest.raises(StopIteration):
        train_in(trainer)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_distillation_resumes_to_the_same_bits(
    teacher_file: Path, precision: str, tmp_path: Path
) -> None:
    options = [
        f"memory={{precision: {precision}, accumulate: 2}}",
        "trainer.ema={decay: 0.9}",
        "optimizer.clip_norm=0.5",
    ]
    assert_resumes(
        tmp_path, *options, text=taught_by(teacher_file), trainer=DistillationTrainer, stop_at=4
    )


# --- Where the teacher comes from ----------------------------------------------------------------


def test_a_resume_does_not_need_the_file(teacher_file: Path, tmp_path: Path) -> None:
    how = {"text": taught_by(teacher_file), "trainer": DistillationTrainer}
    run(tmp_path / "whole", **how)
    run(tmp_path / "cut", stop_at=3, **how)
    teacher_file.unlink()
    run(tmp_path / "cut", resume=True, **how)
    assert_same(read(tmp_path / "cut"), read(tmp_path / "whole"))


def test_a_test_does_not_need_the_file(teacher_file: Path, tmp_path: Path) -> None:
    trainer = run(tmp_path / "run", text=taught_by(teacher_file), trainer=DistillationTrainer)
    last = CheckpointStore(tmp_path / "run" / "checkpoints").newest()
    values = run_test(trainer, last, tmp_path / "run")
    teacher_file.unlink()
    config = load_config(None, text=taught_by(teacher_file))
    again = DistillationTrainer(build_experiment(config, CPU, weights=False))
    assert run_test(again, last, tmp_path / "run") == values
    assert {"accuracy", "soft", "hard", "loss"} == set(values)


# --- What does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (", weights: TEACHER", "", r"model\.args\.teacher: the teacher must be trained"),
        ("    student:", "    studnt:", "model: there is no 'student'; did you mean 'studnt'"),
    ],
    ids=["a teacher without weights", "no student"],
)
def test_networks_that_do_not_fit_are_told(
    teacher_file: Path, old: str, new: str, message: str
) -> None:
    assert old in TEXT
    text = TEXT.replace(old, new).replace("TEACHER", str(teacher_file))
    with pytest.raises(ConfigError, match=message):
        make(text=text, trainer=DistillationTrainer)


@pytest.mark.parametrize(
    ("override", "arguments", "message"),
    [
        ("freeze=[]", {}, "freeze: an optimizer has parameters of the teacher"),
        ("freeze=[{match: 'teacher.*', until: 1 epoch}]", {},
         "freeze: an optimizer has parameters of the teacher"),
        ("seed=3", {"temperature": 0}, "temperature must be above 0"),
        ("seed=3", {"alpha": 1.5}, "alpha from 0 to 1"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told(
    teacher_file: Path, override: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        built(teacher_file, override, **arguments)


@pytest.mark.slow
def test_the_shipped_teacher_teaches_the_shipped_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    weights_of = f"model.args.teacher.weights={tmp_path / 'digits_teacher'}"
    for name, n, more in (("digits_teacher", 8, []), ("digits_distillation", 20, [weights_of])):
        shorter = [f"trainer.save_dir={tmp_path}", f"trainer.epochs={n}", "trainer.test=true"]
        assert train.main(["-c", f"config/{name}.yaml", "--set", *shorter, *more]) == 0
    reports = {
        path.parts[-4]: json.loads(path.read_text()) for path in tmp_path.rglob("report/test.json")
    }
    assert reports["digits_teacher"]["accuracy"] > 0.95
    assert reports["digits_distillation"]["accuracy"] > 0.9
    rows = read_rows(next((tmp_path / "digits_distillation").glob("*/metrics.csv")))
    assert float(rows[-1]["valid/soft"]) < 0.5 * float(rows[0]["valid/soft"])
