"""Make data/digits.npz from scikit-learn's copy of the UCI optical digits.

    python data/make_digits.py          needs scikit-learn; writes the same bytes every time

The test split is drawn once, here: from each class the rounded share of 360 samples, by numpy's
`RandomState(0)` (whose stream numpy promises not to change), classes in order 0 to 9.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np

TEST_SAMPLES = 360
FILE = Path(__file__).with_name("digits.npz")


def main() -> None:
    """Write the file and print what digits.md says about it."""
    content = as_npz(load())
    FILE.write_bytes(content)
    print(f"{FILE.name}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


def load() -> dict[str, np.ndarray]:
    """Return images (1797, 8, 8) of 0 to 16, labels (1797,) and the test split's ids (360,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.uint8)
    return {
        "images": digits.images.astype(np.uint8),
        "labels": labels,
        "test_ids": stratified_ids(labels, TEST_SAMPLES),
    }


def stratified_ids(labels: np.ndarray, n_chosen: int) -> np.ndarray:
    """Choose ids, sorted, in which each class has its share; the largest remainders round up."""
    random = np.random.RandomState(0)
    shares = np.bincount(labels) * n_chosen / len(labels)
    counts = shares.astype(int)
    counts[np.argsort(counts - shares, kind="stable")[: n_chosen - counts.sum()]] += 1
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(counts)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def as_npz(arrays: dict[str, np.ndarray]) -> bytes:
    """Return the arrays as an npz file, with a fixed date, so that equal data are equal bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, member.getvalue(), zipfile.ZIP_STORED)
    return content.getvalue()


if __name__ == "__main__":
    main()
