"""A file gets its name when it is complete, and a table fits the console."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from base.errors import UsageError
from base.prediction.output import OutputFile, table_text
from logger.console import text_width


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out.csv") as file:
        assert file.write_rows([["file", "class"], ["a,b", "ü"], ["x", 0.1234567891]]) == 2
        assert "out.csv" not in names(tmp_path)
    assert names(tmp_path) == ["out.csv"]
    assert (tmp_path / "out.csv").read_text("utf-8") == 'file,class\n"a,b",ü\nx,0.1234568\n'


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.tsv"
    path.write_text("before")

    def interrupted() -> Iterator[list[str]]:
        yield ["a", "b"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), OutputFile(path, overwrite=True) as file:
        file.write_rows(interrupted())
    assert names(tmp_path) == ["out.tsv"]
    assert path.read_text() == "before"


def test_tabs_for_tsv(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out.tsv") as file:
        file.write_rows([["a", "b"], ["1", "2"]])
    assert (tmp_path / "out.tsv").read_text() == "a\tb\n1\t2\n"


def test_names_that_are_not_unicode_are_written_as_they_are(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "out.csv") as file:
        file.write_rows([["file"], ["\udcff.jpg"]])
    assert (tmp_path / "out.csv").read_bytes() == b"file\n\xff.jpg\n"


def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "there.csv").touch()
    for path, text in {
        tmp_path: "a folder; give a file",
        tmp_path / "there.csv": "it exists already; add --overwrite",
        tmp_path / "no/out.csv": "there is no folder .*no; make it first",
    }.items():
        with pytest.raises(UsageError, match=text):
            OutputFile(path)
    assert names(tmp_path) == ["there.csv"]


ROWS = [[f"images/{'sub/' * 6}{n}.jpg", "a class", 0.5, "another", 0.25] for n in range(3)]
COLUMNS = ["file", "class", "probability", "class_2", "probability_2"]


@pytest.mark.parametrize("width", range(40, 130, 5))
def test_a_table_fits_the_width(width: int) -> None:
    lines = table_text(COLUMNS, ROWS, width).splitlines()
    assert len(lines) == 4
    assert max(map(text_width, lines)) <= width
    assert lines[1].split()[0].endswith("/0.jpg")  # the end of a name is kept
    assert "0.5000" in lines[1] or "..." in lines[0]
    if width >= 120:
        assert "…" not in lines[1]
        assert lines[0].split() == COLUMNS


def test_wide_letters_count_twice() -> None:
    lines = table_text(["file", "class"], [["花" * 40, "x"]], 50).splitlines()
    assert max(map(text_width, lines)) <= 50
