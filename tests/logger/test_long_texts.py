"""The cost of a long text or a wide table is that of reading it: twice as long, twice as much."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

import pytest

import logger.console
from base.runs.listing import shortened
from base.sweeps.table import cut_middle
from logger.console import shorten, text_width
from logger.epoch_table import EpochTable


def letters_read(action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many letters an action looks up the width of."""
    n_read = 0
    width_of = unicodedata.east_asian_width

    def counting(letter: str) -> str:
        nonlocal n_read
        n_read += 1
        return width_of(letter)

    with monkeypatch.context() as patch:
        patch.setattr(logger.console.unicodedata, "east_asian_width", counting)  # type: ignore[attr-defined]
        action()
    return n_read


@pytest.mark.parametrize("cut", [shorten, shortened, cut_middle])
def test_a_text_is_cut_in_one_pass(
    cut: Callable[[str, int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = [letters_read(lambda n=n: cut("x" * n, 80), monkeypatch) for n in (1_000, 2_000)]
    assert reads[1] < 2.2 * reads[0] < 2.2 * 4 * 1_000


@pytest.mark.parametrize("cut", [shorten, shortened, cut_middle])
def test_a_cut_text_fits_and_loses_no_more_than_it_must(cut: Callable[[str, int], str]) -> None:
    for text in ("abcdefghij", "正解率のabcdefg", "e\u0301" * 9, "ab正cd解ef率gh"):
        for width in range(1, 15):
            found = cut(text, width)
            assert text_width(found) <= width
            assert found == text or text_width(found) >= width - 3


def test_the_rows_of_many_columns_take_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each column of an epoch is ranked once, whether it fits the terminal or not."""
    ranks = []
    rank = EpochTable._rank
    monkeypatch.setattr(
        EpochTable, "_rank", lambda self, name, place: ranks.append(name) or rank(self, name, place)
    )
    values = {f"{phase}/m{n}": 0.5 for phase in ("train", "valid") for n in range(200)}
    lines = EpochTable(width=lambda: 80).lines({"epoch": 1, **values})
    assert len(ranks) == 401
    assert all(text_width(line) <= 80 for line in lines)
