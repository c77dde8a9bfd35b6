"""Running means: right, exact over a resume, and never a wait inside a step."""

import io
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logger.meters import TERM, Meters

BATCH_SIZES = [128, 128, 7, 128, 1, 33]


@pytest.fixture(params=["numbers", "tensors"], autouse=True)
def sums(request, monkeypatch):
    """Sum as on the CPU, and as on an accelerator, where no number is at hand."""
    if request.param == "tensors":
        off = property(lambda meters: False, lambda meters, is_on_cpu: None)
        monkeypatch.setattr(Meters, "_is_on_cpu", off, raising=False)
    return request.param


def losses(seed: int, count: int = len(BATCH_SIZES)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, generator=generator).exp())


def test_the_mean_is_weighted_by_the_samples():
    meters = Meters()
    for loss, n in zip(losses(0), BATCH_SIZES, strict=True):
        meters.update({"tensor": loss, "number": float(loss)}, n)
    exact = math.fsum(float(x) * n for x, n in zip(losses(0), BATCH_SIZES, strict=True))
    exact /= sum(BATCH_SIZES)
    assert meters.compute() == pytest.approx({"tensor": exact, "number": exact}, rel=1e-14)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.integers(1, 512)), min_size=1))
def test_tensors_numbers_and_plain_sums_agree(pairs):
    meters = Meters()
    for value, n in pairs:
        meters.update({"tensor": torch.tensor(value), "number": value}, n)
    plain = sum(value * n for value, n in pairs) / sum(n for _, n in pairs)
    assert meters.compute() == {"tensor": plain, "number": plain}


def test_a_million_small_values_keep_their_digits():
    meters = Meters()
    meters.update({"loss": torch.tensor(1e8)})
    for _ in range(1000):
        meters.update({"loss": torch.tensor(0.25)})
    assert meters.compute()["loss"] * 1001 == pytest.approx(1e8 + 250, rel=1e-15)


@pytest.mark.parametrize("cut", range(len(BATCH_SIZES) + 1))
def test_a_resumed_mean_is_equal_bit_for_bit(cut):
    def feed(meters: Meters, first: int, last: int) -> None:
        for k in range(first, last):
            loss = losses(1)[k]
            meters.update({"loss": loss, "number": float(loss) / 3}, BATCH_SIZES[k])

    unbroken, before, after = Meters(), Meters(), Meters()
    feed(unbroken, 0, len(BATCH_SIZES))
    feed(before, 0, cut)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))
    feed(after, cut, len(BATCH_SIZES))
    assert after.compute() == unbroken.compute()
    assert list(after.compute()) == list(unbroken.compute())


def test_a_saved_state_does_not_follow_later_updates(sums):
    meters = Meters()
    meters.update({"loss": torch.tensor(1.0)})
    state = meters.state_dict()
    meters.update({"loss": torch.tensor(3.0)})
    meters.load_state_dict(state)
    meters.update({"loss": torch.tensor(2.0)})
    assert meters.compute() == {"loss": 1.5}
    assert state["tensors"]["loss"] == 1.0 if sums == "tensors" else state["numbers"]["loss"] == 1.0


def test_update_never_waits_and_compute_does(monkeypatch, sums):
    if sums == "numbers":
        pytest.skip("on the CPU nothing is waited for")

    def refuse(self, *_):
        raise AssertionError("a wait for the device")

    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    meters = Meters()
    for loss in torch.ones(3).unbind():
        meters.update({"loss": loss, "one": loss.reshape(1, 1), "half": loss.half()}, n=4)
    meters.load_state_dict(meters.state_dict())
    with pytest.raises(AssertionError, match="wait"):
        meters.compute()


def test_the_graph_is_let_go():
    weight = torch.ones(3, requires_grad=True)
    meters = Meters()
    for _ in range(2):
        meters.update({"loss": (weight * 2).sum(), "again": (weight * 2).sum().reshape(1)})
    assert not any(total.requires_grad for total in meters.state_dict()["tensors"].values())


def test_a_value_written_over_later_was_already_counted():
    meters, reused = Meters(), torch.tensor(1.0)  # as the outputs of a CUDA graph are
    meters.update({"loss": reused})
    reused.fill_(3.0)
    meters.update({"loss": reused})
    assert meters.compute() == {"loss": 2.0}


def test_sums_begun_in_inference_mode_go_on_outside():
    meters, loaded = Meters(), Meters()
    with torch.inference_mode():
        meters.update({"loss": torch.tensor(1.0)})
        state = meters.state_dict()
        loaded.load_state_dict(state)
    for each in (meters, loaded):
        each.update({"loss": torch.tensor(2.0)})
        assert each.compute() == {"loss": 1.5}


