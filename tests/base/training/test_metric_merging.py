"""Metrics of 1 to 4 processes equal those of one process that reads all samples."""

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

from base.errors import TrainingError
from base.training.metric_values import interleave
from base.training.metrics import (
    Metric,
    ObjectMetric,
    WholeEpoch,
    build_metrics,
    cannot_merge,
)

SIZES = [1, 2, 3, 4]
RANDOM = torch.Generator().manual_seed(0)
N = 31
SCORES, CLASSES = torch.randn(N, 4, generator=RANDOM), torch.randint(0, 4, (N,), generator=RANDOM)
SHARES = SCORES.softmax(1)
IGNORED = torch.where(torch.rand(N, generator=RANDOM) < 0.3, 2, CLASSES)
LABELS = torch.rand(N, 4, generator=RANDOM).round()
ONE, YES = torch.randn(N, generator=RANDOM), torch.randint(0, 2, (N,), generator=RANDOM)
MASKS = torch.randn(N, 4, 2, 3, generator=RANDOM), torch.randint(0, 4, (N, 2, 3), generator=RANDOM)


def batch_sizes(size: int) -> Iterable[int]:
    """Return all kinds of uneven ends for two processes, and a few for the others."""
    return range(1, 10) if size == 2 else (1, 5, 9)


def build(name: str, over: str = "batch", **args) -> Metric:
    section = {"type": name, "args": args, "name": name, "over": over}
    return build_metrics([section])[name]


def batches(n: int, batch_size: int) -> list[torch.Tensor]:
    """Return the positions of the samples of each batch; the last one may be smaller."""
    return list(torch.arange(n).split(batch_size))


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def feed(ranks: list[Metric], output, target, positions: list[torch.Tensor]) -> None:
    """Update the metric of each rank with its samples of each batch."""
    for batch in positions:
        for rank, metric in enumerate(ranks):
            own = batch[rank :: len(ranks)]
            if len(own):
                metric.update(rows(output, own), rows(target, own), None, len(own))
            metric.end_batch()


