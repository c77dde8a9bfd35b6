"""Projects written for pytorch-template drop into a fresh copy of this template and run.

Each folder of template_projects/ is another habit: how its data comes, what its loss is, what it
monitors. All are trained, resumed and, where they have test data, tested from their own config, by
the commands that a user would type. One with a folder `before/` was ported, and its numbers are
compared with those of its own code in plain torch (`template_projects/checks/`).
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECTS = ROOT / "tests" / "template_projects"
CHECKS = PROJECTS / "checks"
CHECKED = sorted(path.stem for path in CHECKS.glob("[!_]*.py"))
NAMES = sorted({path.parent.name for path in PROJECTS.glob("*/config.json")} - {*CHECKED})
# Whose loader has `training=False` for the test data, as pytorch-template's test.py asks for.
TESTED = {"mnist_lenet", "house_prices", "film_ratings"}
# Whose loaders know no position: what a resume does not need must not be drawn another way.
REPLAYED = {"noisy_sines", "name_origin"}

# Whose loader shuffles its own arrays, so that the order of an epoch depends on those before.
SHUFFLED_IN_PLACE = {"stock_lstm"}
WITHIN_THE_LAST_EPOCH = ("--set", "trainer.save_every=90%", "trainer.keep=99")

pytestmark = pytest.mark.end_to_end

# Runs scripts, each in a process of its own that need not import torch again: 5 s saved a run.
SERVER = """
import json, os, random, runpy, sys
import matplotlib.backends.backend_agg, matplotlib.figure, numpy, tensorboard, torch
import torch._inductor.config, torchvision

sys.modules["tensorboard.compat.notf"] = sys  # as logger/writers.py: without TensorFlow
import torch.utils.tensorboard
sys.dont_write_bytecode = False