def test_names_may_come_late_and_each_has_its_own_count():
    meters = Meters()
    meters.update({"loss": torch.tensor(1.0)}, 10)
    meters.update({"loss": 3.0, "penalty": torch.tensor(5, dtype=torch.int64)}, 10)
    assert meters.compute() == {"loss": 2.0, "penalty": 5.0}
    meters.reset()
    assert meters.compute() == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(value):
    meters = Meters()
    meters.update({"loss": torch.tensor(value)})
    meters.update({"loss": torch.tensor(1.0)})
    assert not math.isfinite(meters.compute()["loss"])


def test_more_than_one_number_is_refused_by_name():
    with pytest.raises(ValueError, match=r"train/loss: expected one number.* \(3,\)"):
        Meters().update({"train/loss": torch.zeros(3)})


@pytest.mark.gpu
def test_the_device_is_not_waited_for():
    meters = Meters()
    loss = torch.ones((), device="cuda")
    meters.update({"loss": loss})
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            meters.update({"loss": loss, "late": loss, "one": loss.reshape(1), "number": 1.0}, 2)
        state = meters.state_dict()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    moved = Meters()
    moved.load_state_dict({**state, "tensors": {k: t.cpu() for k, t in state["tensors"].items()}})
    for each in (meters, moved):
        each.update({"loss": 3 * loss, "late": torch.tensor(1.0)}, 7)
    assert moved.compute() == meters.compute()
    assert moved.state_dict()["tensors"]["late"].device.type == "cpu"
    assert meters.state_dict()["tensors"]["late"].device.type == "cuda"


# --- Several processes ----------------------------------------------------------------------------


def steps(generator: torch.Generator, n: int) -> list[tuple[dict, float | torch.Tensor | None]]:
    """Return values with their denominators: numbers, tensors, terms, a sum, a late name."""
    found = []
    for step in range(n):
        loss, count = torch.rand(2, generator=generator).double()
        found.append(({"loss": loss, "number": float(loss)}, step + 1))
        found.append(({f"total{TERM}a": loss, "weighted": loss}, count))
        found.append(({f"total{TERM}b": 2 * loss}, step + 1))
        found.append(({"sum": loss}, None))
        if step > 3:
            found.append(({"late": float(loss)}, 1))
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_means_of_several_processes_equal_those_of_one(size):
    one, ranks = Meters(), [Meters() for _ in range(size)]
    for number, (values, count) in enumerate(steps(torch.Generator().manual_seed(0), 11)):
        for name, value in values.items():
            one.add(name, value, count)
            ranks[(number // 3) % size].add(name, value, count)
    file = io.BytesIO()
    torch.save([meters.state_dict() for meters in ranks], file)
    file.seek(0)
    whole = Meters("cpu")
    whole.load_state_dict(Meters.merged(torch.load(file, weights_only=True)))
    assert whole.compute() == pytest.approx(one.compute(), rel=1e-14)
    assert {*whole.compute()} == {"loss", "number", "total", "weighted", "sum", "late"}


def test_names_keep_the_order_of_one_process():
    first, second, third = Meters(), Meters(), Meters()
    first.update({"loss": 1.0, "accuracy": 0.5})
    second.update({"loss": 2.0, "penalty": 3.0, "accuracy": 0.0, "norm": 1.0})
    states = [meters.state_dict() for meters in (third, first, second)]
    whole = Meters()
    whole.load_state_dict(Meters.merged(states))
    assert list(whole.compute().items()) == [
        ("loss", 1.5), ("penalty", 3.0), ("accuracy", 0.25), ("norm", 1.0)
    ]  # fmt: skip
    assert first.compute() == {"loss": 1.0, "accuracy": 0.5}
    assert third.compute() == {}


def test_an_epoch_goes_on_with_another_number_of_processes():
    one, ranks = Meters(), [Meters()]
    everything = steps(torch.Generator().manual_seed(1), 12)
    for number, (values, count) in enumerate(everything):
        if number % 10 == 9:
            state = Meters.merged([meters.state_dict() for meters in ranks])
            ranks = [Meters() for _ in range([2, 4, 1, 3, 2][number // 10])]
            ranks[0].load_state_dict(state)
        for name, value in values.items():
            one.add(name, value, count)
            ranks[number % len(ranks)].add(name, value, count)
    whole = Meters()
    whole.load_state_dict(Meters.merged([meters.state_dict() for meters in ranks]))
    assert whole.compute() == pytest.approx(one.compute(), rel=1e-14)
