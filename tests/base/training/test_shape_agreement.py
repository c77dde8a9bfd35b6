"""An output and a target whose shapes differ and would broadcast are refused before training."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import make, train_in

from base.base_trainer import BaseTrainer
from base.errors import ConfigError, TrainingError
from base.names.torch_names import SOURCES
from base.run.checks import check
from base.run.dry_run_report import dry_run
from base.training.metrics import ObjectMetric, SampleMean, WholeEpoch
from base.training.shape_agreement import ShapeAgreement
from trainer.trainer import Trainer

N, C, H, W = 6, 3, 4, 5


def rows(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)))


def call(function: Any, output: Any, target: Any, kind: str = "call") -> Any:
    return getattr(ShapeAgreement(), kind)("loss.0", function, output, target)


def told(function: Any, output: Any, target: Any, kind: str = "call") -> str:
    with pytest.raises(ConfigError) as raised:
        call(function, output, target, kind)
    return str(raised.value)


def test_both_shapes_and_what_to_change_are_told():
    assert told(F.mse_loss, rows(30, 1), rows(30)) == (
        "loss.0: output (30, 1) and target (30,) would broadcast to (30, 30) in `mse_loss`: add "
        "a last dimension to the target (`ArrayFileDataset`: targets of shape (N, 1)), or squeeze "
        "the model's output, `output.squeeze(-1)`"
    )
    assert "(`targets[:, 0]` in your data)" in told(F.mse_loss, rows(30), rows(30, 1))
    text = told(lambda a, b: (a - b).mean(), rows(N, 1, H, N), rows(N, H, N))
    assert "tests/base/training/test_shape_agreement.py:" in text
    assert "`target.unsqueeze(1)`, or `output.squeeze(1)`" in text
    text = told(lambda a, b: (a - b).mean(), rows(N, 1, H, W), rows(N, C, H, W))
    assert "`output.expand_as(target)`" in text
    text = told(lambda a, b: (a - b).mean(), rows(N, N), rows(N))
    assert "add a dimension explicitly, as in `output[:, None]`" in text


# --- torch's losses -------------------------------------------------------------------------------

ELEMENTWISE = {
    "BCELoss", "BCEWithLogitsLoss", "HingeEmbeddingLoss", "HuberLoss", "KLDivLoss", "L1Loss",
    "MSELoss", "MultiLabelSoftMarginLoss", "PoissonNLLLoss", "SmoothL1Loss", "SoftMarginLoss",
}  # fmt: skip
OTHERS = {  # what each takes: output, target
    "CrossEntropyLoss": (rows(N, C), torch.arange(N) % C),
    "NLLLoss": (rows(N, C, H, W), torch.ones(N, H, W).long()),
    "MultiMarginLoss": (rows(N, C), torch.arange(N) % C),
    "MultiLabelMarginLoss": (rows(N, C), torch.tensor([[1, 0, -1]] * N)),
}
BY_MORE_THAN_TWO = {  # a config cannot name these without a trainer that gives the rest
    "AdaptiveLogSoftmaxWithLoss", "CTCLoss", "CosineEmbeddingLoss", "GaussianNLLLoss",
    "MarginRankingLoss", "TripletMarginLoss", "TripletMarginWithDistanceLoss",
    "LinearCrossEntropyLoss",
}  # fmt: skip


def test_every_loss_of_torch_is_looked_at():
    known = {name for name in SOURCES["loss"][0].members()}
    assert known == ELEMENTWISE | set(OTHERS) | BY_MORE_THAN_TWO & known


@pytest.mark.parametrize(
    ("output", "target"),
    [
        (rows(N, 1), rows(N)), (rows(N), rows(N, 1)), (rows(N, 1), rows(N, C)),
        (rows(1, 1), rows(1)), (rows(N, 1, H, N), rows(N, H, N)), (rows(N, N), rows(N)),
        (rows(N, 1, H, W), rows(N, C, H, W)),
    ],
    ids=lambda tensor: str(tuple(tensor.shape)),
)  # fmt: skip
@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_a_loss_of_torch_never_broadcasts(name: str, output: torch.Tensor, target: torch.Tensor):
    loss = getattr(nn, name)()
    fate = "must have the same shape" if name.startswith("BCE") else "would broadcast"
    assert fate in told(loss, output, target)
    same = target.expand(np.broadcast_shapes(output.shape, target.shape)).contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kl_div's about its mean
        assert call(loss, output.expand_as(same), same).dim() == 0


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_a_loss_over_classes_takes_its_targets(name: str):
    assert call(getattr(nn, name)(), *OTHERS[name]).dim() == 0


def test_losses_of_more_than_two_tensors_take_theirs():
    a, b, one = rows(N, C), rows(N, C) + 1, torch.ones(N)
    call(lambda o, t: F.cosine_embedding_loss(o, b, t), a, one)
    call(lambda o, t: F.margin_ranking_loss(o[:, 0], o[:, 1], t), a, one)
    call(lambda o, t: F.triplet_margin_loss(o, t, b), a, rows(N, C))
    call(lambda o, t: F.gaussian_nll_loss(o[:, :1], t, o[:, 1:2]), a, rows(N, 1))
    assert told(lambda o, t: F.gaussian_nll_loss(o[:, :1], t, o[:, 1]), a, rows(N))
    lengths = torch.full((2,), H)
    scores = rows(H, 2, C).log_softmax(2)
    call(lambda o, t: F.ctc_loss(o, t, lengths, lengths // 2), scores, torch.ones(2, 2).long())
    call(lambda o, t: F.cross_entropy(o, t), a, rows(N, C))  # soft targets


# --- functions of one's own -----------------------------------------------------------------------

ACCIDENTS = {
    "difference": lambda o, t: ((o - t) ** 2).mean(),
    "difference the other way": lambda o, t: (t - o).abs().mean(),
    "method": lambda o, t: o.sub(t).square().mean(),
    "product": lambda o, t: -(t * o.log()).mean(),
    "binary cross entropy by hand": lambda o, t: (
        -(t * o.sigmoid().log() + (1 - t) * (1 - o.sigmoid()).log()).mean()
    ),
    "quotient": lambda o, t: (o / (t + 1)).mean(),
    "equality": lambda o, t: ((o > 0.5) == t.bool()).float().mean(),
    "eq": lambda o, t: (o > 0).eq(t.long()).float().mean(),
    "maximum": lambda o, t: torch.maximum(o, t).mean(),
    "hinge": lambda o, t: (1 - o * (2 * t - 1)).clamp(min=0).mean(),
    "casts": lambda o, t: (o.detach().double().sigmoid() - t.to(torch.float64)).abs().mean(),
    "a loss inside": lambda o, t: 2 * F.smooth_l1_loss(o, t, reduction="sum"),
    "a module inside": lambda o, t: nn.Sequential(nn.Identity())(nn.L1Loss()(o, t)),
    "where": lambda o, t: torch.where(o > 0, o, t).mean(),
    "filled": lambda o, t: o.masked_fill(t > 0, 1.0).mean(),
    "weights": lambda o, t: (F.mse_loss(o, o * 0.5, reduction="none") * t).mean(),
    "a part by mask": lambda o, t: (o[o.flatten() > 0] - t[o.flatten() > 0]).mean(),
    "numpy": lambda o, t: np.mean((o.numpy() - t.numpy()) ** 2),
    "numpy's equality": lambda o, t: np.mean((o.cpu().numpy() > 0.5) == t.numpy()),
    "numpy's function": lambda o, t: np.abs(np.subtract(o.numpy(), t.numpy())).mean(),
}


@pytest.mark.parametrize("shapes", [((N, 1), (N,)), ((N,), (N, 1)), ((1, 1), (1,))], ids=str)
@pytest.mark.parametrize("name", ACCIDENTS)
def test_an_accident_in_a_function_of_ones_own_is_refused(name: str, shapes: Any):
    output, target = rows(*shapes[0]) + 0.1, rows(*shapes[1]) + 0.1
    assert "would broadcast" in told(ACCIDENTS[name], output, target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of torch's losses warn
        ACCIDENTS[name](output, target)
    call(ACCIDENTS[name], output.reshape(target.shape), target)


def test_other_shapes_that_broadcast_are_refused_too():
    def error(output, target):
        return (output - target).abs().mean()

    for output, target in [
        ((N, 1, H, W), (N, C, H, W)), ((N, H, 1), (N, H, C)), ((N, 1, H, N), (N, H, N)),
        ((N, N, 1), (N, N)), ((N, N), (N,)),
    ]:  # fmt: skip
        assert "would broadcast" in told(error, rows(*output), rows(*target))
    share = told(lambda o, t: (o.argmax(1) == t).float().mean(), rows(N, C), torch.zeros(N, 1))
    assert "output (6,) and target (6, 1) would broadcast to (6, 6)" in share
    assert told(lambda o, t: o.max(1, keepdim=True)[1].eq(t), rows(N, C), torch.zeros(N))
    assert told(lambda o, t: o[:, 1] - t, rows(N, C), rows(N, 1))
    assert told(lambda o, t: o["a"][0] - t["b"], {"a": [rows(N, 1)]}, {"b": rows(N)})


MEANT = {
    "all pairs": (lambda o, t: o[:, None] - t[None, :], (N,), (N,)),
    "all pairs by one": (lambda o, t: o.unsqueeze(1) - t, (N,), (N,)),
    "the k best": (lambda o, t: o.topk(2).indices == t.unsqueeze(1), (N, C), (N,)),
    "the k best of a column": (lambda o, t: o.topk(2).indices == t, (N, C), (N, 1)),
    "squeezed": (lambda o, t: o.squeeze() - t, (N, 1), (N,)),
    "viewed": (lambda o, t: o.view(-1) - t.view(-1), (N, 1), (N,)),
    "view as": (lambda o, t: o - t.view_as(o), (N, 1), (N,)),
    "expanded": (lambda o, t: o - t.expand_as(o), (N, N), (N,)),
    "a mask of one channel": (lambda o, t: o * t, (N, C, H, W), (N, 1, H, W)),
    "a mask": (lambda o, t: o * t[:, None], (N, C, H, W), (N, H, W)),
    "one number": (lambda o, t: o - t.mean(), (N, 1), (N,)),
    "means of columns": (lambda o, t: o - t.mean(0), (N, N), (N, N)),
    "means of columns, by name": (lambda o, t: o - t.mean(dim=0), (N, C), (N, C)),
    "means of rows": (lambda o, t: o - t.mean(1, keepdim=True), (N, C), (N, C)),
    "gathered": (lambda o, t: o.gather(1, t.long()[:, None]).squeeze(1) * t, (N, C), (N,)),
    "one-hot": (lambda o, t: o * F.one_hot(t.long(), C), (N, C), (N,)),
    "a soft margin over classes": (lambda o, t: F.cross_entropy(o, t.long()), (N, C), (N,)),
    "sample by sample": (
        lambda o, t: sum((a - b).mean() for a, b in zip(o, t, strict=True)), (C, C), (C, C),
    ),
    "one sample": (lambda o, t: o[0] - t, (C, C), (C, C)),
    "quantiles": (
        lambda o, t: F.smooth_l1_loss(
            *torch.broadcast_tensors(o.unsqueeze(2), t.unsqueeze(1)), reduction="none"
        ), (N, C), (N, C),
    ),
    "numpy's pairs": (lambda o, t: o.numpy()[:, None] - t.numpy(), (N,), (N,)),
    "numpy raveled": (lambda o, t: o.numpy().ravel() - t.numpy(), (N, 1), (N,)),
    "a distance": (lambda o, t: torch.cdist(o, t), (N, C), (N, C)),
    "not broadcast": (lambda o, t: o.flatten().tolist() == t.tolist(), (N, 1), (N,)),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANT)
def test_what_is_written_on_purpose_passes(name: str):
    function, output, target = MEANT[name]
    call(function, rows(*output), rows(*target))


def test_a_metric_that_leaves_torch_is_compared_with_itself_in_one_shape():
    def spread(output, target):
        return float(np.abs(np.asarray(output) - np.asarray(target)).mean())

    def careful(output, target):
        return float(np.abs(np.asarray(output).ravel() - np.asarray(target).ravel()).mean())

    def of_classes(output, target):  # is not meant for (N, 1), but does not mix shapes either
        return (output.argmax(1) == target).float().mean()

    assert "would broadcast" in told(spread, rows(N, 1), rows(N), "call_function")
    call(careful, rows(N, 1), rows(N), "call_function")
    call(of_classes, rows(N, 1), torch.zeros(N), "call_function")


# --- in a training --------------------------------------------------------------------------------

REGRESSION = """
name: regression
seed: 3
model: {type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 1}}
data_loader:
  type: SyntheticDataLoader
  args: {n_samples: 24, shape: [1, 1, 5], n_classes: 3, batch_size: 4, validation_split: 4}
