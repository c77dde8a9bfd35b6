"""In a dry run, what torchvision downloads is removed again; in a run it stays where it belongs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from base.names.construction import build
from base.names.torch_names import SOURCES, Source
from base.system.deferred_files import defer_files


class Fetched(Dataset[Any]):
    def __init__(self, root: str, download: bool = False) -> None:
        self.file = Path(root) / "fetched" / "numbers.txt"
        if download and not self.file.exists():
            self.file.parent.mkdir(parents=True)
            self.file.write_text("7")
        if not self.file.exists():
            raise RuntimeError("Dataset not found. You can use download=True to download it")

    def __len__(self) -> int:
        return 1

    def __getitem__(self, _: int) -> int:
        return int(self.file.read_text())


def fetched_net(weights: str) -> torch.nn.Module:
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("7")
    net = torch.nn.Linear(1, 1)
    net.number = int(file.read_text())
    return net


@pytest.fixture(autouse=True)
def sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Fetched, "__module__", "torchvision.datasets.fetched")
    monkeypatch.setattr(fetched_net, "__module__", "torchvision.models.fetched")
    for kind, named in (("dataset", Fetched), ("model", fetched_net)):
        package = named.__module__

        def listing(_: Any, named: Any = named) -> dict[str, Any]:
            return {named.__name__: named}

        source = Source("torch", package, lambda *_: True, listing)
        monkeypatch.setitem(SOURCES, kind, (source,))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))


def data_set(root: Path) -> Any:
    return build("dataset", {"type": "Fetched", "args": {"root": str(root), "download": True}})


def net() -> Any:
    return build("model", {"type": "fetched_net", "args": {"weights": "net.pth"}})


def test_a_dry_run_leaves_no_data_set_behind(tmp_path: Path) -> None:
    with defer_files(is_trial=True):
        made = data_set(tmp_path / "data")
        assert made[0] == 7
        assert not (tmp_path / "data").exists()
    assert not made.file.exists()


def test_a_dry_run_reads_the_data_set_that_is_there(tmp_path: Path) -> None:
    Fetched(str(tmp_path / "data"), download=True).file.write_text("8")
    with defer_files(is_trial=True):
        made = data_set(tmp_path / "data")
        assert made[0] == 8
        assert made.file.is_relative_to(tmp_path)


def test_a_run_downloads_where_it_is_told(tmp_path: Path) -> None:
    with defer_files():
        data_set(tmp_path / "data")
        net()
    assert (tmp_path / "data" / "fetched" / "numbers.txt").exists()
    assert (tmp_path / "home" / "hub" / "checkpoints" / "net.pth").exists()


def test_a_dry_run_leaves_no_weights_behind_and_reads_those_that_are_there(tmp_path: Path) -> None:
    with defer_files(is_trial=True):
        assert net().number == 7
        assert not (tmp_path / "home").exists()
    there = tmp_path / "home" / "hub" / "checkpoints"
    there.mkdir(parents=True)
    (there / "net.pth").write_text("9")
    with defer_files(is_trial=True):
        assert net().number == 9
    assert (there / "net.pth").read_text() == "9"
