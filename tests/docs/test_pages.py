"""Every block of the pages in docs/ runs: configs train, fragments fit, scripts end well."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from processes import Script

import train
from base.names.registry import project_root, set_project_root

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = ["models", "initialisation", "parameter-groups", "schedules", "losses", "metrics", "gans"]
PAGES += ["gradients", "data-sets", "tables", "segmentation", "memory", "speed", "checkpoints"]
PAGES += ["logging", "reliability", "reports", "samples", "comparing-runs", "sweeps", "recipes"]
PAGES += ["predicting"]
BLOCK = re.compile(r"^```(python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ((?:config|model|data_loader|trainer)/\S+\.(?:yaml|py)|make_\w+\.py)\n")


def blocks(page: str) -> list[tuple[str, str]]:
    """Return (path or language, text) of each block: a file, a fragment of a config, a script."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    found = [(m[1], m[2]) for m in BLOCK.finditer(text)]
    return [(file[1] if (file := FILE.match(body)) else kind, body) for kind, body in found]


def of(page: str, kind: str) -> list[tuple[str, str]]:
    wanted = {"config": lambda name: name.startswith("config/")}
    return [each for each in blocks(page) if wanted.get(kind, kind.__eq__)(each[0])]


CONFIGS = [(page, path) for page in PAGES for path, _ in of(page, "config")]
FRAGMENTS = [(page, number) for page in PAGES for number in range(len(of(page, "yaml")))]
SCRIPTS = [(page, number) for page in PAGES for number in range(len(of(page, "python")))]


def run_script(path: Path) -> None:
    done = Script([path], path.parent).wait()
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A project for each page, with its files, and with the data that its ``make_*.py`` makes."""
    made = {}
    for page in PAGES:
        folder = made[page] = tmp_path_factory.mktemp(page)
        for part in ("model", "data_loader", "trainer", "config"):
            shutil.copytree(ROOT / part, folder / part)
        for part in ("base", "logger", "data"):
            (folder / part).symlink_to(ROOT / part)
        for path, text in blocks(page):
            if path.endswith((".yaml", ".py")):
                assert not (folder / path).exists(), f"docs/{page}.md would overwrite {path}"
                (folder / path).write_text(text, encoding="utf-8")
            if path.startswith("make_"):
                run_script(folder / path)
    return made


@pytest.fixture(autouse=True)
def _afterwards() -> Iterator[None]:
    former, threads = project_root(), torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    set_project_root(former)
    torch.set_num_threads(threads)


def call(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.chdir(folder)
    set_project_root(folder)
    return train.main([*words])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_with_a_config(page: str) -> None:
    path, _ = blocks(page)[0]
    assert path.startswith("config/")


@pytest.mark.parametrize(("page", "path"), CONFIGS)
def test_a_config_of_a_page_trains(
    page: str, path: str, projects: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "type: timm" in dict(blocks(page))[path]:
        pytest.importorskip("timm")
    assert call(projects[page], monkeypatch, "-c", path) == 0


@pytest.mark.parametrize(("page", "number"), FRAGMENTS)
def test_a_fragment_fits_into_the_first_config(
    page: str, number: int, projects: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = of(page, "config")[0]
    _, text = of(page, "yaml")[number]
    path = Path("config") / f"fragment_{number}.yaml"
    (projects[page] / path).write_text(f"inherit: {Path(first).name}\n{text}", encoding="utf-8")
    assert call(projects[page], monkeypatch, "-c", str(path), "--dry-run") == 0


@pytest.mark.parametrize(("page", "number"), SCRIPTS)
def test_a_script_of_a_page_runs(page: str, number: int, projects: dict[str, Path]) -> None:
    _, text = of(page, "python")[number]
    path = projects[page] / f"script_{number}.py"
    path.write_text(text, encoding="utf-8")
    run_script(path)
