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
from base.checkpoint.store import CheckpointStore, read
from base.config import load_config
from base.config.command_line import parse_train
from base.errors import ConfigError, TrainingError
from base.names.check import check_names
from base.names.registry import project_root, set_project_root
from base.run.build import build_experiment
from base.run.loaders import build_loaders
from base.system.run_folder import create_run_folder
from base.training.experiment import Experiment
from logger.csv_writer import read_rows

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "from-pytorch-template.md"
BLOCK = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
JSON = re.compile(r"^```json\n(.*?)^```$", re.MULTILINE | re.DOTALL)


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
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(text, encoding="utf-8")
        self.save_pretrained(folder / "pretrained.pth")
        first_generation = JSON.findall(PAGE.read_text(encoding="utf-8"))[1]
        (folder / "config" / "first_generation.json").write_text(first_generation)

    def save_pretrained(self, path: Path) -> None:
        """Save what pytorch-template's `model_best.pth` holds of a `Classifier`, tensors alone."""
        shapes = {"body.0.weight": (16, 8), "body.0.bias": (16,)}
        shapes |= {"head.weight": (99, 16), "head.bias": (99,)}
        generator = torch.Generator().manual_seed(7)
        state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        torch.save({"arch": "Classifier", "epoch": 9, "state_dict": state}, path)

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


def test_each_need_has_a_before_and_an_after() -> None:
    trainers, scripts = re.split(r"^## \d\. ", PAGE.read_text(), flags=re.MULTILINE)[4:6]
    needs, cases = trainers.split("\n### Need ")[1:], scripts.split("\n### ")[1:]
    assert [need.split(":")[0] for need in needs] == [str(number) for number in range(1, 14)]
    for case in needs + [case for case in cases if not case.startswith("Two definitions")]:
        assert case.count("# before") == 1 + case.count("\n#### ")
        assert re.search(r"^# config/", case, re.MULTILINE)


def test_the_table_of_cases_leads_to_sections_that_exist() -> None:
    text = PAGE.read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert links - anchors == set()
    for section in ("need-", "first-", "initialisation", "cross", "training-that", "two-"):
        assert any(link.startswith(section) for link in links)


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


NAMED = ("cross_entropy", "l1")
ADDED = {  # what each after logs, beside train/loss and valid/loss
    "triples": {"train/accuracy", "valid/accuracy"},
    "features": {"train/accuracy", "valid/accuracy"},
    "terms": {"train/class", "train/size", "valid/class", "valid/size"},
    "classes": {"train/share_right", "valid/share_right"},
    "whole_epoch": {"train/balanced_accuracy", "valid/balanced_accuracy"},
    "tested": {"train/accuracy", "valid/accuracy"},
    "centre": {"train/class", "train/spread", "valid/class", "valid/spread"},
    "centre_loss": {"train/class", "train/centre", "valid/class", "valid/centre"},
    "two_optimizers": {"train/class", "train/centre", "valid/class", "valid/centre", "lr/network"}
    | {"lr/centres"},
    "two_loaders": {"train/class", "train/consistency"},
    "loss_terms": {"train/class", "train/size", "valid/class", "valid/size"},
    "regularised": {f"{part}/{name}" for part in ("train", "valid") for name in NAMED},
    "visible": {"train/visible_error", "valid/visible_error"},
    "groups": {"lr/0", "lr/1", "lr/2"},
    "folds": {"train/accuracy", "valid/accuracy"},
    "first_generation": {"train/accuracy", "valid/accuracy"},
}


@pytest.mark.parametrize(
    "path", [*(path for path in CONFIGS if "gan" not in path), "config/first_generation.json"]
)
def test_an_after_trains_and_lowers_its_loss(project: Project, path: str) -> None:
    run = project.train("-c", path)
    losses = column(run, "train/loss")
    assert losses[-1] < (2 if "forcing" in path else 0.9) * losses[0]
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


def test_a_second_loader_continues_where_it_was(project: Project) -> None:
    steps = ["-c", "config/two_loaders.yaml", "--set", "trainer.epochs=null"]  # 12 in two epochs
    whole = project.train(*steps, "trainer.steps=16", "--name", "whole")
    project.train(*steps, "trainer.steps=11", "--name", "cut")
    run = project.train("-r", *steps, "trainer.steps=16", "--name", "cut")
    states = [read(CheckpointStore(each / "checkpoints").newest()) for each in (whole, run)]
    assert [state["unlabelled"] for state in states] == [{"position": 16}] * 2
    assert all(torch.equal(states[0]["model"][k], v) for k, v in states[1]["model"].items())