def rows(value, positions: torch.Tensor):
    if isinstance(value, torch.Tensor):
        return value[positions]
    if isinstance(value, np.ndarray):
        return value[positions.numpy()]
    if isinstance(value, dict):
        return {key: rows(item, positions) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and isinstance(value[0], str):
        return type(value)(value[place] for place in positions.tolist())
    return type(value)(rows(item, positions) for item in value)


def states_of(ranks: list[Metric]) -> list:
    return [metric.state_dict() for metric in ranks]


def of_all(make: Callable[[], Metric], size: int, output, target, batch_size: int):
    ranks = [make() for _ in range(size)]
    feed(ranks, output, target, batches(len(target), batch_size))
    return ranks[0].whole(states_of(ranks)).compute()


def assert_equal(found, expected, rel: float = 1e-11) -> None:
    if isinstance(expected, torch.Tensor):
        assert found.equal(expected)
    else:
        assert found == pytest.approx(expected, rel=rel, abs=1e-12, nan_ok=True)
        if isinstance(expected, dict):
            assert list(found) == list(expected)


SHIPPED = {
    "accuracy": ("accuracy", {}, SCORES, CLASSES),
    "accuracy, ignored": ("accuracy", {"ignore_index": 2}, SCORES, IGNORED),
    "accuracy, masks": ("accuracy", {}, *MASKS),
    "top-k": ("top_k_accuracy", {"k": 2}, SCORES, CLASSES),
    "top-k of pytorch-template": ("top_k_acc", {"k": 2}, SCORES, CLASSES),
    "confusion": ("ConfusionMatrix", {}, SCORES, CLASSES),
    "confusion, ignored": ("ConfusionMatrix", {"ignore_index": 2}, SCORES, IGNORED),
    "confusion, one score": ("ConfusionMatrix", {"threshold": 0}, ONE, YES),
    "precision": ("Precision", {}, SCORES, CLASSES),
    "recall": ("Recall", {}, SCORES, CLASSES),
    "F1": ("F1", {}, SCORES, CLASSES),
    "F1, labels": ("F1", {"threshold": 0}, SCORES, LABELS),
    "IoU": ("IoU", {}, *MASKS),
    "Dice": ("Dice", {"ignore_index": 0}, *MASKS),
    "MAE": ("MAE", {}, SCORES, LABELS),
    "RMSE": ("RMSE", {}, SCORES, LABELS),
    "R2": ("R2", {}, SCORES + 1e4, LABELS + 1e4),
    "R2, one number": ("R2", {}, ONE, ONE + YES),
    "R2, equal targets": ("R2", {}, ONE, torch.full((N,), 0.1)),
    "R2, nearly equal targets": ("R2", {}, ONE.double(), 1 + 1e-6 * ONE.double()),
    "AUROC": ("AUROC", {}, SCORES, CLASSES),
    "AUROC, ties": ("AUROC", {}, ONE.round(), YES),
    "AUROC, labels": ("AUROC", {"ignore_index": 0}, SCORES, LABELS),
    "average precision": ("AveragePrecision", {}, SCORES, CLASSES),
    "mean loss": ("MeanLoss", {"loss": "cross_entropy"}, SCORES, CLASSES),
    "mean loss, ignored": ("MeanLoss", {"args": {"ignore_index": 2}}, SCORES, IGNORED),
    "mean loss, class weights": (
        "MeanLoss",
        {"loss": "cross_entropy", "args": {"weight": [1.0, 2.0, 3.0, 0.5]}},
        SCORES,
        CLASSES,
    ),
    "sum of losses": ("MeanLoss", {"args": {"reduction": "sum"}}, SCORES.double(), CLASSES),
}


# The mean of a batch is in single precision; squares of nearly equal numbers lose digits.
PRECISION = {case: 1e-6 for case in SHIPPED if "mean loss" in case}
PRECISION["R2, nearly equal targets"] = 1e-9


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", SHIPPED)
def test_a_shipped_metric_of_several_processes_equals_that_of_one(case, size):
    name, args, output, target = SHIPPED[case]
    for batch_size in batch_sizes(size):
        n = N - batch_size  # several kinds of uneven ends
        one = build(name, **args)
        feed([one], output[:n], target[:n], batches(n, batch_size))
        found = of_all(lambda: build(name, **args), size, output[:n], target[:n], batch_size)
        assert_equal(found, one.compute(), PRECISION.get(case, 1e-11))


def test_every_shipped_metric_is_compared():
    import model.metric as shipped

    metrics = {
        name
        for name, it in vars(shipped).items()
        if getattr(it, "__module__", "") == shipped.__name__
        and not name.startswith("_")
        and (hasattr(it, "compute") or hasattr(it, "counts"))
    }
    assert metrics == {name for name, *_ in SHIPPED.values()}


# --- Over the whole epoch -------------------------------------------------------------------------


def recorder(seen: list) -> Callable:
    def record(output, target):
        seen.append((output, target))
        return 0.0

    return record


NESTED = {
    "tensors": (SCORES, CLASSES),
    "dict": ({"a": SCORES, "b": {"c": ONE}}, CLASSES),
    "tuple": ((SCORES, [ONE, CLASSES]), CLASSES),
    "names": (SCORES, [f"s{number}" for number in range(N)]),
    "names in a tuple": (SCORES, tuple(f"s{number}" for number in range(N))),
    "arrays": (SCORES.numpy(), CLASSES.numpy()),
}


def are_same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.equal(other) and one.dtype == other.dtype
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return list(one) == list(other) and all(are_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(map(are_same, one, other))
    return one == other


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", NESTED)
def test_over_epoch_the_function_receives_what_one_process_passes(case, size):
    output, target = NESTED[case]
    for batch_size in batch_sizes(size):
        seen: list = []
        one = WholeEpoch("x", recorder(seen))
        feed([one], output, target, batches(N, batch_size))
        one.compute()
        of_all(lambda: WholeEpoch("x", recorder(seen)), size, output, target, batch_size)  # noqa: B023
        assert are_same(seen[1], seen[0])


@pytest.mark.parametrize("size", SIZES)
def test_over_epoch_batches_may_differ_in_size_and_samples_in_rows(size):
    positions = list(torch.arange(N).split([9, 1, 5, 2, 8, 1, 1, 4]))
    words = torch.arange(3 * N).view(N, 3)  # three rows a sample
    seen: list = []
    ranks = [WholeEpoch("x", recorder(seen)) for _ in range(size)]
    for batch in positions:
        for rank, metric in enumerate(ranks):
            own = batch[rank::size]
            if len(own):
                metric.update(words[own].flatten(), ONE[own], None, len(own))
            metric.end_batch()
    ranks[0].whole(states_of(ranks)).compute()
    assert seen[0][0].equal(words.flatten())
    assert seen[0][1].equal(ONE)


def test_over_epoch_the_items_of_a_batch_are_put_in_order_too():
    seen: list = []

    def record(output, target, batch, ids):
        seen.append((output, batch, ids))
        return 0.0

    rules = {"inputs": None, "target": "y", "size": None, "ids": True, "weight": None}
    ranks = [WholeEpoch("x", record) for _ in range(2)]
    for positions in batches(7, 3):
        for rank, metric in enumerate(ranks):
            metric.rules = rules
            own = positions[rank::2]
            batch = {"y": CLASSES[own], "ids": [f"s{n}" for n in own.tolist()], "unit": "mm"}
            if len(own):
                metric.update(SCORES[own], batch["y"], batch, len(own))
            metric.end_batch()
    ranks[0].whole(states_of(ranks)).compute()
    output, batch, ids = seen[0]
    assert output.equal(SCORES[:7])
    assert batch["y"].equal(CLASSES[:7])
    assert ids == batch["ids"] == [f"s{n}" for n in range(7)]
    assert len(batch["unit"]) == 3  # one for each batch, as in one process


@pytest.mark.parametrize("size", SIZES)
def test_over_epoch_a_rank_may_pass_a_batch_in_several_parts_or_none(size):
    seen: list = []
    ranks = [WholeEpoch("x", recorder(seen)) for _ in range(size)]
    numbers = torch.arange(N)
    for batch in numbers.split(7):
        for rank, metric in enumerate(ranks):
            for part in batch[rank::size].split(2):  # as `memory.micro_batch` does
                if len(part):
                    metric.update(part, ONE[part], None, len(part))
            metric.end_batch()
    ranks[0].whole(states_of(ranks)).compute()
    assert seen[0][0].equal(numbers)


def test_rows_that_do_not_divide_stay_together():
    boxes = [torch.tensor([0, 0, 1]), torch.tensor([2])]
    found = interleave([{"boxes": boxes[0], "n": torch.tensor([2, 1])},
                        {"boxes": boxes[1], "n": torch.tensor([1])}], [2, 1])  # fmt: skip
    assert found["boxes"].tolist() == [0, 0, 1, 2]
    assert found["n"].tolist() == [2, 1, 1]  # in the same order as the boxes


def test_items_of_a_list_may_be_tensors_of_different_lengths():
    parts = [[torch.zeros(0), torch.full((3,), 2.0)], [torch.full((1,), 1.0)]]
    assert [len(item) for item in interleave(parts, [2, 1])] == [0, 1, 3]


def test_one_value_for_a_batch_that_differs_between_processes_is_refused():
    def output_mean(output, target):
        return output.mean()

    ranks = [WholeEpoch("score", output_mean) for _ in range(2)]
    for rank, metric in enumerate(ranks):
        metric.update(torch.tensor(float(rank)), CLASSES[:2], None, 2)
        metric.end_batch()
    with pytest.raises(TrainingError, match=r"metric 'score' cannot be merged: .*each sample"):
        ranks[0].whole(states_of(ranks))


def test_ranks_that_measured_different_batches_are_reported():
    ranks = [WholeEpoch("score", recorder([])) for _ in range(2)]
    feed(ranks, SCORES, CLASSES, batches(8, 4))
    ranks[0].update(SCORES[:2], CLASSES[:2], None, 2)
    ranks[0].end_batch()
    with pytest.raises(TrainingError, match="measured 3, 2 batches, in rank order: call `measure`"):
        ranks[0].whole(states_of(ranks))


# --- Objects --------------------------------------------------------------------------------------


class Mistakes:
    """Keeps arrays and counters, as people's own metrics do."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.by_class = np.zeros(4)
        self.found: Counter = Counter()

    def update(self, output, target) -> None:
        predicted = output.argmax(1)
        self.by_class += np.bincount(target[predicted != target].numpy(), minlength=4)
        self.found.update(predicted.tolist())

    def merge(self, states) -> None:
        self.by_class = sum(state["by_class"] for state in states)
        self.found = sum((state["found"] for state in states), Counter())

    def compute(self):
        return {"worst": self.by_class.max(), "most": self.found.most_common(1)[0][1]}


class Unmerged:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.hits = 0

    def update(self, output, target) -> None:
        self.hits += 1

    def compute(self):
        return self.hits


class Declared:
    """Declares its reductions as torchmetrics does, and would wait for the others by itself."""

    def __init__(self) -> None:
        self._to_sync = self.sync_on_compute = True
        self._reductions = {
            "hits": lambda stacked: stacked.sum(dim=0),
            "largest": torch.max,
            "scores": dim_zero_cat,
            "kept": None,
            "scale": dim_zero_mean,
        }
        self.reset()

    def reset(self) -> None:
        self._update_count, self._computed = 0, None
        self.hits, self.largest = torch.zeros(4), torch.tensor(-math.inf)
        self.scores, self.kept, self.scale = [], [], torch.tensor(0.0)

    def update(self, output, target) -> None:
        self._update_count += 1
        self.hits = self.hits + torch.bincount(target, minlength=4)
        self.largest = torch.maximum(self.largest, output.max())
        self.scores.append(output)
        self.kept.append(target)
        self.scale = torch.tensor(2.0)

    def compute(self):
        assert not self._to_sync, "it waits for the others, which do not compute"
        total = torch.cat(self.scores).double().sum() * torch.cat(self.kept).sum()
        return torch.stack([*self.hits, self.largest, total, self.scale, torch.tensor(1.0)])


def dim_zero_cat(x):
    return torch.cat(x)


def dim_zero_mean(x):
    return x.mean(0)


OBJECTS = {"Mistakes": Mistakes, "Declared": Declared}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", OBJECTS)
def test_an_object_of_several_processes_equals_that_of_one(kind, size):
    def make() -> Metric:
        return ObjectMetric("x", OBJECTS[kind]())

    for batch_size in batch_sizes(size):
        one = make()
        feed([one], SCORES, CLASSES, batches(N, batch_size))
        assert_equal(of_all(make, size, SCORES, CLASSES, batch_size), one.compute())


def test_a_metric_that_cannot_be_merged_is_reported_with_a_merge_to_write():
    known = {"Unmerged": Unmerged, "Mistakes": Mistakes, "score": recorder([])}
    sections = [
        {"type": name, "args": {}, "name": f"my_{name}", "over": over}
        for name, over in [("Mistakes", "batch"), ("Unmerged", "batch"), ("score", "epoch")]
    ]

    def build(kind, section, *, where=""):
        named = known[section["type"]]
        return named() if isinstance(named, type) else named

    [problem] = cannot_merge(build_metrics(sections, build))
    assert problem.where == "metrics.1"
    assert problem.message.startswith("metric 'my_Unmerged': Unmerged has no `merge`, and each")
    assert len(problem.message.strip().splitlines()) == 5  # one line, a blank one, the method
    method = "\n".join(problem.message.splitlines()[2:])
    written = {}
    exec(compile("class Mended:\n" + method, "message", "exec"), written)
    mended = written["Mended"]()
    mended.merge([{"total": 1.5, "count": 2}, {"total": 2, "count": 3}])
    assert (mended.total, mended.count) == (3.5, 5)

    ranks = [ObjectMetric("x", Unmerged()) for _ in range(2)]
    feed(ranks, SCORES, CLASSES, batches(N, 8))
    with pytest.raises(TrainingError, match=r"metric 'x' cannot be computed: .*no `merge`"):
        ranks[0].whole(states_of(ranks)).compute()


def in_manner_of(torchmetrics) -> dict[str, tuple[Callable, torch.Tensor, torch.Tensor]]:
    kinds, numbers = torchmetrics.classification, torchmetrics.regression
    pair = lambda: torchmetrics.MetricCollection(  # noqa: E731
        [kinds.MulticlassRecall(4), kinds.MulticlassPrecision(4), kinds.MulticlassAUROC(4)]
    )
    wrapped = lambda: torchmetrics.ClasswiseWrapper(kinds.MulticlassF1Score(4, average=None))  # noqa: E731
    composed = lambda: kinds.MulticlassAccuracy(4) + 2 * kinds.MulticlassF1Score(4)  # noqa: E731
    return {
        "sums": (lambda: kinds.MulticlassF1Score(4), SCORES, CLASSES),
        "table": (lambda: kinds.MulticlassConfusionMatrix(4), SCORES, CLASSES),
        "lists": (lambda: kinds.MulticlassAUROC(4), SHARES, CLASSES),
        "no reduction": (numbers.PearsonCorrCoef, ONE, ONE + YES),
        "most": (torchmetrics.MaxMetric, ONE, YES),
        "mean": (lambda: torchmetrics.image.PeakSignalNoiseRatio(data_range=3.0), ONE, ONE + YES),
        "errors": (numbers.MeanSquaredError, ONE, ONE + YES),
        "ranks": (numbers.SpearmanCorrCoef, ONE, ONE + YES),
        "collection": (pair, SHARES, CLASSES),
        "wrapper": (wrapped, SCORES, CLASSES),
        "composition": (composed, SCORES, CLASSES),
    }


@pytest.mark.filterwarnings("ignore")  # of torchmetrics, about sample sizes
@pytest.mark.parametrize("size", SIZES)
def test_objects_of_torchmetrics_are_merged_by_their_reductions(size, monkeypatch):
    torchmetrics = pytest.importorskip("torchmetrics")
    waits = "torchmetrics.metric.jit_distributed_available"
    for name, (make, output, target) in in_manner_of(torchmetrics).items():
        for batch_size in (2, 5, 9):
            one = ObjectMetric(name, make())
            feed([one], output, target, batches(N, batch_size))
            expected = one.compute()
            monkeypatch.setattr(waits, lambda: True)  # a sync would now fail
            found = of_all(lambda: ObjectMetric(name, make()), size, output, target, batch_size)  # noqa: B023
            monkeypatch.undo()
            if isinstance(expected, torch.Tensor):
                assert found.equal(expected), name
            else:
                assert found == pytest.approx(expected, rel=1e-5), name


# --- Another number of processes after a resume ---------------------------------------------------

RESUMED = {
    **{name: (lambda it=it: build(it[0], **it[1]), it[2], it[3]) for name, it in SHIPPED.items()},
    "over epoch": (lambda: WholeEpoch("x", position_sum), SCORES, CLASSES),
    "Mistakes": (lambda: ObjectMetric("x", Mistakes()), SCORES, CLASSES),
    "Declared": (lambda: ObjectMetric("x", Declared()), SCORES, CLASSES),
}


def position_sum(output, target):
    """Depend on the order of the samples."""
    weight = torch.arange(len(output), dtype=torch.double)
    return (output.double().sum(1) * weight).sum() + (target * weight**2).sum()


@pytest.mark.parametrize("sizes", [(1, 2, 4, 1), (2, 2, 3, 2), (4, 1, 1, 3)], ids=str)
@pytest.mark.parametrize("case", RESUMED)
def test_an_epoch_goes_on_with_another_number_of_processes(case, sizes):
    make, output, target = RESUMED[case]
    rel = PRECISION.get(case, 1e-11)
    for batch_size in (1, 5):
        positions = batches(N, batch_size)
        one, ranks = make(), [make()]
        feed([one], output, target, positions)
        for number, size in enumerate(sizes):
            state = through_a_file(ranks[0].merged(states_of(ranks)))
            ranks = [make() for _ in range(size)]
            ranks[0].load_state_dict(state)
            first, last = (len(positions) * end // 4 for end in (number, number + 1))
            feed(ranks, output, target, positions[first:last])
        assert_equal(ranks[0].whole(states_of(ranks)).compute(), one.compute(), rel)
        if len(ranks) == 1:
            assert_equal(ranks[0].compute(), one.compute(), rel)
        for metric in ranks:
            metric.reset()
        feed(ranks, output, target, positions)  # the next epoch
        assert_equal(ranks[0].whole(states_of(ranks)).compute(), one.compute(), rel)


@pytest.mark.parametrize("case", RESUMED)
def test_a_merge_leaves_the_metric_as_it_is(case):
    make, output, target = RESUMED[case]
    ranks = [make() for _ in range(2)]
    feed(ranks, output, target, batches(20, 4))
    before = states_of(ranks)
    ranks[0].merged(states_of(ranks))
    ranks[0].whole(states_of(ranks)).compute()
    assert str(states_of(ranks)) == str(before)


def test_a_whole_epoch_of_an_earlier_version_goes_on_in_several_processes():
    one, old = WholeEpoch("x", position_sum), WholeEpoch("x", position_sum)
    feed([one], SCORES, CLASSES, batches(N, 8))
    feed([old], SCORES, CLASSES, batches(N, 8)[:3])
    state = old.state_dict()
    del state["sizes"]
    ranks = [WholeEpoch("x", position_sum) for _ in range(2)]
    ranks[0].load_state_dict(state)
    feed(ranks, SCORES, CLASSES, batches(N, 8)[3:])
    assert ranks[0].whole(states_of(ranks)).compute() == one.compute()
