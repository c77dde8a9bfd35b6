"""docs/from-pytorch-template.md: its trainers train as written, and its claims hold."""

import json
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from base.checkpoint import CheckpointStore, read
from base.command_line import parse_train
from base.errors import ConfigError, TrainingError
from base.registry import project_root, set_project_root
from base.run_folder import create_run_folder
from logger.csv_writer import read_rows

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "from-pytorch-template.md"
BLOCK = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files_of_the_page() -> dict[str, str]:
    """Return what the page shows as files: blocks that open with a path."""
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    files = {path: f"# {path}\n{text}" for path, text in blocks if path != "before"}
    assert len(files) == len([path for path, _ in blocks if path != "before"])
    return files


CONFIGS = [p for p in files_of_the_page() if p.endswith(".yaml") and p != "config/port.yaml"]


class Project:
    """A project with the page's files and toys, in which train.py is called."""

    def __init__(self, folder: Path) -> None:
        for part in ("model", "data_loader", "trainer"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copytree(Path(__file__).parent / "ports", folder, dirs_exist_ok=True)
        (folder / "config").mkdir()
        for path, text in files_of_the_page().items():
            (folder / path).write_text(text, encoding="utf-8")

    def train(self, *arguments: str) -> Path:
        """Train as the command line would; return the newest run."""
        assert train.main([*arguments]) == 0
        return max(Path("saved").glob("*/*/"), key=lambda run: (run / "log.txt").stat().st_mtime_ns)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder, former = tmp_path_factory.mktemp("ported"), project_root()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ported = Project(folder)
    set_project_root(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield ported
    set_project_root(former)
    torch.set_num_threads(threads)


def column(run: Path, name: str) -> list[float]:
    return [float(row[name]) for row in read_rows(run / "metrics.csv")]


def columns(run: Path) -> set[str]:
    names = read_rows(run / "metrics.csv")[0]
    return {name for name in names if "/" in name and not name.startswith("time/")}


def test_each_of_the_ten_needs_has_a_before_and_an_after() -> None:
    needs = PAGE.read_text().split("\n### Need ")[1:]
    assert [need.split(":")[0] for need in needs] == [str(number) for number in range(1, 11)]
    for need in needs:
        assert need.count("# before") == 1
        assert len(re.findall(r"^# config/", need, re.MULTILINE)) == 1
    assert len(CONFIGS) == 10


def test_a_trainer_of_the_old_kind_is_told_where_to_go(project: Project) -> None:
    old = """
        from base import BaseTrainer

        class OldTrainer(BaseTrainer):
            def __init__(self, model, criterion, metric_ftns, optimizer, config, data_loader):
                super().__init__(model, criterion, metric_ftns, optimizer, config)

            def _train_epoch(self, epoch):
                return {}
    """
    Path("trainer/old_trainer.py").write_text(textwrap.dedent(old))
    set_project_root(project_root())  # looks again at what is there
    with pytest.raises(ConfigError, match=r"trainer/old_trainer.py:4.*from-pytorch-template.md"):
        project.train("-c", "config/triples.yaml", "--set", "trainer.type=OldTrainer")


ADDED = {  # what each after logs, beside train/loss and valid/loss
    "triples": {"train/accuracy", "valid/accuracy"},
    "features": {"train/accuracy", "valid/accuracy"},
    "terms": {"train/class", "train/size", "valid/class", "valid/size"},
    "classes": {"train/share_right", "valid/share_right"},
    "whole_epoch": {"train/balanced_accuracy", "valid/balanced_accuracy"},
    "tested": {"train/accuracy", "valid/accuracy"},
    "centre": {"train/class", "train/spread", "valid/class", "valid/spread"},
}


@pytest.mark.parametrize("path", [path for path in CONFIGS if "gan" not in path])
def test_an_after_trains_and_lowers_its_loss(project: Project, path: str) -> None:
    run = project.train("-c", path)
    losses = column(run, "train/loss")
    assert losses[-1] < 0.9 * losses[0]
    assert columns(run) == {"train/loss", "valid/loss"} | ADDED.get(Path(path).stem, set())


def test_a_gan_trains_both_of_its_networks_and_resumes_exactly(project: Project) -> None:
    run = project.train("-c", "config/gan.yaml", "--epochs", "4", "--name", "unbroken")
    assert columns(run) == {"train/critic", "train/generator", "lr/generator", "lr/critic"}
    project.train("-c", "config/gan.yaml", "--epochs", "2", "--name", "cut")
    resumed = project.train("-r", "-c", "config/gan.yaml", "--epochs", "4", "--name", "cut")
    for name in ("train/critic", "train/generator"):
        assert column(resumed, name) == column(run, name)
        assert len(set(column(run, name))) == 4


def test_the_tested_run_has_its_report(project: Project) -> None:
    run = project.train("-c", "config/tested.yaml")
    report = json.loads((run / "report" / "test.json").read_text())
    assert report["accuracy"] > 0.5
    assert list(report) == ["loss", "accuracy"]


def test_state_that_is_registered_is_saved_and_resumed(project: Project) -> None:
    unbroken = project.train("-c", "config/centre.yaml", "--epochs", "4", "--name", "whole")
    run = project.train("-c", "config/centre.yaml", "--epochs", "2")
    assert project.train("-r", str(run), "--epochs", "4") == run
    states = [read(CheckpointStore(each / "checkpoints").newest()) for each in (unbroken, run)]
    assert torch.equal(states[0]["centre"]["value"], states[1]["centre"]["value"])
    assert column(run, "train/spread") == column(unbroken, "train/spread")


# --- Section 5: the faults that are gone -------------------------------------------------------


def test_the_scheduler_goes_on_after_a_resume(project: Project) -> None:
    schedule = "lr_scheduler={type: StepLR, args: {step_size: 2}}"
    run = project.train("-c", "config/triples.yaml", "--set", schedule, "trainer.epochs=3")
    run = project.train("-r", str(run), "--epochs", "5")
    assert column(run, "lr") == pytest.approx([1e-2, 1e-2, 1e-3, 1e-3, 1e-4])


def test_an_epoch_has_as_many_steps_as_were_asked_for(project: Project) -> None:
    run = project.train("-c", "config/triples.yaml", "--set", "trainer.epoch_steps=5")
    assert column(run, "step") == [5, 10, 15]


def test_the_best_epoch_is_kept_between_two_saves(project: Project) -> None:
    # The loss falls, so by this monitor the first epoch stays the best.
    rare = ["--set", "trainer.save_every=100 epochs", "trainer.monitor=max valid/loss"]
    run = project.train("-c", "config/triples.yaml", *rare)
    best = CheckpointStore(run / "checkpoints").best()
    assert best is not None
    assert best.name == f"step-{int(column(run, 'step')[0]):08}"


def test_a_misspelt_monitor_ends_the_run_before_it_has_a_folder(project: Project) -> None:
    before = set(Path("saved").glob("*/*"))
    with pytest.raises(ConfigError, match=r"'valid/acuracy'.*did you mean 'valid/accuracy'"):
        project.train("-c", "config/triples.yaml", "--set", "trainer.monitor=max valid/acuracy")
    assert set(Path("saved").glob("*/*")) == before


def test_patience_counts_on_after_a_resume_and_ends_when_it_says(project: Project) -> None:
    # Of a loss that falls, the first epoch has the most: patience runs out three epochs later.
    never = ["--set", "trainer.monitor=max train/loss", "trainer.early_stop=3"]
    run = project.train("-c", "config/triples.yaml", *never, "--epochs", "3")
    run = project.train("-r", str(run), "--epochs", "20")
    assert len(column(run, "epoch")) == 4


def test_making_a_loader_leaves_the_global_streams_alone(project: Project) -> None:
    from data_loader.toys import SignalDataLoader

    np.random.seed(5)
    expected = np.random.RandomState(5).rand()
    SignalDataLoader()
    assert np.random.rand() == expected


def test_a_checkpoint_holds_no_objects(project: Project) -> None:
    run = project.train("-c", "config/triples.yaml", "--epochs", "6")
    saved = list((run / "checkpoints").glob("*/state.pt"))
    assert 3 <= len(saved) <= 4  # of six, the last three, and the best
    for path in saved:
        torch.load(path, weights_only=True)


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    from datetime import datetime

    now = datetime(2026, 1, 31, 23, 59, 59)
    made = [create_run_folder(tmp_path, "x", now).name for _ in range(3)]
    assert made == ["0131_235959", "0131_235959_2", "0131_235959_3"]


def test_slips_in_a_config_are_told_together(project: Project, tmp_path: Path) -> None:
    config: dict[str, Any] = json.loads(
        (ROOT / "tests/template_projects/mnist_lenet/config.json").read_text()
    )
    config["optimizer"]["args"]["lrr"] = 1
    config["metrics"] = ["acuracy"]
    config["lr_scheduler"]["type"] = "StepLr"
    (tmp_path / "config.json").write_text(json.dumps(config, indent=4))
    with pytest.raises(ConfigError) as told:
        project.train("-c", str(tmp_path / "config.json"))
    text = str(told.value)
    for slip in ("lrr", "did you mean 'accuracy'", "did you mean 'StepLR'"):
        assert slip in text
    assert len(told.value.problems) == 3
    assert all(re.search(r"config\.json:\d+:\d+", each.where) for each in told.value.problems)


def test_a_fault_in_the_validation_shows_before_training(project: Project) -> None:
    before = set(Path("saved").glob("*/*"))
    metric = "metrics=[{type: top_k_accuracy, args: {k: 9}}]"
    with pytest.raises(TrainingError, match="'top_k_accuracy' fails"):
        project.train("-c", "config/triples.yaml", "--set", metric, "trainer.train_metrics=false")
    assert set(Path("saved").glob("*/*")) == before


def test_the_short_options_of_the_page_exist() -> None:
    short = ["--lr", "1", "--bs", "2", "--epochs", "3", "--seed", "4", "--name", "n", "-d", "cpu"]
    assert "optimizer.args.lr=1" in parse_train(["-c", "x", *short]).overrides


def test_every_name_that_the_page_gives_to_ours_is_there(project: Project) -> None:
    """The right columns of the tables speak of attributes: those of a trainer are looked up."""
    from base import BaseDataLoader, BaseModel, BaseTrainer

    for name in ("train", "train_step", "valid_step", "register", "backward", "update", "measure"):
        assert callable(getattr(BaseTrainer, name))
    for name in ("split_validation", "_split_sampler", "sampler", "valid_sampler"):
        assert hasattr(BaseDataLoader, name)
    for name in ("find", "freeze", "replace"):
        assert callable(getattr(BaseModel, name))
