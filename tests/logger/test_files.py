"""Opening regular files alone, and errors that name the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from stand_ins import STAND_INS

from logger.files import (
    FileError,
    NotAFileError,
    append,
    open_file,
    put_aside,
    read_file,
    write_whole,
)


@pytest.mark.parametrize("kind", STAND_INS)
def test_what_is_no_file_is_refused_to_readers_and_writers(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    STAND_INS[kind](path)
    with pytest.raises(NotAFileError) as info:
        open_file(path)
    assert str(info.value) == f"a {kind}, not a file"
    assert info.value.filename == str(path)
    with pytest.raises(FileError, match=kind):
        append(path, b"x")


def test_a_file_that_is_replaced_by_a_fifo_while_it_is_opened_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened decides, not what stood there a moment before."""
    path, look = tmp_path / "x", os.stat
    path.write_bytes(b"content")

    def look_and_replace(name: object) -> os.stat_result:
        facts = look(name)
        path.unlink()
        os.mkfifo(path)
        return facts

    closed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", look_and_replace)
        patch.setattr(
            os, "close", lambda number, close=os.close: (closed.append(number), close(number))
        )
        with pytest.raises(NotAFileError, match="a FIFO"):
            open_file(path)
    assert len(closed) == 1, "the descriptor is left open"


def test_links_to_files_are_files(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    (tmp_path / "link").symlink_to("x")
    assert read_file(tmp_path / "link") == b"content"


def test_errors_of_writing_are_of_their_own_kind_and_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError) as info:
        write_whole(tmp_path / "x", b"content")
    assert (info.value.errno, info.value.filename) == (errno.ENOSPC, str(tmp_path / "x"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(FileError, match="No such file"):
        write_whole(run / "report" / "curves.png", b"x")
    assert not run.exists()


def test_each_damaged_file_is_put_aside_under_a_name_of_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        (tmp_path / "metrics.csv").touch()
        put_aside(tmp_path / "metrics.csv")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"metrics.damaged-1.csv", "metrics.damaged-2.csv"}
