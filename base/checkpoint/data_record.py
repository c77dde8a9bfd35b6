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
    """Return the record of a loader or a data set as JSON would return it.

    Of a loader that offers none it is the names of its data set's classes, if there are any.

    Raises:
        DataError: it holds something else than plain data.
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
    """Give a record to a loader or a data set; of one that offers none the classes are compared."""
    if record and offers_record(thing):
        source_of(thing).use_record(record)
    elif record.get("classes") and (classes := class_names(getattr(thing, "dataset", None))):
        check_classes(record["classes"], classes, "training", type(thing.dataset).__name__)


def data_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint's manifest knows of the data: the record, hashes of the samples,
    numbers of batches. {} for checkpoints of earlier versions, and of none.
    """
    found: dict[str, Any] = manifest.get("facts", {}).get("data", {})
    return found


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
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    are_numbers = list(longer) == list(map(str, range(len(longer))))
    is_start = list(longer[: len(shorter)]) == list(shorter)
    if is_start and (are_numbers or len(one) == len(other)):
        return
    text = ", ".join(sorted(set(one) ^ set(other))[:5]) or "in another order"
    raise DataError(f"{name} and {other_name} data differ in their classes: {text}")
