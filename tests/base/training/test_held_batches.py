"""Metrics that count by sample hold small batches, and give what each batch by itself gives."""

import copy
import functools

import pytest
import torch

from base import mean_of_counts
from base.errors import TrainingError
from base.training import metrics as metrics_module
from base.training.metrics import SampleMean, update_all
from model.metric import accuracy, top_k_acc, top_k_accuracy

SIZES = [8] * 20 + [5, 1, 8, 3]


def batches(kind, sizes=SIZES):
    """Return outputs and targets of batches of different sizes."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for size in sizes:
        output = torch.randn(size, 6, generator=generator)
        target = torch.randint(6, (size,), generator=generator)
        if kind == "ignored":
            target[::3] = 2
        if kind == "pixels":
            output = torch.randn(size, 6, 4, 5, generator=generator)
            target = torch.randint(6, (size, 4, 5), generator=generator)
        if kind == "probabilities":
            target = torch.rand(size, 6, generator=generator)
        if kind == "binary":
            output, target = output[:, :1], target % 2
        if kind == "half":
            output = output.bfloat16()
        found.append((output, target))
    return found


CASES = {
    "classes": (accuracy, "classes"),
    "bfloat16": (accuracy, "half"),
    "ignored": (functools.partial(accuracy, ignore_index=2), "ignored"),
    "pixels": (accuracy, "pixels"),
    "probabilities": (accuracy, "probabilities"),
    "binary": (functools.partial(accuracy, threshold=0.0), "binary"),
    "top 3": (top_k_accuracy, "classes"),
    "top 2, ignored": (functools.partial(top_k_acc, k=2, ignore_index=2), "ignored"),
    "top 2, pixels": (functools.partial(top_k_accuracy, k=2), "pixels"),
}


def one_at_a_time(function, pairs):
    metric = SampleMean("accuracy", function)
    for output, target in pairs:
        metric.update(output, target)
    return metric


def held(function, pairs):
    metric = SampleMean("accuracy", function)
    for output, target in pairs:
        update_all({"accuracy": metric}, output, target, None, len(target))
    return metric


@pytest.fixture
def rows(monkeypatch):
    """The number of samples that each call of a function receives."""
    found, real = [], SampleMean._value

    def value(self, args, keywords):
        found.append(len(args[0]))
        return real(self, args, keywords)

    monkeypatch.setattr(SampleMean, "_value", value)
    return found


@pytest.mark.parametrize("case", CASES)
def test_held_batches_count_as_each_by_itself(case, rows):
    function, kind = CASES[case]
    pairs = batches(kind)
    metric = held(function, pairs)
    assert rows == [16 * 8]  # and 8 batches wait
    expected = one_at_a_time(function, pairs)
    assert metric.compute() == expected.compute()
    state, other = metric.state_dict(), expected.state_dict()
    assert state.keys() == other.keys()
    assert (float(state["total"]), int(state["n_samples"])) == (
        float(other["total"]),
        int(other["n_samples"]),
    )


@pytest.mark.parametrize("cut", [1, 7, 16, 23])
def test_a_checkpoint_holds_what_is_not_counted_yet(cut):
    pairs = batches("classes")
    first = held(accuracy, pairs[:cut])
    second = SampleMean("accuracy", accuracy)
    update_all({"": second}, *pairs[0], None, 8)  # dropped when the state is loaded
    second.load_state_dict(first.state_dict())
    for output, target in pairs[cut:]:
        update_all({"accuracy": second}, output, target, None, len(target))
    assert second.compute() == one_at_a_time(accuracy, pairs).compute()


def test_a_state_keeps_no_copies_of_batches():
    state = held(accuracy, batches("classes", [8] * 5)).state_dict()
    tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
    assert sum(each.numel() for each in tensors) == 1
    assert set(state) == {"name", "needs_cpu", "total", "n_samples"}


def test_reset_drops_what_is_held():
    metric = held(accuracy, batches("classes", [8] * 5))
    metric.reset()
    assert str(metric.compute()) == "nan"
    update_all({"": metric}, torch.eye(6), torch.arange(6), None, 6)
    assert metric.compute() == 1


def test_ranks_merge_what_they_hold():
    pairs = batches("classes")
    ranks = [held(accuracy, pairs[rank::2]) for rank in range(2)]
    whole = ranks[0].whole([each.state_dict() for each in ranks])
    assert whole.compute() == one_at_a_time(accuracy, pairs).compute()
    assert ranks[0].compute() == one_at_a_time(accuracy, pairs[::2]).compute()


def test_changes_in_place_after_the_step_do_not_count():
    pairs = batches("classes", [8] * 5)
    expected = one_at_a_time(accuracy, pairs).compute()
    metric = held(accuracy, pairs)
    for output, target in pairs:  # as a loader does that fills one buffer again and again
        output.zero_()
        target.fill_(1)
    assert metric.compute() == expected


def test_several_metrics_share_one_copy():
    metrics = {"one": SampleMean("one", accuracy), "two": SampleMean("two", top_k_accuracy)}
    output, target = batches("classes", [8])[0]
    update_all(metrics, output.requires_grad_(), target, None, 8)
    (one,), (two,) = metrics["one"]._held, metrics["two"]._held
    assert one is two
    assert not one[0].requires_grad
    assert one[0].data_ptr() != output.data_ptr()
    assert one[1].data_ptr() != target.data_ptr()


def test_batches_of_different_shapes_are_not_joined(rows):
    pairs = batches("pixels", [8, 8])
    wide = [(output[..., :3], target[..., :3]) for output, target in batches("pixels", [4, 4])]
    metric = held(accuracy, [*pairs, *wide, pairs[0]])
    assert rows == [16, 8]
    found = metric.compute()
    assert rows == [16, 8, 8]
    assert found == one_at_a_time(accuracy, [*pairs, *wide, pairs[0]]).compute()


def test_large_outputs_are_counted_at_once(rows, monkeypatch):
    pairs = batches("classes", [8, 8, 8])
    monkeypatch.setattr(metrics_module, "HELD_BYTES", pairs[0][0].nbytes - 1)
    held(accuracy, pairs)
    assert rows == [8, 8, 8]


@mean_of_counts
def own(output, target):
    """A user's counts, which may depend on the whole batch."""
    return (output.argmax(1) == target).sum() // 2, 1


