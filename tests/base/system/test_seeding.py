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
