"""How to test a run: a line that a shell can run, or which setting provides the test data."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from processes import Script
from workplace import Workplace

pytestmark = pytest.mark.end_to_end

OWN = """
name: own
model:
  type: Sequential
  args: {{layers: [Flatten, {{type: LazyLinear, args: {{out_features: 3}}}}]}}
data_loader: {data_loader}
optimizer: SGD
loss: cross_entropy
trainer: {{epochs: 1, save_dir: {save_dir}}}
"""
FAKE = (
    "{type: FakeData, args: {size: 8, image_size: [3, 4, 4], num_classes: 3,"
    " transform: [ToImage, {type: ToDtype, args: {dtype: float32, scale: true}}]}}"
)
SET = "{type: SyntheticDataset, args: {n_samples: 8, shape: [1, 2, 2], n_classes: 3}}"


def last_line(printed: str) -> str:
    return printed.splitlines()[-1]


def test_a_shell_can_run_the_line_whatever_the_name(place: Workplace) -> None:
    name = "it's $(touch pwned) & more"
    done = place.run("-c", "tiny.yaml", "--epochs", "1", "--name", f"{json.dumps(name)}")
    assert done.returncode == 0, done.stderr
    before, _, command = last_line(done.stdout).partition(": ")
    assert before == "test by"
    words = shlex.split(command)
    assert words[:1] + words[2:3] == ["python", "-r"]
    assert Path(words[3]).parent == Path("saved") / name
    python = shlex.quote(sys.executable)
    line = f"{python} {command.removeprefix('python ')}"
    run = subprocess.run(
        line, shell=True, cwd=place.folder, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    written = place.folder / words[3] / "report" / "test.json"
    assert json.loads(last_line(run.stdout)) == json.loads(written.read_text())
    assert not (place.folder / "pwned").exists()


@pytest.mark.parametrize(
    ("loader", "missing"),
    [
        (
            f"{{type: DatasetLoader, args: {{dataset: {SET}, batch_size: 4}}}}",
            "set `data_loader.args.test_dataset`, or add a `test_data_loader` section",
        ),
        (
            f"{{type: BaseDataLoader, args: {{dataset: {FAKE}, batch_size: 4, shuffle: true,"
            " validation_split: 0, num_workers: 0}}",
            "add a `test_data_loader` section, or give BaseDataLoader an argument `training`, "
            "false for test data",
        ),
    ],
)
def test_without_test_data_it_says_which_setting_provides_them(
    place: Workplace, tmp_path: Path, loader: str, missing: str
) -> None:
    text = OWN.format(data_loader=loader, save_dir=tmp_path / "elsewhere")
    config = place.folder / "own.yaml"
    config.write_text(text)
    done = place.run("-c", "own.yaml")
    assert done.returncode == 0, done.stderr
    assert last_line(done.stdout) == f"no test data: {missing}"
    assert "test by" not in done.stdout
    tested = place.run("test.py", "-r", str(tmp_path / "elsewhere" / "own"))
    assert tested.returncode == 2
    assert f"no test data: {missing}" in tested.stderr

    # `trainer.test` is refused before anything is trained or made.
    refused = place.run("-c", "own.yaml", "--set", "trainer.test=true", "name=refused")
    assert refused.returncode == 2
    assert f"trainer.test: there is no test data: {missing}" in refused.stderr
    assert not (tmp_path / "elsewhere" / "refused").exists()

    section = f"{{type: DatasetLoader, args: {{dataset: {SET}, batch_size: 4}}}}"
    given = place.run("-c", "own.yaml", "--set", f"test_data_loader={section}")
    assert last_line(given.stdout).startswith("test by: python ")


def test_a_names_folder_stands_for_its_newest_run(place: Workplace) -> None:
    old = place.train("--epochs", "1")
    new = place.train("--epochs", "1")
    place.train("--epochs", "1", "--name", "other")
    for words, run in ((["saved/tiny"], new), (["saved/tiny/"], new), ([str(old)], old)):
        done = place.run("test.py", "-r", *words)
        assert done.returncode == 0, done.stderr
        assert str(run.relative_to(place.folder)) in done.stdout
    for script in ("train.py", "test.py"):
        done = place.run(script, "-r", "saved")
        assert done.returncode == 0, done.stderr
        assert "saved/other/" in done.stdout
    done = place.run("train.py", "-r", "saved/tiny", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert f"folder     {new.relative_to(place.folder)}\n" in done.stdout

    for command in ("inspect", "verify", "diff", "export"):
        more = {"diff": [str(new)], "export": ["net.pt"]}.get(command, [])
        words = ["-m", "base.checkpoint", command, "saved/tiny", *more]
        found = Script(words, place.folder, {"PATH": ""}).wait()
        assert found.returncode == 0, found.stderr
        assert command == "diff" or str(new.relative_to(place.folder)) in found.stdout


def test_a_folder_without_runs_is_none(place: Workplace) -> None:
    (place.folder / "saved" / "empty").mkdir(parents=True)
    done = place.run("test.py", "-r", "saved/empty")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "saved/empty: not a run" in done.stderr