@pytest.mark.parametrize("function", [own, lambda output, target: output.mean()])
def test_functions_of_yours_get_one_batch_at_a_time(function, rows):
    held(function, batches("classes", [8, 8, 8]))
    assert rows == [8, 8, 8]


def test_an_error_in_held_batches_names_the_metric_and_their_shapes():
    metric = held(functools.partial(top_k_accuracy, k=9), batches("classes", [8, 8]))
    message = r"^metric 'accuracy' fails on output \(16, 6\).*k is 9.*6 classes"
    with pytest.raises(TrainingError, match=message):
        metric.compute()


def test_what_fails_is_not_lost_when_it_is_asked_for_again():
    metric = held(functools.partial(top_k_accuracy, k=9), batches("classes", [8, 8]))
    for _ in range(2):
        with pytest.raises(TrainingError, match="k is 9"):
            metric.compute()


def test_a_target_with_a_graph_does_not_keep_it():
    output, target = batches("probabilities", [8])[0]
    metric = held(accuracy, [(output, target.requires_grad_().softmax(1))])
    assert not metric._held[0][1].requires_grad
    copy.deepcopy(metric)


def test_a_subclass_sees_each_batch_at_once():
    class ErrorRate(SampleMean):
        def _compute(self):
            return 1 - self.total / self.n_samples

    pairs = batches("classes", [8] * 5)
    metric = ErrorRate("accuracy", accuracy)
    for output, target in pairs:
        update_all({"accuracy": metric}, output, target, None, len(target))
    assert metric.compute() == 1 - one_at_a_time(accuracy, pairs).compute()
