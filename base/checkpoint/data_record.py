"""The record of a run's data as plain JSON: statistics, class names, image mode and size.

It is computed once, from the training data, and stored in each checkpoint's manifest and in
exports. Loaders of other data for the same model (validation and test sections, ``test.py``) read
it from there. A loader, or its data set, takes part by two methods::

    record() -> dict[str, Any]                           # the values computed from the data
    use_record(record: Mapping[str, Any]) -> None        # called before the first batch

`record` may compute values on demand. `use_record` replaces values that would be computed from the
data, keeps those that the config gives, and ignores unknown keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Subset

from base.errors import DataError


def offers_record(thing: Any) -> bool:
    """Return whether a loader or a data set has both methods."""
    source = source_of(thing)
    return all(callable(getattr(source, name, None)) for name in ("record", "use_record"))


def source_of(dataset: Any) -> Any:
    """Return the data set below a torch `Subset`, or the argument itself."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return dataset


def record_of(thing: Any) -> dict[str, Any]:
    """Return the record of a loader or a data set, as read back from JSON.

    For a loader without a record it holds the class names of its data set, if there are any.

    Raises:
        DataError: the record holds other values than plain data.
    """
    if not offers_record(thing):
        classes = class_names(getattr(thing, "dataset", None))
        return {} if classes is None else {"classes": classes}
    record = source_of(thing).record()
    try:
        plain: dict[str, Any] = json.loads(json.dumps(record, allow_nan=False))
        if isinstance(record, Mapping):
            return plain
        problem = f"it is a {type(record).__name__}"
    except (TypeError, ValueError) as error:
        problem = str(error)
    text = "must return a dict of plain data (str, int, finite float, bool, None, list, dict)"
    raise DataError(f"{type(source_of(thing)).__name__}.record() {text}: {problem}")


def use_record(thing: Any, record: Mapping[str, Any]) -> None:
    """Pass a record to a loader or a data set; without `use_record`, compare the class names."""
    if record and offers_record(thing):
        source_of(thing).use_record(record)
    elif record.get("classes") and (classes := class_names(getattr(thing, "dataset", None))):
        check_classes(record["classes"], classes, "training", type(thing.dataset).__name__)


def data_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data section of a manifest: the record, hashes of samples, numbers of batches.

    It is empty for checkpoints of earlier versions and for an empty manifest.
    """
    found: dict[str, Any] = manifest.get("facts", {}).get("data", {})
    return found


def class_names(dataset: Any) -> list[str] | None:
    """Return the class names of a data set in the order of their numbers; None if unknown."""
    classes = getattr(source_of(dataset), "classes", None)
    if not isinstance(classes, Sequence) or isinstance(classes, str) or not len(classes):
        return None
    return list(map(str, classes))


def check_classes(one: Sequence[str], other: Sequence[str], name: str, other_name: str) -> None:
    """Check that two parts of the data have the same classes in the same order.

    If the names are the class numbers, one part may lack the highest ones.

    Raises:
        DataError: the classes differ.
    """
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    are_numbers = list(longer) == list(map(str, range(len(longer))))
    is_start = list(longer[: len(shorter)]) == list(shorter)
    if is_start and (are_numbers or len(one) == len(other)):
        return
    text = ", ".join(sorted(set(one) ^ set(other))[:5]) or "in another order"
    raise DataError(f"{name} and {other_name} data differ in their classes: {text}")