optimizer: {type: SGD, args: {lr: 0.1}}
loss: mse_loss
trainer: {epochs: 2, tensorboard: false, progress: false, verbosity: 0}
"""


def regression(*overrides: str, column: bool = False, **how: Any) -> Any:
    made = make(*overrides, text=REGRESSION, **how)
    dataset = made.train_loader.dataset  # that of the validation too
    targets = dataset.targets.float()
    dataset.targets = targets[:, None] if column else targets
    return made


NO_VALIDATION = "data_loader.args.validation_split=0"


class OwnStep(Trainer):
    """Computes its loss itself."""

    n_calls = 0

    def train_step(self, batch):
        self.n_calls += 1
        inputs, target = batch
        loss = ((self.model(inputs) - target) ** 2).mean()
        self.backward(loss)
        self.update()
        return {"loss": loss}


class OwnLosses(Trainer):
    def compute_losses(self, outputs, batch):
        return {"squares": F.mse_loss(outputs, batch[1])}


class Squeezed(Trainer):
    """The loss gets what it takes; the metrics see something else."""

    def compute_losses(self, outputs, batch):
        return super().compute_losses(outputs.squeeze(1), batch)


@pytest.mark.parametrize("trainer", [Trainer, OwnStep, OwnLosses])
@pytest.mark.parametrize("overrides", [(), (NO_VALIDATION,)], ids=["validation", "none"])
@pytest.mark.parametrize("look", [check, dry_run])
def test_it_is_told_before_training(look: Any, overrides: Any, trainer: type[BaseTrainer]):
    made = regression(*overrides, trainer=trainer)
    with pytest.raises((ConfigError, TrainingError), match=r"\(4, 1\) and target \(4,\) would br"):
        look(made)
    for each in (*made.losses.values(), *made.metrics.values()):
        assert each.agreement is None
    assert not {"train_step", "valid_step"} & set(vars(made))
    look(regression(*overrides, trainer=trainer, column=True))


def test_the_first_training_step_is_looked_at_before_its_update():
    made = regression(NO_VALIDATION)
    before = [p.detach().clone() for p in made.model.parameters()]
    with pytest.raises(ConfigError, match="would broadcast"):
        train_in(made)
    assert all(map(torch.equal, before, made.model.parameters()))


def test_a_step_that_is_tried_changes_nothing():
    calls: list[Any] = []  # of no trainer, whose own counters are put back

    class Counted(OwnStep):
        def train_step(self, batch):
            calls.append(self)
            return super().train_step(batch)

    tried, plain = (regression(NO_VALIDATION, column=True, trainer=Counted) for _ in range(2))
    check(tried)
    assert calls == [tried]
    assert tried.n_calls == 0
    values = [train_in(trainer)["train/loss"] for trainer in (tried, plain)]
    assert values[0] == values[1]
    assert all(map(torch.equal, tried.model.parameters(), plain.model.parameters()))


@pytest.mark.parametrize("kind", [SampleMean, WholeEpoch])
def test_metrics_are_held_to_it_as_losses_are(kind: Any):
    def absolute_error(output, target):
        return np.abs(output.cpu().numpy() - target.cpu().numpy()).mean()

    wrong, right = regression(trainer=Squeezed), regression(column=True)
    for made in (wrong, right):
        made.valid_metrics["error"] = kind("error", absolute_error)
    with pytest.raises(ConfigError, match=r"test_shape_agreement.py:\d+: output \(4, 1\) and targ"):
        check(wrong)
    check(right)


@pytest.mark.parametrize("is_numpy", [True, False])
def test_a_metric_that_compares_at_the_end_is_held_to_it(is_numpy: bool):
    class Gathered:
        def reset(self):
            self.outputs, self.targets = [], []

        def update(self, output, target):
            self.outputs.append(output.numpy() if is_numpy else output)
            self.targets.append(target.numpy() if is_numpy else target)

        def compute(self):
            join = np.concatenate if is_numpy else torch.cat
            return abs(join(self.outputs) - join(self.targets)).mean()

    wrong, right = regression(trainer=Squeezed), regression(column=True)
    for made in (wrong, right):
        made.valid_metrics["error"] = ObjectMetric("error", Gathered())
    with pytest.raises(ConfigError, match=r"test_shape_agreement.py:\d+: output \(4, 1\) and targ"):
        check(wrong)
    check(right)


def test_a_metric_of_a_loss_is_held_to_it():
    with pytest.raises(ConfigError, match=r"metrics\.0: .*would broadcast"):
        check(regression("metrics=[{type: MeanLoss, args: {loss: l1_loss}}]", trainer=Squeezed))


def test_only_the_parts_that_the_config_names_are_compared():
    agreement = ShapeAgreement()
    output, target = {"a": rows(N, 1), "b": rows(N)}, {"x": rows(N, 1), "y": rows(N)}
    agreement.call("", lambda o, t: (o["a"] - t["x"]) + (o["b"] - t["y"])[:, None], output, target)
    with pytest.raises(ConfigError):
        agreement.call("", lambda o, t: o["a"] - t["y"], output, target)


def test_the_names_of_functions_are_those_of_torch():
    from base.training import shape_agreement

    for name in shape_agreement._LOSSES:
        assert inspect.isroutine(getattr(F, name))


def test_a_compiled_loss_runs_as_it_is_written():
    @torch.compile(backend="eager", fullgraph=True)
    def squares(output, target):
        return ((output - target) ** 2).mean()

    assert squares(rows(N), rows(N)) == 0  # which loads the compiler
    assert "would broadcast" in told(squares, rows(N, 1), rows(N))
    assert call(squares, rows(N, 1), rows(N, 1)) == 0