def test_what_a_loss_keeps_by_sample_continues_within_an_epoch(project: Project) -> None:
    source = """
        import torch
        from torch import nn
        from torch.nn import functional as F

        class RunningTargets(nn.Module):
            def __init__(self):
                super().__init__()
                self.target = torch.zeros(150, 3)

            def forward(self, output, label, ids):
                if self.training_now(output):
                    self.target[ids] = 0.3 * self.target[ids] + 0.7 * output.detach().softmax(1)
                agreement = (self.target[ids] * output.softmax(1)).sum(1)
                return F.cross_entropy(output, label) + (1.01 - agreement).log().mean()

            def training_now(self, output):
                return output.requires_grad
    """
    Path("model/running_targets.py").write_text(textwrap.dedent(source))
    set_project_root(project_root())  # looks again at what is there
    steps = ["-c", "config/port.yaml", "--set", "name=kept", "trainer.epochs=null"]
    steps += ["loss=RunningTargets", "batch={ids: true}"]
    whole = project.train(*steps, "trainer.steps=20", "--name", "whole_targets")
    project.train(*steps, "trainer.steps=12", "--name", "cut_targets")
    run = project.train("-r", *steps, "trainer.steps=20", "--name", "cut_targets")
    states = [read(CheckpointStore(each / "checkpoints").newest()) for each in (whole, run)]
    targets = [state["loss_attributes"]["RunningTargets"]["target"] for state in states]
    assert torch.equal(*targets)
    assert (targets[0].sum(1) > 0).sum() == 120  # all that are trained on, none that validate
    assert all(torch.equal(states[0]["model"][k], v) for k, v in states[1]["model"].items())


