"""What a folder of the engine exports is there, and costs nothing before it is used."""

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from base.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in ROOT.glob("base/**/__init__.py")
    if "lazy_imports" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_public_name_can_be_imported(folder: str) -> None:
    package = import_module(folder)
    assert package.__all__
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        package.absent  # noqa: B018


def test_importing_the_folders_imports_no_torch() -> None:
    program = f"import sys, {', '.join(FOLDERS)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_a_data_set_whose_file_is_deleted_is_left_out(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "base", tmp_path / "base")
    shutil.copytree(ROOT / "logger", tmp_path / "logger")
    shutil.rmtree(tmp_path / "base" / "datasets" / "shards")
    program = (
        "from base.names.registry import names, find\n"
        "assert 'ShardDataset' not in names('dataset')\n"
        "assert find('dataset', 'CsvDataset').__name__ == 'CsvDataset'"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["checkpoint", "report", "runs", "shards"])
def test_a_command_shows_how_it_is_called(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    place = "base.shards" if name == "shards" else f"base.{name}.__main__"
    main = import_module(place).main
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m base.{name} ")
    with pytest.raises(UsageError, match=rf"; see `python -m base\.{name} --help`"):
        main(["--nope"])


def test_a_module_that_misses_a_name_of_another_library_says_which(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "base", tmp_path / "base")
    shutil.copytree(ROOT / "logger", tmp_path / "logger")
    path = tmp_path / "base" / "system" / "cores.py"
    path.write_text(path.read_text(encoding="utf-8") + "\nos.a_name_of_a_newer_version\n")
    program = "from base.system import usable_cores"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "base.system.cores cannot be imported: module 'os' has no attribute" in done.stderr
