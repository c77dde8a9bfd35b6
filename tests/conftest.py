"""What every test may use: one thread, repeatable examples, the root, the command line, runs."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# Before torch is imported anywhere: one thread for each test, and for the processes it starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from hypothesis import HealthCheck, settings
from processes import skip_syncs_and_pictures
from workplace import Workplace

pytest_plugins = ["faults.table"]
pytest.register_assert_rewrite("faults.runs", "stores")
ROOT = Path(__file__).resolve().parent.parent
# Compile each Python file once, not in every process that a test starts.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
for chosen in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):  # of the shell that runs the tests
    os.environ.pop(chosen, None)
sys.dont_write_bytecode = False

# The files that take longest start first, so that with several processes (`-n 2`) none of them is
# still running when everything else is done.
LONG_FILES = [
    "test_template_projects.py", "test_pages.py", "test_schedule_resume.py", "test_resume_cli.py",
    "test_killed_runs.py", "test_exact_resume.py", "test_bad_numbers.py", "test_train_cli.py",
    "test_from_pytorch_template.py", "test_own_files.py", "test_sampler_state.py",
]  # fmt: skip

# The same examples in each run, and no deadlines: a busy machine must not turn a test red.
# `HYPOTHESIS_PROFILE=explore` looks for new examples, and for more of them.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "explore", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `-n auto` starts: one more than cores, as tests wait; at most 8."""
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return min(len(usable) + 1, 8)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first."""
    place = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Leave the GPU to the next test as it was, whether this one failed or not."""
    if item.get_closest_marker("gpu"):
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.empty_cache()


@pytest.fixture(scope="session", autouse=True)
def _no_syncs_and_pictures() -> None:
    skip_syncs_and_pictures()


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder that holds train.py."""
    return ROOT


@pytest.fixture(scope="session")
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `train.py` or `test.py` as a user would: `run_cli(["train.py", "-c", "x.yaml"])`."""

    def run(
        args: Sequence[str | Path],
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        seconds: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Start the script `args[0]` of the root in `cwd`; `env` is added to the environment."""
        script, *rest = args
        return subprocess.run(
            [sys.executable, ROOT / script, *rest],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    return run


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A folder of the test's own."""
    return Workplace(tmp_path)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole run, with a checkpoint of each step."""
    return Workplace(tmp_path_factory.mktemp("finished")).train()


@pytest.fixture
def finished(place: Workplace, finished_once: Path) -> Path:
    """A copy of the finished run in the test's folder."""
    folder = place.folder / "saved" / "tiny" / finished_once.name
    shutil.copytree(finished_once, folder)
    return folder


@pytest.fixture
def cut(finished: Path) -> Path:
    """The same as it was when its process was killed after step 7, in the second epoch."""
    for checkpoint in (finished / "checkpoints").glob("step-*"):
        if int(checkpoint.name[5:]) > 7:
            shutil.rmtree(checkpoint)
    shutil.rmtree(finished / "report")
    stamp = json.loads((finished / "run.json").read_text())
    (finished / "run.json").write_text(json.dumps({**stamp, "state": "running"}))
    return finished


@pytest.fixture(scope="session")
def whole(finished_once: Path) -> str:
    """The digest of the unbroken run."""
    from digest import digest

    return digest(finished_once)


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, str]]]:
    """Read a run's metrics.csv: `rows(folder)`."""

    def read(folder: Path) -> list[dict[str, str]]:
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return read
