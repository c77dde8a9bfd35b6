"""The example notebook runs as it is, and shows errors without the engine's own calls."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return the executed code cells of the notebook."""
    project = tmp_path_factory.mktemp("project")
    for name in ("base", "config", "data", "data_loader", "logger", "model", "trainer", "train.py"):
        (project / name).symlink_to(ROOT / name)
    folder = project / "examples"
    folder.mkdir()
    shutil.copy(ROOT / "examples" / "notebook.ipynb", folder)
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND", raising=False)  # the kernel shows figures in the cells
        client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell: Any) -> str:
    """Return all that a cell shows."""
    shown = [each.get("text", "") or each.get("data", {}).get("text/plain", "") for each in
             cell.outputs]  # fmt: skip
    return "".join(shown)


def test_a_run_is_trained_and_shown(cells: list[Any]) -> None:
    assert "folder     saved/digits/" in text_of(cells[1])
    assert "<run saved/digits/" in text_of(cells[1])
    accuracy, epoch = text_of(cells[2]).strip("()").split(",")
    assert 0.5 < float(accuracy) <= 1
    assert 1 <= float(epoch) <= 3


def test_its_curves_are_drawn(cells: list[Any]) -> None:
    assert any("image/png" in each.get("data", {}) for each in cells[3].outputs)


def test_files_are_predicted(cells: list[Any]) -> None:
    shown = text_of(cells[4])
    assert shown.count(".png") == 4
    assert "probability" in shown


def test_an_error_is_one_message(cells: list[Any]) -> None:
    (error,) = [each for each in cells[5].outputs if each.output_type == "error"]
    assert error.evalue.endswith("trainer.epohcs: unknown key; did you mean 'epochs'?")
    assert error.traceback == [f"ConfigError: {error.evalue}"]


def test_the_notebook_is_stored_without_outputs() -> None:
    notebook = nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
