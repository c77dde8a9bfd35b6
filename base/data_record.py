"""What a run knows of its data, as plain JSON data: statistics, class names, image mode and size.

It is computed once, from the training data, and kept in each checkpoint's manifest and in exports.
Whatever reads other data for the same model (validation and test sections, ``test.py``) takes it
from there. A loader, or a data set under it, that has something to keep offers two methods::

    record() -> dict[str, Any]                           # what it has found, or was given
    use_record(record: Mapping[str, Any]) -> None        # use that; called before the first batch

`record` may compute what is not known yet. `use_record` replaces what would otherwise be computed
from the data, and leaves alone what the config gives; keys it does not know are for others.
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
    """Return the data set that a torch `Subset` takes its samples from, or the thing itself."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return dataset


def record_of(thing: Any) -> dict[str, Any]:
    """Return the record of a loader or a data set as JSON would return it; empty for others.

    Raises:
        DataError: it holds something else than plain data.
    """
    if not offers_record(thing):
        return {}
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
    """Give a record to a loader or a data set that offers one; do nothing for others."""
    if record and offers_record(thing):
        source_of(thing).use_record(record)


def class_names(dataset: Any) -> list[str] | None:
    """Return the names of a data set's classes in the order of their numbers; None if unknown."""
    classes = getattr(source_of(dataset), "classes", None)
    if not isinstance(classes, Sequence) or isinstance(classes, str) or not len(classes):
        return None
    return list(map(str, classes))


def check_classes(one: Sequence[str], other: Sequence[str], name: str, other_name: str) -> None:
    """Make sure that two parts of the data number their classes alike.

    Where the names are the numbers themselves, one part may lack the highest.

    Raises:
        DataError: they do not.
    """
    n_both = min(len(one), len(other))
    are_numbers = list(max(one, other, key=len)) == list(map(str, range(max(len(one), len(other)))))
    if list(one) == list(other) or (are_numbers and list(one[:n_both]) == list(other[:n_both])):
        return
    text = ", ".join(sorted(set(one) ^ set(other))[:5]) or "in another order"
    raise DataError(f"{name} and {other_name} data differ in their classes: {text}")
