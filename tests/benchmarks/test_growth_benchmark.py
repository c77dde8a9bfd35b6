"""benchmarks/growth.py: each of its measurements runs, and its exponents are those of the costs."""

import importlib.util
from pathlib import Path

import pytest
from processes import ROOT, Script

SPEC = importlib.util.spec_from_file_location("growth", ROOT / "benchmarks" / "growth.py")
assert SPEC is not None
assert SPEC.loader is not None
growth = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(growth)
AXES = list(dict.fromkeys(part.axis for part in growth.PARTS))


@pytest.mark.end_to_end
@pytest.mark.parametrize("axis", AXES)
def test_each_measurement_runs(axis: str, tmp_path: Path) -> None:
    """At its smallest size, in processes that have imported torch already."""
    parts = [part for part in growth.PARTS if part.axis == axis]
    size = min(parts[0].quick)
    for part in parts:
        if part.make is not None:
            growth_call(part.make.__name__, tmp_path, size)
        done = Script(part.run(tmp_path, size), tmp_path).wait()
        assert done.returncode == 0, done.stderr
        assert list(part.sizes) == sorted(part.sizes)


def growth_call(name: str, folder: Path, size: int) -> None:
    done = Script([growth.FILE, "--call", name, str(folder), str(size)], folder).wait()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_the_exponent_is_that_of_the_costs_beyond_a_fixed_one(power: float) -> None:
    sizes = [10, 1_000, 3_000, 10_000, 100_000]
    values = [3.0 + size**power for size in sizes]
    assert growth.exponent(sizes, values, 0.0) == pytest.approx(power, abs=0.05)


def test_an_increase_within_the_noise_is_flat() -> None:
    assert growth.exponent([10, 100, 1_000, 10_000], [2.0, 2.1, 2.0, 2.1], 0.15) is None


def test_the_table_names_what_grows_above_linear() -> None:
    part = growth.PARTS[0]
    square = {n: [growth.Cost(1.0 + (n / 1e3) ** 2, 100.0, n / 1e3)] for n in part.sizes}
    lines = growth.table({part: square}, 120.0, kind="usual")
    assert lines[-1] == f"above linear: {part.axis}, {part.name}: time 2.00"
    line = {n: [growth.Cost(1.0 + n / 1e3, 100.0, n / 1e3)] for n in part.sizes}
    assert growth.table({part: line}, 120.0, kind="usual")[-1] == "nothing above linear"


def test_a_size_that_was_not_reached_is_named() -> None:
    part = growth.PARTS[0]
    costs = {n: [growth.Cost(1.0, 100.0, 1.0)] for n in part.sizes[:-1]}
    last = growth.table({part: costs}, 120.0, kind="usual")[-1]
    assert last == f"beyond 120 s: {part.axis}, {part.name}: {growth.short(part.sizes[-1])}"
