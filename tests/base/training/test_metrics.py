"""Every kind of metric behind one face: exact over unequal batches, resumable, named in errors."""

import copy
import io
import math
import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from base.errors import ConfigError, TrainingError
from base.training.metrics import ObjectMetric, SampleMean, WholeEpoch, build_metrics

torch.manual_seed(0)
OUTPUT, TARGET = torch.randn(23, 4), torch.randint(0, 4, (23,))
BATCHES = list(zip(OUTPUT.split([8, 8, 5, 2]), TARGET.split([8, 8, 5, 2]), strict=True))


def hit_rate(output, target):
    return (output.argmax(1) == target).float().mean()


def hit_rate_numpy(output, target):
    return (output.numpy().argmax(1) == target.numpy()).mean()


def hit_rate_python(output, target):
    return (output.argmax(1) == target).sum().item() / len(target)


def spread(output, target):
    return output.max() - output.min()


class Mistakes:
    """Counts with numpy, as people's own metrics do."""

    def __init__(self, n_classes: int = 4) -> None:
        self.n_classes = n_classes
        self.reset()

    def reset(self) -> None:
        self.by_class = np.zeros(self.n_classes)
        self.last = []

    def update(self, output, target) -> None:
        wrong = target[output.argmax(1) != target]
        self.by_class += np.bincount(wrong.numpy(), minlength=self.n_classes)
        self.last.append(len(wrong))

    def compute(self):
        return {str(index): n for index, n in enumerate(self.by_class)}


class Error(nn.Module):
    """A module that is called, as ``nn.L1Loss``."""

    def forward(self, output, target):
        return (output.argmax(1) - target).abs().float().mean()


class Halfway:
    def update(self, output, target) -> None: ...


KNOWN = {
    "hit_rate": hit_rate,
    "hit_rate_numpy": hit_rate_numpy,
    "hit_rate_python": hit_rate_python,
    "spread": spread,
    "Mistakes": Mistakes,
    "Error": Error,
    "Halfway": Halfway,
    "mistakes": Mistakes(),
}


def build(kind, section, *, where=""):
    """Stand in for base.names.construction."""
    named = KNOWN[section["type"]]
    return named(**section["args"]) if isinstance(named, type) else named


def metric(name: str, over: str = "batch", **args):
    sections = [{"type": name, "args": args, "name": name, "over": over}]
    return build_metrics(sections, build)[name]


@pytest.mark.parametrize("name", ["hit_rate", "hit_rate_numpy", "hit_rate_python", "Error"])
def test_a_function_is_averaged_over_samples_not_over_batches(name):
    measured = metric(name)
    assert isinstance(measured, SampleMean)
    for output, target in BATCHES:
        measured.update(output, target)
    function = KNOWN[name]() if isinstance(KNOWN[name], type) else KNOWN[name]
    assert measured.compute() == pytest.approx(float(function(OUTPUT, TARGET)), rel=1e-7)
    assert isinstance(measured.compute(), float)


def test_over_epoch_the_function_sees_everything_at_once():
    measured = metric("spread", over="epoch")
    assert isinstance(measured, WholeEpoch)
    for output, target in BATCHES:
        measured.update(output, target)
    assert measured.compute() == pytest.approx(spread(OUTPUT, TARGET).item())
    assert measured.compute() > max(spread(*batch).item() for batch in BATCHES) - 1e-9


def test_over_epoch_nested_outputs_are_joined_item_by_item():
    seen = {}

    def look(outputs, targets):
        seen.update(outputs=outputs, targets=targets)
        return 0

    measured = WholeEpoch("look", look)
    for output, target in BATCHES:
        names = [f"{value:.3f}" for value in output[:, 0].tolist()]
        measured.update({"a": output, "b": (output * 2, [target])}, names)
    measured.compute()
    assert seen["outputs"]["a"].equal(OUTPUT)
    assert seen["outputs"]["b"][0].equal(OUTPUT * 2)
    assert seen["outputs"]["b"][1][0].equal(TARGET)
    assert seen["targets"] == [f"{value:.3f}" for value in OUTPUT[:, 0].tolist()]