def test_an_iterator_of_a_trainer_is_warned_of(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    source = """
        from itertools import cycle
        from trainer.two_loaders_trainer import TwoLoadersTrainer

        class CyclingTrainer(TwoLoadersTrainer):
            def __init__(self, experiment):
                super().__init__(experiment)
                self.others = cycle([1, 2])
    """
    Path("trainer/cycling.py").write_text(textwrap.dedent(source))
    set_project_root(project_root())  # looks again at what is there
    project.train("-c", "config/two_loaders.yaml", "--set", "trainer.type=CyclingTrainer")
    warned = [line for line in capsys.readouterr().err.splitlines() if "is an iterator" in line]
    assert len(warned) == 1
    assert "CyclingTrainer.others" in warned[0]


# --- Numbers of the afters, held against what the befores compute --------------------------------


def experiment_of(path: str) -> Experiment:
    config = load_config(Path(path))
    check_names(config)
    torch.manual_seed(3)
    return build_experiment(config, torch.device("cpu"))


def before_of(heading: str) -> str:
    """Return the code that the page shows as the before of a section."""
    section = PAGE.read_text().split(f"\n### {heading}\n")[1]
    return BLOCK.search(section)[2]


def test_terms_of_a_loss_are_those_of_a_trainer(project: Project) -> None:
    ported, own = (
        project.train("-c", "config/terms.yaml"),
        project.train("-c", "config/loss_terms.yaml"),
    )
    for name in ("train/loss", "train/class", "train/size", "valid/size"):
        assert column(own, name) == pytest.approx(column(ported, name), rel=1e-6)


def test_a_regulariser_is_what_it_says_of_the_last_weights(project: Project) -> None:
    run = project.train("-c", "config/regularised.yaml")
    state = read(CheckpointStore(run / "checkpoints").newest())["model"]
    size = sum(weight.abs().sum().item() for weight in state.values())
    assert column(run, "valid/l1")[-1] == pytest.approx(1e-4 * size, rel=1e-5)
    total = column(run, "valid/cross_entropy")[-1] + column(run, "valid/l1")[-1]
    assert column(run, "valid/loss")[-1] == pytest.approx(total, rel=1e-5)


def test_what_is_not_visible_does_not_count(project: Project) -> None:
    run = project.train("-c", "config/visible.yaml")
    assert column(run, "valid/loss")[-1] < 2  # the heatmap is 100 where nothing is visible


def test_the_epoch_is_set_before_each(project: Project) -> None:
    """Adam does not see a constant factor, so the losses of doubled epochs are twice as large."""
    plain = project.train("-c", "config/forcing.yaml", "--set", "loss.0.args.from_epoch=9")
    double = project.train("-c", "config/forcing.yaml")
    pairs = zip(column(double, "train/loss"), column(plain, "train/loss"), strict=True)
    assert [a / b for a, b in pairs] == pytest.approx([1, 2, 2], rel=0.05)


def test_initialisation_is_that_of_apply(project: Project) -> None:
    weights = dict(experiment_of("config/initialised.yaml").model.named_parameters())
    for name in ("body.0", "head"):
        n_out, n_in = weights[f"{name}.weight"].shape
        bound = 5 * (2 / (n_in + n_out)) ** 0.5
        assert 0 < weights[f"{name}.weight"].abs().max() < bound
        assert weights[f"{name}.bias"].abs().max() == 0
    scale = weights["body.0.weight"].std() / (2 / 24) ** 0.5
    assert scale.item() == pytest.approx(1, abs=0.25)


def test_pretrained_layers_stay_as_they_are(project: Project) -> None:
    run = project.train("-c", "config/frozen.yaml")
    state = read(CheckpointStore(run / "checkpoints").newest())["model"]
    given = torch.load("pretrained.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(state[name], given[name]) for name in ("body.0.weight", "body.0.bias"))
    assert state["head.weight"].shape == (3, 16)


def test_the_parameters_of_a_loss_are_trained(project: Project) -> None:
    before = experiment_of("config/centre_loss.yaml").model.state_dict()
    run = project.train("-c", "config/centre_loss.yaml")
    after = read(CheckpointStore(run / "checkpoints").newest())["model"]
    assert not torch.equal(before["centre_loss.centres"], after["centre_loss.centres"])


def test_groups_are_those_of_the_plain_optimizer(project: Project) -> None:
    experiment = experiment_of("config/groups.yaml")
    model, (optimizer,) = experiment.model, experiment.optimizers.values()
    before: dict[str, Any] = {"torch": torch, "model": model, "lr": 0.02}
    exec(before_of("Parameter groups by name"), before)
    found, wanted = (
        {
            id(parameter): (pytest.approx(group["lr"]), group["weight_decay"])
            for group in each.param_groups
            for parameter in group["params"]
        }
        for each in (optimizer, before["optimizer"])
    )
    assert found == wanted
    assert len(wanted) == 4


def test_the_rate_is_that_of_the_function(project: Project) -> None:
    run = project.train("-c", "config/lambda.yaml", "--epochs", "4")
    assert column(run, "lr") == pytest.approx([0.01, 0.01, 0.0075, 0.005])


def test_arguments_come_from_the_loader(project: Project) -> None:
    experiment = experiment_of("config/counted.yaml")
    assert [tuple(w.shape) for w in experiment.model.parameters()][:3] == [(16, 8), (16,), (3, 16)]
    targets = torch.tensor([int(target) for _, target in experiment.train_loader.dataset])
    weight = experiment.losses["BalancedLoss"].function.weight
    assert torch.equal(weight, 1 / torch.bincount(targets).float())


def test_class_weights_count_in_the_mean_of_an_epoch(project: Project) -> None:
    run = project.train("-c", "config/balanced.yaml")
    experiment = experiment_of("config/balanced.yaml")
    state = read(CheckpointStore(run / "checkpoints").newest())["model"]
    experiment.model.load_state_dict(state)
    loader = experiment.valid_loader
    signals, targets = map(torch.cat, zip(*loader.batches(0, len(loader)), strict=True))
    with torch.no_grad():
        output = experiment.model.eval()(signals)
    weight = experiment.losses["ExactBalancedLoss"].function.weight
    expected = torch.nn.functional.cross_entropy(output, targets, weight).item()
    assert column(run, "valid/loss")[-1] == pytest.approx(expected, rel=1e-6)


def test_the_whole_config_is_given(project: Project) -> None:
    model = experiment_of("config/configured.yaml").model
    assert (model.of_run, model[0].out_features) == ("configured", 12)


def test_folds_are_apart_and_cover_all(project: Project) -> None:
    parts = []
    for fold in range(5):
        config = load_config(Path("config/folds.yaml"), [f"data_loader.args.fold={fold}"])
        loader, valid = build_loaders(config)
        parts += [*valid.dataset.indices]
        assert set(loader.dataset.indices) == set(range(150)) - set(valid.dataset.indices)
    assert sorted(parts) == list(range(150))
    run = project.train(
        "-c", "config/folds.yaml", "--name", "folds_1", "--set", "data_loader.args.fold=1"
    )
    assert run.parent.name == "folds_1"


# --- Section 6: the faults that are gone -------------------------------------------------------


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


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            ["trainer.monitor=max valid/acuracy"],
            ConfigError,
            r"'valid/acuracy'.*did you mean 'valid/accuracy'",
        ),
        (
            ["metrics=[{type: top_k_accuracy, args: {k: 9}}]", "trainer.train_metrics=false"],
            TrainingError,
            "'top_k_accuracy' fails",
        ),
    ],
    ids=["a misspelt monitor", "a fault in the validation"],
)
def test_a_slip_ends_the_run_before_it_has_a_folder(
    project: Project, changes: list[str], error: type[Exception], message: str
) -> None:
    before = set(Path("saved").glob("*/*"))
    with pytest.raises(error, match=message):
        project.train("-c", "config/triples.yaml", "--set", *changes)
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
    assert made == ["20260131-235959", "20260131-235959_2", "20260131-235959_3"]


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