for line in sys.stdin:
    folder, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        random.seed(), numpy.random.seed(), torch.seed()
        sys.path[0], sys.argv = folder, arguments
        import base.run.session
        base.run.session.write_curves = lambda _: None  # the picture is drawn in other tests
        os.fsync = os.fstat
        runpy.run_path(arguments[0], run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Project:
    """A copy of the template with a project's files laid over it."""

    def __init__(self, name: str, folder: Path, server: subprocess.Popen[str]) -> None:
        self.folder, self.server = folder, server
        for part in ("base", "logger", "model", "data_loader", "trainer"):
            shutil.copytree(ROOT / part, folder / part)
        for script in ("train.py", "test.py"):
            shutil.copy2(ROOT / script, folder)
        before = shutil.ignore_patterns("before")
        shutil.copytree(PROJECTS / name, folder, dirs_exist_ok=True, ignore=before)
        self.file = "config.json" if (folder / "config.json").exists() else "config.yaml"
        self.config = yaml.safe_load((folder / self.file).read_text())
        self.epochs: int = self.config["trainer"]["epochs"]
        if (folder / "make_data.py").exists():
            self.python("make_data.py")

    def python(self, *arguments: str) -> str:
        """Run a script, which must end well and say nothing on stderr; return its output."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps([str(self.folder), arguments]), file=self.server.stdin, flush=True)
        code = int(self.server.stdout.readline())
        assert (code, (self.folder / "stderr").read_text()) == (0, "")
        return (self.folder / "stdout").read_text()

    def rows(self, run: Path) -> list[dict[str, str]]:
        """The rows of a run's metrics.csv, without what depends on the clock."""
        with (run / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        clock = ("time/", "seconds", "samples_per_second", "memory", "wait")
        return [{k: v for k, v in row.items() if not k.startswith(clock)} for row in rows]

    @property
    def run(self) -> Path:
        """The folder of its one run."""
        (folder,) = (self.folder / "saved" / self.config["name"]).iterdir()
        return folder

    def column(self, name: str) -> list[float]:
        """A column of metrics.csv: one number an epoch."""
        with (self.run / "metrics.csv").open() as file:
            return [float(row[name]) for row in csv.DictReader(file)]

    @property
    def columns(self) -> set[str]:
        with (self.run / "metrics.csv").open() as file:
            return {name for name in next(csv.reader(file)) if not name.startswith("time/")}

    @property
    def log(self) -> str:
        return (self.run / "log.txt").read_text()


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, server: subprocess.Popen[str]) -> Any:
    """Give a project by name, trained once; with what the training printed."""
    projects: dict[str, tuple[Project, str]] = {}

    def get(name: str) -> tuple[Project, str]:
        if name not in projects:
            project = Project(name, tmp_path_factory.mktemp(name), server)
            more = WITHIN_THE_LAST_EPOCH if name in CHECKED else ()
            projects[name] = project, project.python("train.py", "-c", project.file, *more)
        return projects[name]

    return get


@pytest.mark.parametrize("name", NAMES)
def test_an_old_project_trains_and_resumes_unchanged(trained: Any, name: str) -> None:
    project, _ = trained(name)
    losses = project.column("train/loss")
    assert len(losses) == project.epochs
    assert losses[-1] < 0.7 * losses[0]
    wanted = {f"train/{metric}" for metric in ["loss", *project.config["metrics"]]}
    has_validation = name != "noisy_sines"
    wanted |= {column.replace("train/", "valid/") for column in wanted if has_validation}
    assert wanted == {column for column in project.columns if column.split("/")[1:]}

    extended = ["--epochs", str(project.epochs + 1)]
    if name in TESTED:
        extended += ["--set", "trainer.test=true"]
    project.python("train.py", "-r", *extended)
    resumed = project.column("train/loss")
    assert resumed[:-1] == losses  # the rows of before, to the last bit
    assert resumed[-1] < losses[0]
    if name in TESTED:
        report = json.loads((project.run / "report" / "test.json").read_text())
        assert list(report) == ["loss", *project.config["metrics"]]


@pytest.mark.parametrize("name", sorted(REPLAYED))
def test_a_resume_of_a_loader_of_any_kind_is_exact(
    trained: Any, name: str, tmp_path: Path, server: subprocess.Popen[str]
) -> None:
    project, _ = trained(name)
    if len(project.column("epoch")) == project.epochs:
        project.python("train.py", "-r", "--epochs", str(project.epochs + 1))
    unbroken = Project(name, tmp_path, server)
    unbroken.python("train.py", "-c", "config.json", "--epochs", str(unbroken.epochs + 1))
    assert project.column("train/loss") == unbroken.column("train/loss")


def test_the_stock_config_means_what_it_meant(trained: Any) -> None:
    project, _ = trained("mnist_lenet")
    assert "best by    min valid/loss" in project.log
    assert "360 train, 40 valid" in project.log
    assert project.column("lr")[:3] == pytest.approx([2e-3, 2e-3, 2e-4])  # StepLR after two epochs
    assert project.column("valid/accuracy")[-1] > 0.9
    assert list(project.run.glob("events.out.tfevents.*"))


def test_test_py_evaluates_the_best_checkpoint(trained: Any) -> None:
    project, _ = trained("mnist_lenet")
    printed = subprocess.check_output(
        [sys.executable, "test.py", "-r", project.run], cwd=project.folder, text=True
    )
    values = json.loads(printed.splitlines()[-1])
    assert values == json.loads((project.run / "report" / "test.json").read_text())
    assert values["accuracy"] > 0.9


def test_no_metrics_no_scheduler_no_tensorboard(trained: Any) -> None:
    project, printed = trained("power_demand")
    assert set(project.column("lr")) == {0.005}
    assert not list(project.run.glob("events.out.tfevents.*"))
    assert len(printed.splitlines()) == 2 + project.epochs  # verbosity 1: names and rows alone


def test_metrics_may_use_numpy_and_a_loss_may_be_an_instance(trained: Any) -> None:
    project, _ = trained("cell_segmentation")
    assert "best by    max valid/mean_iou" in project.log
    assert max(project.column("valid/mean_iou")) > 0.6


def test_a_loader_need_not_be_a_data_loader_nor_validate(trained: Any) -> None:
    project, _ = trained("noisy_sines")
    assert "best by    min train/loss" in project.log
    assert "25 batches an epoch" in project.log


def test_a_split_of_ones_own_and_a_scheduler_that_watches_a_value(trained: Any) -> None:
    project, printed = trained("house_prices")
    assert printed == ""  # verbosity 0
    assert "8 batches an epoch, 192 train" in project.log
    # Nothing improves by the ten that the threshold asks for, so each epoch halves the rate.
    assert project.column("lr")[:4] == pytest.approx([0.01, 0.01, 0.005, 0.0025])


def test_own_sampler_and_collate_function_are_used(trained: Any) -> None:
    project, _ = trained("name_origin")
    assert "15 batches an epoch" in project.log
    assert project.column("valid/accuracy")[-1] > 0.9


def test_own_sections_are_kept_and_named_once(trained: Any) -> None:
    project, printed = trained("bird_calls")
    own = "session, preprocess, visualization, data_loader.augment, trainer.log_step"
    assert printed.count(f"kept in extra, unused by Kindling: {own}\n") == 1
    config = yaml.safe_load((project.run / "config.yaml").read_text())
    assert config["extra"]["preprocess"]["sample_rate"] == 800
    assert config["extra"]["trainer"] == {"log_step": 20}
    assert config["seed"] == 7  # a key of ours means what it says
    assert "_comment" not in str(config)


def test_a_batch_may_be_a_dict(trained: Any) -> None:
    project, _ = trained("film_ratings")
    assert "540 train, 60 valid" in project.log


def test_n_gpu_takes_what_there_is_and_len_epoch_is_exact(trained: Any) -> None:
    project, printed = trained("denoise_patches")
    if not torch.cuda.is_available():
        told = "n_gpu is 2, the number of GPUs here is 0: trains in one process\n"
        assert printed.count(told) == 1
    assert project.column("step")[:3] == [7, 14, 21]
    assert "best by    off" in project.log


def test_the_inputs_may_be_a_pair_within_a_pair(trained: Any) -> None:
    project, _ = trained("same_shape")
    assert project.column("valid/agreement")[-1] > 0.9


# --- Projects whose numbers are computed a second time -------------------------------------------


def test_there_are_two_projects_and_more_for_each_habit() -> None:
    assert len(NAMES) == 10
    assert len(CHECKED) >= 14
    assert {path.parent.name for path in PROJECTS.glob("*/config.*")} == {*NAMES, *CHECKED}
    ported = {path.parent.name for path in PROJECTS.glob("*/before")}
    assert len(ported) >= 10
    assert len({*CHECKED} - ported) >= 3


@pytest.mark.parametrize("name", CHECKED)
def test_numbers_are_those_of_plain_torch(trained: Any, name: str) -> None:
    project, _ = trained(name)
    for path in CHECKS.glob("*.py"):
        shutil.copy2(path, project.folder / f"check_{path.name}")
    checked = project.python(f"check_{name}.py", str(project.run))
    assert int(checked.splitlines()[-1]) >= 1  # the numbers that were compared


@pytest.mark.parametrize("name", CHECKED)
def test_a_project_resumes_within_an_epoch_exactly(trained: Any, name: str) -> None:
    project, _ = trained(name)
    whole = project.rows(project.run)
    assert len(whole) == project.epochs
    cut = project.folder / "saved" / "cut" / "run"
    shutil.copytree(project.run, cut)
    (cut / "report").exists() and shutil.rmtree(cut / "report")
    table = cut / "metrics.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    ends = [int(row["step"]) for row in whole]
    saved = {int(path.name[5:]): path for path in (cut / "checkpoints").glob("step-*")}
    kept = max(step for step in saved if ends[-2] < step < ends[-1])
    for step, path in saved.items():
        if step > kept:
            shutil.rmtree(path)
    project.python("train.py", "-r", str(cut))
    if name not in SHUFFLED_IN_PLACE:
        assert project.rows(cut) == whole


# Whose test data are those of the validation, so that the best epoch's numbers are known.
TESTED_ON_VALIDATION = {"longtail_ldam", "noisy_labels"}


@pytest.mark.parametrize("name", sorted({"retina_vessels", "traffic_graph"} | TESTED_ON_VALIDATION))
def test_a_project_with_test_data_is_tested(trained: Any, name: str) -> None:
    project, _ = trained(name)
    values = json.loads(project.python("test.py", "-r", str(project.run)).splitlines()[-1])
    mode, key = project.config["trainer"]["monitor"].replace("val_", "valid/").split()
    best = (max if mode == "max" else min)(
        project.rows(project.run), key=lambda row: float(row[key])
    )
    wanted = {k.removeprefix("valid/"): float(v) for k, v in best.items() if k[:6] == "valid/"}
    assert values.keys() == wanted.keys()
    if name in TESTED_ON_VALIDATION:
        assert values == pytest.approx(wanted, rel=1e-5)
    else:
        assert 0 < values["loss"] < 2 * wanted["loss"]