@pytest.mark.parametrize(
    ("name", "over"),
    [
        ("hit_rate", "batch"),
        ("hit_rate_numpy", "batch"),
        ("spread", "epoch"),
        ("Mistakes", "batch"),
        ("mistakes", "batch"),
    ],
)
def test_a_metric_cut_in_the_middle_of_an_epoch_goes_on_exactly(name, over):
    whole, cut, resumed = (copy.deepcopy(metric(name, over)) for _ in range(3))
    for output, target in BATCHES:
        whole.update(output, target)
    for output, target in BATCHES[:2]:
        cut.update(output, target)

    file = io.BytesIO()
    torch.save(cut.state_dict(), file)
    cut.update(*BATCHES[0])  # must not reach into the saved state
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for output, target in BATCHES[2:]:
        resumed.update(output, target)
    assert resumed.compute() == whole.compute()


@pytest.mark.parametrize("name", ["hit_rate", "hit_rate_python", "Mistakes"])
def test_reset_forgets_and_nothing_seen_is_not_a_number(name):
    measured = metric(name)
    assert math.isnan(measured.compute())
    measured.update(*BATCHES[0])
    first = measured.compute()
    measured.update(*BATCHES[1])
    measured.reset()
    assert math.isnan(measured.compute())
    measured.update(*BATCHES[0])
    assert measured.compute() == first


def test_a_sum_stays_a_tensor_until_it_is_asked_for_and_does_not_hold_the_graph():
    measured = metric("hit_rate")
    output = OUTPUT.clone().requires_grad_()
    seen = []
    SampleMean("x", lambda output, target: seen.append(output) or 0.0).update(output, TARGET)
    measured.update(output * 2, TARGET)
    assert not seen[0].requires_grad
    assert isinstance(measured.total, torch.Tensor)
    assert not measured.total.requires_grad


def test_a_sum_over_many_batches_keeps_its_digits():
    measured = SampleMean("x", lambda output, target: torch.tensor(1.0))
    target = torch.zeros(100_000)
    for _ in range(400):  # 40 million: beyond single precision
        measured.update(None, target)
    measured.update(None, torch.zeros(1))
    assert measured.total == 40_000_001


def test_a_sum_begun_in_inference_mode_can_go_on_outside():
    measured = metric("hit_rate")
    with torch.inference_mode():
        measured.update(*BATCHES[0])
    measured.update(*BATCHES[1])
    both = torch.cat([BATCHES[0][0], BATCHES[1][0]]), torch.cat([BATCHES[0][1], BATCHES[1][1]])
    assert measured.compute() == pytest.approx(hit_rate(*both).item())


def test_numpy_gets_numbers_that_it_knows_where_torch_refuses():
    measured = metric("hit_rate_numpy")
    measured.update(OUTPUT.bfloat16(), TARGET)  # numpy has no bfloat16
    expected = hit_rate(OUTPUT.bfloat16(), TARGET).item()
    assert measured.compute() == pytest.approx(expected)


@pytest.mark.gpu
def test_numpy_metrics_objects_and_sums_work_on_a_gpu():
    for name in ("hit_rate", "hit_rate_numpy"):
        measured, same = metric(name), metric(name)
        for output, target in BATCHES:
            measured.update(output.cuda(), target.cuda())
        state = measured.state_dict()
        same.load_state_dict(state)
        same.update(OUTPUT.cuda(), TARGET.cuda())
        assert measured.compute() == pytest.approx(hit_rate(OUTPUT, TARGET).item())
        assert same.compute() == pytest.approx(hit_rate(OUTPUT, TARGET).item())


def test_an_error_names_the_metric_and_what_it_was_given():
    def broken(output, target):
        raise RuntimeError("no such class")

    with pytest.raises(TrainingError) as raised:
        SampleMean("my_score", broken).update({"a": OUTPUT}, (TARGET, [1]))
    assert re.fullmatch(
        r"metric 'my_score' fails on output \{a: \(23, 4\)\} and target \(\(23,\), list\): "
        r"tests/base/training/test_metrics.py:\d+: RuntimeError: no such class",
        str(raised.value),
    )
    with pytest.raises(TrainingError, match=r"metric 'x' .*it returns shape \(23,\)"):
        SampleMean("x", lambda output, target: output.argmax(1) == target).update(OUTPUT, TARGET)

    late = WholeEpoch("auc", broken)
    late.update(OUTPUT, TARGET)
    with pytest.raises(TrainingError, match=r"metric 'auc' cannot be computed: .*no such class"):
        late.compute()


