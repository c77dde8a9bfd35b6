"""A small valid config and the ways in which tests load it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from base.config import Config, load_config
from base.errors import ConfigError

SMALL = """\
name: small
model: Net
data_loader: {type: Loader, args: {batch_size: 4}}
optimizer: {type: SGD, args: {lr: 0.1}}
trainer: {epochs: 2}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a file in a folder of its own, which is the working directory."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str | bytes, name: str = "x.yaml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_file


@pytest.fixture
def load(write: Callable[..., Path]) -> Callable[..., Config]:
    """Load the small config with more lines below it, and overrides."""

    def load_text(more: str = "", *overrides: str, base: str = SMALL) -> Config:
        return load_config(write(base + more), overrides)

    return load_text


@pytest.fixture
def faults(load: Callable[..., Config]) -> Callable[..., list[str]]:
    """Return the problems, a line each, of the small config with more lines and overrides."""

    def find(more: str = "", *overrides: str, base: str = SMALL) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(more, *overrides, base=base)
        return str(caught.value).splitlines()

    return find
