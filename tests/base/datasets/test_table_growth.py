"""Reading a table takes work in proportion to its cells: comparisons of names are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from base.datasets import labels, table_columns, tables
from base.datasets.dataset_loader import DatasetLoader
from base.datasets.table_encoding import TableEncoding
from base.datasets.tables import CsvDataset
from base.errors import DataError, UsageError
from base.prediction import table_rows
from base.prediction.table_rows import RowsToPredict

N_COLUMNS, N_ROWS = 200, 6


class CountedName(str):
    """A column name that counts how often it is compared with another one."""

    n_compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        CountedName.n_compared += 1
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the header of each table consist of counted names, and lists of names too."""
    read = table_columns._records

    def records(*given: Any) -> Iterator[list[str]]:
        for number, texts in enumerate(read(*given)):
            yield texts if number else list(map(CountedName, texts))

    monkeypatch.setattr(table_columns, "_records", records)
    for module in (tables, table_rows):
        monkeypatch.setattr(module, "as_list", lambda names, _: list(map(CountedName, names)))


def table(folder: Path, n_columns: int) -> dict[str, Any]:
    """Return the arguments of a table with numbers, categories, dates and several targets."""
    kinds = {f"n{i}": f"{i}.5" for i in range(n_columns)}
    kinds |= {f"c{i}": "word" for i in range(n_columns)}
    kinds |= {f"d{i}": "2024-03-31" for i in range(n_columns)}
    kinds |= {f"{kind}{i}": "1" for kind in "txr" for i in range(n_columns)}
    lines = [",".join(kinds), *[",".join(kinds.values())] * N_ROWS]
    (folder / f"{n_columns}.csv").write_text("\n".join(lines))

    def named(kind: str) -> list[str]:
        return [name for name in kinds if name.startswith(kind)]

    missing = {**dict.fromkeys(named("r"), "drop"), **dict.fromkeys(named("n"), "mean")}
    return {
        "file": str(folder / f"{n_columns}.csv"),
        "target": named("t"),
        "task": "regression",
        "ignore": named("x"),
        "categories": named("c"),
        "dates": named("d"),
        "missing": missing,
    }


def n_comparisons(work: Callable[[], Any]) -> int:
    CountedName.n_compared = 0
    work()
    return CountedName.n_compared


def train(args: dict[str, Any]) -> Any:
    loader = DatasetLoader(CsvDataset(**args), 2, split=2, normalize="auto")
    loader.set_seed(3)
    loader.split_validation()
    return loader.record()


def test_names_are_compared_in_proportion_to_the_columns(counted, tmp_path):
    one, two = (table(tmp_path, n) for n in (N_COLUMNS, 2 * N_COLUMNS))
    n_one, n_two = (n_comparisons(lambda args=args: train(args)) for args in (one, two))
    assert 0 < n_two <= 2.2 * n_one
    assert n_two < 200 * 6 * 2 * N_COLUMNS


def test_rows_to_predict_are_read_in_proportion_to_the_columns(counted, tmp_path):
    def predict(n_columns: int) -> int:
        args = table(tmp_path, n_columns)
        encoding = TableEncoding.from_record(train(args)["table"])
        given = {**args, "delimiter": ",", "decimal": "."}
        return n_comparisons(lambda: RowsToPredict(args["file"], given, encoding))

    assert 0 < predict(2 * N_COLUMNS) <= 2.2 * predict(N_COLUMNS)


def test_the_search_for_similar_names_ends_where_no_more_are_shown(tmp_path, monkeypatch):
    asked = []
    for module in (tables, table_rows, labels):
        monkeypatch.setattr(module, "nearest", lambda name, _: asked.append(name) or "")
    args = table(tmp_path, N_COLUMNS)
    record = train(args)["table"]
    with pytest.raises(DataError, match=r"no column 'y0'.*\n.*no column 'y1'"):
        CsvDataset(**{**args, "categories": [f"y{i}" for i in range(N_COLUMNS)]})
    assert len(asked) == labels.N_SHOWN

    asked.clear()
    lines = [f"a{i},b" for i in range(N_COLUMNS)]
    Path(args["file"]).write_text("\n".join(["kind,n0", *lines]))
    with pytest.raises(DataError, match="unknown class 'a0'"):
        CsvDataset(args["file"], "kind", categories=["n0"], classes=["b", "c"])
    with pytest.raises(DataError, match="unknown class 'a0'"):
        CsvDataset(
            args["file"], "kind", task="multilabel", categories=["n0"], classes=["b"], separator="|"
        )
    assert len(asked) == 2 * labels.N_SHOWN

    asked.clear()
    given = {**args, "delimiter": ",", "decimal": "."}
    with pytest.raises(UsageError, match=r"it lacks the columns 'n1', .*, 'n8', \.\.\."):
        RowsToPredict(args["file"], given, TableEncoding.from_record(record))
    assert len(asked) == table_rows.MOST_NAMED


def test_many_distinct_values_are_numbered_in_proportion(tmp_path, monkeypatch):
    def encode(n_values: int) -> int:
        path = tmp_path / f"values{n_values}.csv"
        rows = [f"word{i},{i % 2}" for i in range(n_values)]
        path.write_text("\n".join(["word,y", *rows]))
        dataset = CsvDataset(str(path), "y", categories=["word"], encode="codes")
        loader = DatasetLoader(dataset, 4, split=n_values // 2)
        counted = [list(map(CountedName, each["word"])) for each in
                   (dataset.encoding.categories, dataset.encoding.untrained)]  # fmt: skip
        dataset.encoding.categories["word"], dataset.encoding.untrained["word"] = counted
        del loader
        n_compared = n_comparisons(lambda: dataset.take(dataset.encoding))
        codes = dataset.get_batch(dataset.targets.new_tensor(range(n_values)))[1][:, 0]
        assert int((codes == 0).sum()) == len(counted[1])
        return n_compared + n_comparisons(lambda: dataset.encoding.unknown_text(dataset.columns))

    assert 0 < encode(2000) <= 2.2 * encode(1000)


def test_a_category_that_does_not_fit_in_memory_as_ones_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("base.datasets.table_encoding.free_memory", lambda: 3000)
    path = tmp_path / "ids.csv"
    path.write_text("\n".join(["word,y", *(f"word{i},{i % 2}" for i in range(50))]))
    with pytest.raises(DataError, match=r"50 rows of 50 inputs need .* `encode: codes`"):
        CsvDataset(str(path), "y", categories=["word"])
    CsvDataset(str(path), "y", categories=["word"], encode="codes")
