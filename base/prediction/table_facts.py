"""What the cells of each input column of a table become: numbers, days, or codes of categories.

The record of a table has the statistics and the categories; which columns are dates, and which may
be empty, is in the run's config.
"""

from __future__ import annotations

from typing import Any

from base.datasets.table_columns import missing_rules, rules_by_column
from base.datasets.table_encoding import TableEncoding
from base.datasets.tables import as_list
from base.prediction.table_rows import table_arguments
from base.prediction.trained_model import TrainedModel


def column_facts(run: TrainedModel) -> list[dict[str, Any]]:
    """Return the facts of each input column, in order, as plain data.

    ``name``; ``kind``: ``number``, ``date`` (days since 1970-01-01) or ``category``; ``codes`` of
    the values of a category, counted from 1, where 0 is any other value; ``mean`` and ``std`` of
    a standardized column; and ``missing``: what an empty cell stands for, a number or the value
    of a category, None if no cell may be empty.
    """
    encoding = TableEncoding.from_record(run.record["table"])
    args = table_arguments(run)
    days, coded = set(as_list(args["dates"], "dates")), list(encoding.categories)
    by_column = rules_by_column(args["missing"])
    rules = missing_rules("", by_column, encoding.inputs, coded, encoding.targets)
    facts = []
    for name in encoding.inputs:
        fact: dict[str, Any] = {"name": name, "kind": "date" if name in days else "number"}
        if name in encoding.categories:
            untrained = set(encoding.untrained.get(name, ()))
            numbered = enumerate(encoding.categories[name], start=1)
            codes = {value: code for code, value in numbered if value not in untrained}
            fills = rules[name] not in ("error", "drop")
            fact = {"name": name, "kind": "category", "codes": codes}
            fact["missing"] = str(rules[name]) if fills else None
        else:
            fact["missing"] = encoding.fills.get(name)
        if name in encoding.mean:
            fact |= {"mean": encoding.mean[name], "std": encoding.std[name]}
        facts.append(fact)
    return facts
