"""A project of the test's own, in which names are looked up."""

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from base.names import registry


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Callable[[dict[str, str]], Path]]:
    """Write files below a root of their own and look for names there: `project({path: text})`."""

    def write(files: dict[str, str]) -> Path:
        for folder in ("model", "data_loader", "trainer"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "__init__.py").touch()
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(textwrap.dedent(text), encoding="utf-8")
        registry.set_project_root(tmp_path)
        return tmp_path

    former = registry.project_root()
    decorated = {kind: dict(names) for kind, names in registry._REGISTERED.items()}
    yield write
    registry.set_project_root(former)
    for kind, names in registry._REGISTERED.items():
        names.clear()
        names.update(decorated[kind])
    registry.MODELS.registered.clear()
