"""Make data/wine.csv and data/wine_test.csv from scikit-learn's copy of the UCI wines.

    python data/make_wine.py          needs scikit-learn; writes the same bytes every time

The test split is drawn once, here: from each cultivar the rounded share of 36 wines, as for the
digits (see make_digits.py).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from make_digits import stratified_ids

TEST_SAMPLES = 36
FOLDER = Path(__file__).parent
NAMES = {"od280/od315_of_diluted_wines": "dilution"}  # columns with other names here


def main() -> None:
    """Write the files and print what wine.md says about them."""
    for name, content in tables().items():
        (FOLDER / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        print(f"{name}: {len(content)} bytes, sha256 {digest}")


def tables() -> dict[str, bytes]:
    """Return the content of each file: the wines that train and validate, and those of the test."""
    from sklearn.datasets import load_wine

    wines = load_wine()
    names = [*(NAMES.get(name, name) for name in wines.feature_names), "cultivar"]
    lines = [
        ",".join([*(f"{value:.10g}" for value in row), "ABC"[kind]])
        for row, kind in zip(wines.data, wines.target, strict=True)
    ]
    is_test = np.isin(np.arange(len(lines)), stratified_ids(wines.target, TEST_SAMPLES))
    return {
        "wine.csv": _table(names, lines, ~is_test),
        "wine_test.csv": _table(names, lines, is_test),
    }


def _table(names: list[str], lines: list[str], are_chosen: np.ndarray) -> bytes:
    chosen = [line for line, is_chosen in zip(lines, are_chosen, strict=True) if is_chosen]
    return "\n".join([",".join(names), *chosen, ""]).encode()


if __name__ == "__main__":
    main()
