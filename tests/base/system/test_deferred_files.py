"""Files that wait until a run begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from base.system.deferred_files import defer_files, waiting_files, write_when_running


def test_a_file_is_written_at_once_outside_of_a_run(tmp_path: Path) -> None:
    write_when_running((tmp_path / "x").touch)
    assert (tmp_path / "x").exists()


def test_a_file_waits_until_the_run_begins_and_those_after_it_do_not(tmp_path: Path) -> None:
    with defer_files() as files:
        write_when_running((tmp_path / "x").touch)
        assert not list(tmp_path.iterdir())
        assert files.write()
        assert (tmp_path / "x").exists()
        assert not files.write(), "each is written once"
        write_when_running((tmp_path / "y").touch)
        assert (tmp_path / "y").exists()
    assert waiting_files() is None


def test_nothing_is_left_of_a_run_that_does_not_begin(tmp_path: Path) -> None:
    made: list[Path] = []

    def stopped() -> None:
        with defer_files() as files:
            write_when_running((tmp_path / "x").touch)
            made.append(files.temporary_folder())
            (made[0] / "part").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not made[0].exists()
    assert not list(tmp_path.iterdir())


class Downloading:
    """What torchvision's sets do."""

    def __init__(self, root: Path, train: bool, download: bool) -> None:
        self.root, file = Path(root), Path(root) / "Downloading" / "raw" / "all"
        if download:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"fetched")
        if not file.exists():
            raise RuntimeError("Dataset not found")


def test_a_download_is_kept_when_the_run_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    from base.datasets import public_sets

    facts = public_sets.PUBLIC_SETS["MNIST"]
    monkeypatch.setitem(public_sets.PUBLIC_SETS, "Downloading", facts)
    monkeypatch.setattr(datasets, "Downloading", Downloading, raising=False)
    data = tmp_path / "data"
    with defer_files() as files:
        dataset = public_sets.open_with_torchvision("Downloading", data, True, True)
        assert dataset.root == data
        assert not data.exists()
        files.write()
        assert (data / "Downloading" / "raw" / "all").read_bytes() == b"fetched"
