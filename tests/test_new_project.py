"""new_project.py: a thin project that works, under its own name; or clear words and exit code 2."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from base.checkpoint.store import VERSION
from base.names.registry import NameFault, find
from base.system.left_out import left_out
from new_project import is_taken, project_files, read_template, template_files

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = read_template()
PARTS = list(TEMPLATE.parts)
ENGINE = ("base/", "logger/", "data_loader/")


def new_project(script: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, script, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def made(folder: Path, *words: str) -> Path:
    done = new_project(ROOT / "new_project.py", folder, *words)
    assert done.returncode == 0, done.stderr
    assert "make train" in done.stdout
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("projects") / "Flower Finder")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project without any of the parts that can be left out."""
    return made(tmp_path_factory.mktemp("projects") / "bare", "--without", ",".join(PARTS))


def paths_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# What a project holds.


def test_a_project_holds_the_engine_and_a_start(project: Path) -> None:
    found = paths_in(project)
    assert {"base/base_trainer.py", "logger/writers.py", "data_loader/data_loaders.py"} <= found
    assert {path for path in found if not path.startswith(ENGINE)} == {
        ".copier-answers.yml",
        ".github/workflows/ci.yml",
        ".gitignore",
        ".pre-commit-config.yaml",
        "LICENSE",
        "Makefile",
        "README.md",
        "config/digits.yaml",
        "config/schema.json",
        "data/digits.md",
        "data/digits.npz",
        "data/make_digits.py",
        "export.py",
        "model/__init__.py",
        "model/layers.py",
        "model/loss.py",
        "model/metric.py",
        "model/model.py",
        "predict.py",
        "pyproject.toml",
        "requirements.txt",
        "requirements-dev.txt",
        "requirements-extra.txt",
        "saved/.gitignore",
        "test.py",
        "tests/test_my_configs.py",
        "train.py",
        "trainer/__init__.py",
        "trainer/trainer.py",
    }


def test_a_project_bears_its_folders_name(project: Path) -> None:
    pyproject = (project / "pyproject.toml").read_text()
    assert 'name = "flower-finder"' in pyproject
    assert "kindling" not in pyproject.lower().replace("made from kindling", "")
    assert (project / "README.md").read_text().startswith("# Flower Finder\n")
    made = [path for path in ROOT.rglob("*.jinja") if "template_projects" not in path.parts]
    for path in made:
        copy = project / path.relative_to(ROOT).with_suffix("")
        assert not copy.exists() or not re.search(r"\{\{|\{%", copy.read_text())


def test_the_readme_links_pages_that_exist(project: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (project / "README.md").read_text())
    assert len(links) > 10
    for link in links:
        assert link.startswith(f"{TEMPLATE.docs}/")
        assert (ROOT / "docs" / link.removeprefix(f"{TEMPLATE.docs}/")).is_file()


def test_the_answers_say_what_was_asked(bare: Path) -> None:
    answers = yaml.safe_load((bare / ".copier-answers.yml").read_text())
    assert (answers["name"], answers["without"]) == ("bare", PARTS)
    assert left_out(bare) == PARTS
    assert left_out(ROOT) == []


def test_without_git_the_same_files_are_copied(project: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    for path in template_files():
        (archive / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, archive / path)
    for left_behind in (
        "saved/digits/20260101-000000/log.txt",
        "data/MNIST/raw/images",
        "base/__pycache__/errors.pyc",
        ".venv/bin/python",
        ".mypy_cache/x.json",
    ):
        (archive / left_behind).parent.mkdir(parents=True, exist_ok=True)
        (archive / left_behind).touch()

    target = tmp_path / "deep/er/copy"
    assert new_project(archive / "new_project.py", target).returncode == 0
    assert paths_in(target) == paths_in(project)
    assert "_commit" not in (target / ".copier-answers.yml").read_text()


# Parts that are left out.


def test_every_line_of_copier_yml_is_understood() -> None:
    written = yaml.safe_load((ROOT / "copier.yml").read_text())
    assert len(TEMPLATE.rules) == len(written["_exclude"])
    assert list(written["without"]["choices"].values()) == PARTS
    assert {rule.part for rule in TEMPLATE.rules} == {"", *PARTS}
    assert TEMPLATE.docs == written["docs"]["default"]


def own_imports(source: str) -> Iterator[str]:
    """The modules of ours that are imported wherever the file is; not in `try`, `if`, functions."""
    for node in ast.parse(source).body:
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        yield from (
            name for name in names if name.split(".")[0] in ("base", "logger", "data_loader")
        )


@pytest.mark.parametrize("part", PARTS)
def test_nothing_else_needs_a_part_to_be_loaded(part: str) -> None:
    files, rest = project_files(TEMPLATE, []), project_files(TEMPLATE, [part])
    assert rest.keys() < files.keys()
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in rest
    }
    for path, source in rest.items():
        if path.endswith(".py"):
            missing = set(own_imports(source.read_text(encoding="utf-8"))) - modules
            assert not missing, f"{path} imports {missing}, which goes with {part}"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("base/x.py", True),
        ("base/deep/er/x.json", True),
        ("base/deep/__pycache__/x.pyc", False),
        ("requirements-extra.txt", True),
        ("engine.mk", False),
        ("tests/base/test_x.py", False),
        ("model/gan.py", False),
        ("docs/requirements.txt", False),
        ("docs/site/build.py", False),
        ("data_loader/table_columns.py", True),
    ],
)
def test_the_last_rule_that_fits_decides(path: str, expected: bool) -> None:
    rules = [rule for rule in TEMPLATE.rules if not rule.part]
    assert is_taken(path, rules) == expected


