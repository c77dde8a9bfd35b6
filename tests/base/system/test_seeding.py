"""Seeds derived from names, and the random state kept, put back and set apart."""

import hashlib
import io
import random

import numpy as np
import pytest
import torch

from base.system.seeding import (
    capture_random_state,
    derive_generator,
    derive_seed,
    isolated_random_state,
    restore_random_state,
    seed_cpu_streams,
    seed_everything,
)


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), float(np.random.random()), random.random()


def test_a_derived_seed_is_the_first_63_bits_of_blake2b():
    digest = hashlib.blake2b(b"42/order/3", digest_size=8).hexdigest()
    assert derive_seed(42, "order", 3) == int(digest, 16) // 2 < 2**63


def test_every_part_of_the_name_changes_the_seed():
    names = [(s, p, e, i) for s in (0, 1) for p in ("a", "b") for e in (0, 1, 11) for i in (1, 11)]
    assert len({derive_seed(*name) for name in names}) == len(names)


def test_a_derived_generator_leaves_the_global_stream_alone():
    seed_everything(0)
    expected = draw()
    seed_everything(0)
    first = torch.rand(3, generator=derive_generator(1, "x"))
    assert draw() == expected
    assert torch.equal(first, torch.rand(3, generator=derive_generator(1, "x")))


def test_a_state_that_went_through_a_file_gives_the_same_numbers_again():
    draw()
    random.gauss(0, 1), np.random.standard_normal()  # both keep a second number for the next call
    file = io.BytesIO()
    torch.save(capture_random_state(), file)
    expected = [draw(), random.gauss(0, 1), np.random.standard_normal()]
    seed_everything(7)
    restore_random_state(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert [draw(), random.gauss(0, 1), np.random.standard_normal()] == expected


@pytest.mark.parametrize("seed", [0, 2**32 + 5, 2**63 - 1])
def test_equal_seeds_give_equal_draws(seed):
    seed_everything(seed)
    expected = draw()
    seed_cpu_streams(seed)
    assert draw() == expected


def test_an_isolated_block_is_seeded_and_leaves_no_trace():
    seed_everything(5)
    inside_expected = draw()
    seed_everything(1)
    outside_expected = draw()
    seed_everything(1)
    with pytest.raises(ZeroDivisionError), isolated_random_state(5):
        random.seed(1 / 0)
    with isolated_random_state(5):
        assert draw() == inside_expected
    assert draw() == outside_expected


def test_an_isolated_block_leaves_no_seed_waiting_for_cuda():
    if torch.cuda.is_initialized():
        pytest.skip("CUDA has started, so nothing waits")
    seed_everything(1)
    waiting = torch.cuda._lazy_seed_tracker.get_calls()
    with isolated_random_state(5):
        torch.rand(1)
    assert torch.cuda._lazy_seed_tracker.get_calls() == waiting != []


class Gpus:
    """Stands for the generators of several GPUs, of which the process uses one."""

    def __init__(self, monkeypatch, count, used, kind="cuda"):
        self.states, gpu = [torch.tensor([index]) for index in range(count)], getattr(torch, kind)
        monkeypatch.setattr(gpu, "is_initialized", lambda: True)
        monkeypatch.setattr(gpu, "device_count", lambda: count)
        monkeypatch.setattr(gpu, "current_device", lambda: used)
        monkeypatch.setattr(gpu, "get_rng_state_all", lambda: list(self.states))
        monkeypatch.setattr(gpu, "set_rng_state", self.set)
        monkeypatch.setattr(gpu, "manual_seed_all", self.seed)

    def set(self, state, device):
        self.states[device] = state

    def seed(self, seed):
        self.states = [torch.tensor([seed]) for _ in self.states]

    def numbers(self):
        return [int(state) for state in self.states]


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((2, 0), (2, 0), [100, 1]),
        ((2, 0), (2, 1), [100, 100]),  # from cuda:0 to cuda:1
        ((2, 1), (2, 0), [100, 100]),
        ((4, 3), (1, 0), [100]),  # to a machine with one GPU
        ((1, 0), (4, 2), [100, 1, 100, 3]),
        ((0, 0), (2, 1), [0, 1]),  # from the CPU
    ],
)
def test_a_run_on_another_gpu_takes_the_state_of_its_own(
    before, after, expected, kind, monkeypatch
):
    gpus = Gpus(monkeypatch, *before, kind)
    if before[0]:
        gpus.states[before[1]] = torch.tensor([100])
    else:
        monkeypatch.setattr(getattr(torch, kind), "is_initialized", lambda: False)
    state = capture_random_state()
    found = Gpus(monkeypatch, *after, kind)
    restore_random_state(state)
    assert found.numbers() == expected


def test_a_state_of_a_gpu_is_kept_for_a_resume_on_the_cpu(monkeypatch):
    Gpus(monkeypatch, 2, 1)
    state = capture_random_state()
    monkeypatch.undo()
    expected = draw()
    restore_random_state(state)
    assert draw() == expected


def test_earlier_checkpoints_have_states_by_number(monkeypatch):
    Gpus(monkeypatch, 2, 0).states[0] = torch.tensor([100])
    state = capture_random_state()
    del state["cuda_device"]
    found = Gpus(monkeypatch, 2, 1)
    found.states = [torch.tensor([7]), torch.tensor([8])]
    restore_random_state(state)
    assert found.numbers() == [100, 1]


def test_checkpoints_of_the_cpu_hold_no_device():
    if torch.cuda.is_initialized():
        pytest.skip("CUDA has started")
    assert capture_random_state()["cuda"] == []
    assert "cuda_device" not in capture_random_state()


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_an_isolated_block_leaves_no_trace_on_gpus(kind, monkeypatch):
    gpus = Gpus(monkeypatch, 3, 1, kind)
    with isolated_random_state(5):
        assert gpus.numbers() == [5, 5, 5]
    assert gpus.numbers() == [0, 1, 2]


def test_the_stream_of_apples_gpu_is_kept_and_set_apart(monkeypatch):
    stream = [torch.tensor([3])]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: stream[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", stream.append)
    monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: stream.append(torch.tensor([seed])))
    with isolated_random_state(5):
        assert int(stream[-1]) == 5
    assert int(stream[-1]) == 3


@pytest.mark.gpu
def test_a_run_on_another_gpu_draws_as_before():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.cuda.device(0):
        torch.rand(3, device="cuda:0")
        state = capture_random_state()
        expected = torch.rand(4, device="cuda:0").cpu()
    with torch.cuda.device(1):
        restore_random_state(state)
        assert torch.equal(torch.rand(4, device="cuda:1").cpu(), expected)


@pytest.mark.gpu
def test_an_isolated_block_leaves_no_trace_on_the_gpu():
    torch.rand(1, device="cuda")
    seed_everything(1)
    expected = torch.rand(4, device="cuda")
    seed_everything(1)
    with isolated_random_state(5):
        inside = torch.rand(4, device="cuda")
    assert torch.equal(torch.rand(4, device="cuda"), expected)
    seed_everything(5)
    assert torch.equal(torch.rand(4, device="cuda"), inside)


@pytest.mark.gpu
def test_the_state_of_every_gpu_is_kept():
    torch.rand(1, device="cuda")
    state = capture_random_state()
    expected = torch.rand(4, device="cuda")
    restore_random_state(state)
    assert torch.equal(torch.rand(4, device="cuda"), expected)