class Gives:
    def __init__(self, value) -> None:
        self.value = value

    def update(self, output, target) -> None: ...

    def reset(self) -> None: ...

    def compute(self):
        return self.value


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (3, 3.0),
        (np.float32(0.5), 0.5),
        (torch.tensor([0.5]), 0.5),
        ([1, 2], {"0": 1.0, "1": 2.0}),
        (np.array([1.0, 2.0]), {"0": 1.0, "1": 2.0}),
        ({1: torch.tensor(2), "b": np.float64(3)}, {"1": 2.0, "b": 3.0}),
    ],
)
def test_what_a_metric_computes_becomes_a_number_or_numbers_by_name(value, result):
    measured = ObjectMetric("x", Gives(value))
    measured.update(OUTPUT, TARGET)
    assert measured.compute() == result


def test_a_table_stays_a_table_and_more_dimensions_are_refused():
    measured = ObjectMetric("x", Gives(np.eye(3)))
    measured.update(OUTPUT, TARGET)
    assert measured.compute().equal(torch.eye(3, dtype=torch.double))
    measured = ObjectMetric("x", Gives(torch.zeros(2, 2, 2)))
    measured.update(OUTPUT, TARGET)
    with pytest.raises(TrainingError, match=r"metric 'x' .*\(2, 2, 2\)"):
        measured.compute()


def test_faults_in_the_list_are_told_together():
    sections = [
        {"type": name, "args": {}, "name": as_name, "over": "batch"}
        for name, as_name in [
            ("hit_rate", "a"),
            ("Error", "a"),
            ("Halfway", "b"),
            ("hit_rate", "loss"),
        ]
    ]
    with pytest.raises(ConfigError) as raised:
        build_metrics(sections, build)
    assert [str(problem) for problem in raised.value.problems] == [
        "metrics.1.name: 'a' is taken by another metric",
        "metrics.2: Halfway is not a metric: it has no compute() and cannot be called",
        "metrics.3.name: 'loss' is the name of the loss; choose another",
    ]


class FakeTorchMetric(nn.Module):
    """Keeps its state as torchmetrics does: in plain attributes that state_dict leaves out."""

    full_state_update: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self._defaults = {"hits": torch.tensor(0), "values": []}
        self._reductions = {"hits": torch.sum, "values": None}
        self.update = self._counted(self.update)
        self.reset()

    def _counted(self, update):
        def counted(*args):
            self._update_count += 1
            update(*args)

        return counted

    def reset(self) -> None:
        self._update_count, self.hits, self.values = 0, self._defaults["hits"].clone(), []

    def update(self, output, target) -> None:
        self.hits = self.hits + (output.argmax(1) == target).sum()
        self.values.append(output[:, 0])

    def compute(self):
        return self.hits + torch.cat(self.values).sum() * self._update_count


def test_objects_in_the_manner_of_torchmetrics_are_resumed_too():
    whole, cut, resumed = (ObjectMetric("x", FakeTorchMetric()) for _ in range(3))
    for output, target in BATCHES:
        whole.update(output, target)
    for output, target in BATCHES[:2]:
        cut.update(output, target)
    file = io.BytesIO()
    torch.save(cut.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for output, target in BATCHES[2:]:
        resumed.update(output, target)
    assert resumed.compute() == whole.compute()


def test_torchmetrics_own_objects_work_and_resume():
    torchmetrics = pytest.importorskip("torchmetrics")
    whole, cut, resumed = (
        ObjectMetric("f1", torchmetrics.F1Score("multiclass", num_classes=4, average="macro"))
        for _ in range(3)
    )
    for output, target in BATCHES:
        whole.update(output, target)
    cut.update(*BATCHES[0])
    resumed.load_state_dict(cut.state_dict())
    for output, target in BATCHES[1:]:
        resumed.update(output, target)
    assert resumed.compute() == whole.compute()