@pytest.mark.parametrize("path", ["base/shards.py", "base/datasets/shards/reader.py"])
def test_a_part_is_left_out_where_it_lies(path: str) -> None:
    rules = {part: [rule for rule in TEMPLATE.rules if rule.part in ("", part)] for part in PARTS}
    assert [part for part in PARTS if not is_taken(path, rules[part])] == ["shards"]


def test_an_unknown_part_is_refused_with_the_nearest_and_all(tmp_path: Path) -> None:
    done = new_project(ROOT / "new_project.py", tmp_path / "x", "--without", "lmdb,table")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no part 'table'; did you mean 'tables'?" in done.stderr
    assert all(part in done.stderr for part in PARTS)
    assert not (tmp_path / "x").exists()


def test_an_unknown_name_says_what_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("base.system.left_out.left_out", lambda root: ["shards", "tables"])
    with pytest.raises(NameFault, match=r"no dataset 'CsvDatasets' \(this project was made"):
        find("dataset", "CsvDatasets")


# Targets.


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert new_project(ROOT / "new_project.py", tmp_path).returncode == 0
    assert (tmp_path / "Makefile").exists()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("full", "is not an empty folder"),
        ("full/notes.txt", "is not an empty folder"),
        ("full/notes.txt/deeper", "Not a directory"),
        ("template/mine", "lies inside the template"),
        ("template", "lies inside the template"),
    ],
)
def test_a_bad_target_is_refused_in_one_line(where: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    (tmp_path / "template").mkdir()
    for name in ("new_project.py", "copier.yml"):
        shutil.copy(ROOT / name, tmp_path / "template")
    before = paths_in(tmp_path)

    done = new_project(tmp_path / "template/new_project.py", tmp_path / where)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert paths_in(tmp_path) == before


# Files that stand twice.


def test_the_version_of_the_engine_is_that_of_pyproject() -> None:
    """A project has a version of its own in pyproject.toml; base/ must know Kindling's."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r'^version = "(.*)"', pyproject, re.MULTILINE) == [VERSION]


def sections(text: str) -> dict[str, str]:
    found = re.findall(r"^\[+([\w.-]+)\]+\n(.*?)(?=^\[+[\w.-]+\]+\n|\Z)", text, re.M | re.S)
    return {f"{name} {number}": body.rstrip() for number, (name, body) in enumerate(found)}


def test_a_project_has_our_settings_of_the_tools_and_some_of_our_requirements() -> None:
    ours, theirs = (
        (ROOT / name).read_text() for name in ("pyproject.toml", "pyproject.toml.jinja")
    )
    for name, body in sections(theirs).items():
        if name.startswith(("tool.ruff", "tool.mypy", "tool.uv")):
            assert body in ours, f"[{name}] differs in pyproject.toml and pyproject.toml.jinja"
    runtime = [
        re.findall(r"^(?:dependencies|extra) = \[\n.*?^\]", text, re.M | re.S)
        for text in (ours, theirs)
    ]
    assert runtime[0] == runtime[1]
    assert len(runtime[0]) == 2

    wanted = [
        {line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")}
        for name in ("requirements-dev.txt", "requirements-dev.txt.jinja")
    ]
    assert wanted[1] < wanted[0]
    (block,) = re.findall(r"^dev = \[\n(.*?)^\]", theirs, re.M | re.S)
    assert set(re.findall(r'"(.+)"', block)) == wanted[1]


# As a user would.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["project", "bare"])
def test_make_test_passes(kind: str, request: pytest.FixtureRequest) -> None:
    venv = Path(sys.executable).parent.parent
    if not (venv / ".installed-dev").exists():
        pytest.skip("this Python is not one that make set up")
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    ready = [f"-o{venv}/.installed", f"-o{venv}/.installed-dev"]  # nothing is installed
    command = ["make", *ready, "test", f"VENV={venv}", "TESTS=-x -q"]
    done = subprocess.run(
        command,
        cwd=request.getfixturevalue(kind),
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "data_loader={type: DatasetLoader, args: {batch_size: 9, "
            "dataset: {type: CsvDataset, args: {file: x.csv}}}}",
            "no dataset 'CsvDataset' (this project was made without shards, ",
        ),
        (
            "data_loader={type: TorchvisionDataLoader, args: {dataset: MNIST}}",
            "MNIST cannot be loaded (this project was made without public-sets;",
        ),
        (
            "trainer.writers=[wandb]",
            "wandb cannot be used (this project was made without services;",
        ),
    ],
)
def test_a_config_that_names_what_was_left_out_is_told(bare: Path, change: str, words: str) -> None:
    command = [sys.executable, "train.py", "-c", "config/digits.yaml", "--set", change]
    done = subprocess.run(command, cwd=bare, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr
