"""Run folders: each made once, the newest found again."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from base.errors import UsageError
from base.system import run_folder
from base.system.places import PROJECT
from base.system.run_folder import (
    create_run_folder,
    current_job,
    find_newest_run,
    find_run,
    folders_of_runs,
    is_run,
    locate,
    must_exist,
    note_job,
    read_stamp,
    run_folder_of,
    update_stamp,
    write_environment,
)
from base.system.run_index import INDEX

NOON = datetime(2026, 3, 1, 12, 0, 0)


def add_checkpoint(run: Path, step: int = 1) -> Path:
    """Make what counts as a checkpoint in a run."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.pt").touch()
    return folder


# --- Making --------------------------------------------------------------------------------------


def test_a_run_gets_a_folder_by_its_time(tmp_path):
    folder = create_run_folder(tmp_path / "saved", "digits", NOON)
    assert folder == tmp_path / "saved" / "digits" / "20260301-120000"
    assert folder.is_dir()


def test_the_changed_settings_are_in_its_name_and_in_full_in_run_json(tmp_path):
    changed = {"optimizer.args.lr": 0.001, "metrics": ["a", {"type": "b"}], "extra.é": None}
    for end in ("", "_2"):
        folder = create_run_folder(tmp_path, "x", NOON, settings="lr=1e-3_é", changed=changed)
        assert folder.name == f"20260301-120000_lr=1e-3_é{end}"
        stamp = read_stamp(folder)
        assert (stamp["changed"], stamp["state"]) == (changed, "running")


@pytest.mark.fault("F23")
def test_32_runs_started_in_the_same_second_have_32_folders(tmp_path):
    with ThreadPoolExecutor(32) as pool:
        made = list(pool.map(lambda _: create_run_folder(tmp_path, "x", NOON), range(32)))
    assert len(set(made)) == 32
    assert {path.name for path in made} >= {
        "20260301-120000",
        "20260301-120000_2",
        "20260301-120000_32",
    }


def test_a_folder_that_is_there_is_never_taken_over(tmp_path):
    first = create_run_folder(tmp_path, "x", NOON)
    (first / "metrics.csv").write_text("precious")
    second = create_run_folder(tmp_path, "x", NOON)
    assert second.name == "20260301-120000_2"
    assert (first / "metrics.csv").read_text() == "precious"


def test_a_place_where_no_folder_can_be_made_is_named(tmp_path):
    (tmp_path / "saved").touch()
    with pytest.raises(UsageError, match="saved/x: cannot create the folder of a run: Not a d"):
        create_run_folder(tmp_path / "saved", "x")
    with pytest.raises(UsageError, match="name too long"):
        create_run_folder(tmp_path, "x" * 300)


@pytest.mark.fault("F29")
@pytest.mark.parametrize("name", ["中文", "two words", "-dash", "it's", "🙂", "x" * 255])
def test_names_of_any_script_work(tmp_path, name):
    folder = create_run_folder(tmp_path, name)
    add_checkpoint(folder)
    assert find_newest_run(tmp_path, name) == folder
    assert run_folder_of(folder / "checkpoints") == folder


# --- Finding -------------------------------------------------------------------------------------


@pytest.mark.fault("F23")
@pytest.mark.parametrize(
    "clock",
    [
        [NOON, NOON, NOON],
        [NOON, NOON - timedelta(hours=1), NOON - timedelta(days=2)],
        [datetime(2026, 12, 31, 23, 59, 59), datetime(2027, 1, 1), datetime(2027, 1, 2)],
    ],
    ids=["frozen", "backwards", "new year"],
)
def test_the_newest_run_is_the_one_started_last_whatever_the_clock_says(tmp_path, clock):
    runs = [create_run_folder(tmp_path, "x", now) for now in clock]
    for age, run in enumerate(runs):
        add_checkpoint(run)
        os.utime(run, (1_000_000 - age, 1_000_000 - age))
    assert find_newest_run(tmp_path, "x") == runs[-1]


def test_the_newest_of_all_names_is_found(tmp_path):
    runs = [create_run_folder(tmp_path, name, NOON) for name in ("b", "c", "a")]
    for run in runs:
        add_checkpoint(run)
    assert find_newest_run(tmp_path) == runs[-1]
    assert find_newest_run(tmp_path, "b") == runs[0]


def test_runs_without_a_checkpoint_are_passed_over_and_named(tmp_path, caplog):
    first, second = (create_run_folder(tmp_path, "x", NOON) for _ in range(2))
    (second / "checkpoints" / ".tmp-00000001-ab").mkdir(parents=True)
    assert find_newest_run(tmp_path, "x") is None
    assert "none of its 2 runs holds a checkpoint" in caplog.text

    caplog.clear()
    add_checkpoint(first)
    assert find_newest_run(tmp_path, "x") == first
    assert f"{second} holds no checkpoint" in caplog.text


def test_no_runs_are_no_error(tmp_path, caplog):
    assert find_newest_run(tmp_path / "saved") is None
    assert find_newest_run(tmp_path, "x") is None
    assert not caplog.records


@pytest.mark.parametrize("stamp", ["", "{", "[]", '{"number": null}', "\xff"])
def test_a_damaged_stamp_makes_a_run_old_not_an_error(tmp_path, stamp):
    damaged = create_run_folder(tmp_path, "x", NOON)
    run = create_run_folder(tmp_path, "x", NOON)
    (damaged / "run.json").write_bytes(stamp.encode("latin-1"))
    for each in (run, damaged):
        add_checkpoint(each)
    assert find_newest_run(tmp_path, "x") == run
    shutil.rmtree(run)
    assert find_newest_run(tmp_path, "x") == damaged


@pytest.mark.fault("F30")
def test_thousands_of_runs_are_no_wait(tmp_path, trials):
    n_runs = trials.count(500, 10_000)
    for number in range(n_runs):
        folder = tmp_path / "x" / f"{number:05d}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"number": number, "started": ""}))
    add_checkpoint(tmp_path / "x" / "00005")

    started, n_bytes = time.process_time(), psutil.Process().memory_info().rss
    assert find_newest_run(tmp_path, "x").name == "00005"
    found = time.process_time()
    create_run_folder(tmp_path, "x")
    assert found - started < 1
    assert time.process_time() - found < 1
    assert psutil.Process().memory_info().rss - n_bytes < 50 << 20


# --- Which run a path belongs to -----------------------------------------------------------------


def test_each_path_of_a_run_leads_to_its_folder(tmp_path, monkeypatch):
    run = create_run_folder(tmp_path, "x", NOON)
    checkpoint = add_checkpoint(run)
    for path in (run, run / "checkpoints", checkpoint, checkpoint / "state.pt"):
        assert run_folder_of(path) == run
        assert run_folder_of(str(path)) == run

    monkeypatch.chdir(tmp_path)
    assert run_folder_of("x/20260301-120000/checkpoints/step-00000001") == Path("x/20260301-120000")
    monkeypatch.chdir(checkpoint)
    assert run_folder_of("state.pt").samefile(run)
    assert run_folder_of("../..").samefile(run)


def test_a_run_behind_a_link_is_found(tmp_path):
    run = create_run_folder(tmp_path, "x", NOON)
    add_checkpoint(run)
    (tmp_path / "latest").symlink_to(run)
    assert run_folder_of(tmp_path / "latest" / "checkpoints" / "step-00000001").samefile(run)


def test_what_is_no_run_is_said(tmp_path):
    run = create_run_folder(tmp_path, "digits", NOON)
    (run / "report").mkdir()
    for path in (tmp_path, tmp_path / "digits", run / "report"):
        with pytest.raises(UsageError, match="not a run"):
            run_folder_of(path)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("digit", "no 'digit'; did you mean 'digits'?"),
        ("digits/20260301-120001", "did you mean '20260301-120000'?"),
        ("digist/20260301-120000/checkpoints", "no 'digist'; did you mean 'digits'?"),
        ("digits/20260301-120000/run.json/x", "no 'x'"),
        ("x" * 4000, "no such file or folder"),
        ("nul\0", "no such file or folder"),
    ],
)
def test_a_missing_path_names_the_nearest(tmp_path, path, words):
    create_run_folder(tmp_path, "digits", NOON)
    with pytest.raises(UsageError) as info:
        must_exist(tmp_path / path)
    assert words in str(info.value)


# --- A run by a part of its path -----------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Start three runs and one of an earlier version, each with a checkpoint, in `saved/`."""
    monkeypatch.chdir(tmp_path)
    made = {
        "a": create_run_folder("saved", "digits", NOON, settings="lr=1e-3"),
        "b": create_run_folder("saved", "digits", NOON, settings="lr=1e-3_width=64"),
        "c": create_run_folder("saved", "wine", NOON + timedelta(hours=1), settings="größe=3"),
        "old": Path("saved/wine/1125_203534"),
    }
    for folder in made.values():
        add_checkpoint(folder)
    return made


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("width", "b"), ("größe=3", "c"), ("130000", "c"), ("wine/20260301", "c"),
        ("1125_203534", "old"), ("wine/1125", "old"), ("saved/wine/2026", "c"),
        ("digits/20260301-120000_lr=1e-3", "a"),  # also the beginning of another one
        ("20260301-120000_lr=1e-3", "a"), ("./width=64", "b"), ("width=64/", "b"),
        ("saved/digits/20260301-120000_lr=1e-3", "a"),
    ],
)  # fmt: skip
def test_a_run_is_found_by_a_unique_part_of_its_path(runs, part, name):
    assert find_run(part) == runs[name]
    inside = Path(part) / "checkpoints" / "step-00000001"
    assert locate(inside) == find_run(inside) == runs[name] / "checkpoints" / "step-00000001"


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("lr=3e-3", "lr=3e-3"),
        ("lr=3e-3", "width=8_lr=3e-3_seed=1"),
        ("width=8_lr=3e-3", "width=8_lr=3e-3"),
        ("lr=3e-3", "lr=3e-3_2"),
        ("max_lr=3e-3", "max_lr=3e-3"),
    ],
)
def test_a_whole_setting_comes_before_a_part_of_one(tmp_path, monkeypatch, part, setting):
    monkeypatch.chdir(tmp_path)
    for each in (setting, f"{part}5", f"gen_max_{part}", f"width=8_gen_max_{part}_seed=1"):
        folder = create_run_folder("saved", "digits", NOON, settings=each)
        if each == setting:
            wanted = folder
    assert locate(part) == wanted


def test_a_part_is_looked_for_where_the_runs_are_saved(runs):
    Path("width=64").mkdir()  # a folder above is no part of the path of a run
    Path("saved").rename("width=64/elsewhere")
    name = "digits/20260301-120000_lr=1e-3_width=64"
    for save_dir in (Path("width=64/elsewhere"), Path("width=64/elsewhere").absolute()):
        for part in (
            "_width",
            "elsewhere/digits/20260301-120000_lr=1e-3_",
            f"{save_dir}/{name[:-1]}",
        ):
            assert find_run(part, save_dir) == save_dir / name
        with pytest.raises(UsageError, match="3 runs match"):
            find_run("20260301", save_dir)
    with pytest.raises(UsageError, match="no such file or folder"):
        find_run("_width")


def test_an_existing_path_always_wins(runs):
    assert find_run("saved/digits") == runs["b"]  # the newest run of that name
    assert find_run("saved") == runs["c"]
    Path("width").mkdir()
    with pytest.raises(UsageError, match="width: not a run"):
        find_run("width")


def test_several_matches_are_named_in_one_line(runs):
    with pytest.raises(UsageError) as info:
        find_run("digits")
    assert str(info.value) == (
        "digits: 2 runs match: saved/digits/20260301-120000_lr=1e-3, "
        "saved/digits/20260301-120000_lr=1e-3_width=64; give more of one; "
        "the newest of that name is saved/digits"
    )
    for number in range(7):
        create_run_folder("saved", "many", NOON + timedelta(days=number))
    with pytest.raises(UsageError) as info:
        locate("many/2026")
    assert "7 runs match: saved/many/20260301-120000, " in str(info.value)
    assert "20260305-120000 and 2 more; give more of one" in str(info.value)


def test_no_match_names_the_nearest_part(runs):
    with pytest.raises(UsageError) as info:
        find_run("widht=64")
    assert str(info.value) == (
        "widht=64: no such file or folder, and no run in saved has this in its path; "
        "did you mean 'width=64'?"
    )
    with pytest.raises(UsageError, match="no 'diggits'; did you mean 'digits'"):
        find_run("saved/diggits")
    with pytest.raises(UsageError, match="no 'step-00000009'"):
        find_run("width=64/checkpoints/step-00000009")


def test_only_runs_are_listed(runs):
    Path("saved/digits/notes").mkdir()
    Path("saved/file").touch()
    assert set(folders_of_runs(Path("saved"))) == set(runs.values())
    assert folders_of_runs(Path("saved"), "digits") != folders_of_runs(Path("saved"), "none") == []


# --- run.json ------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [None, b"", b"[1]", b"\xff"])
def test_an_entry_of_run_json_changes_alone(tmp_path, damage):
    run = create_run_folder(tmp_path, "x", NOON)
    before = read_stamp(run)
    if damage is not None:
        (run / "run.json").write_bytes(damage)
        before = {}
    update_stamp(run, state="finished", job="7")
    assert read_stamp(run) == {**before, "state": "finished", "job": "7"}


def test_a_run_without_a_folder_or_that_cannot_be_written_is_no_error(tmp_path, caplog):
    run = create_run_folder(tmp_path, "x", NOON)
    shutil.rmtree(run)
    update_stamp(run, state="finished")
    assert not run.exists()
    (run / "run.json").mkdir(parents=True)
    update_stamp(run, state="finished")
    assert "run.json: state: not recorded: Is a directory" in caplog.text


# --- What is written about the surroundings ------------------------------------------------------


def test_environment_tells_versions_code_and_command(tmp_path, monkeypatch):
    import numpy
    import torch

    monkeypatch.setattr(sys, "argv", ["train.py", "-c", "config/two words.yaml"])
    write_environment(tmp_path)
    lines = (tmp_path / "env.txt").read_text().splitlines()
    facts = {name: value for name, _, value in (line.partition(" ") for line in lines)}

    assert facts["command"].endswith("train.py -c 'config/two words.yaml'")
    for package in (torch, numpy):
        assert facts[package.__name__].strip() in package.__version__
    assert int(facts["cores"]) == os.cpu_count()
    assert facts["python"].strip() == sys.version.split()[0]
    assert facts["torchvision"].strip() == metadata.version("torchvision")


def test_git_state_is_the_commit_and_what_differs_from_it(tmp_path):
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", tmp_path, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "a.py").write_text("1")
    git("add", "a.py")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "HEAD")
    assert run_folder._git_state(tmp_path) == f"{commit} (clean)"

    (tmp_path / "a.py").write_text("2")
    (tmp_path / "b.py").write_text("new")
    assert run_folder._git_state(tmp_path) == f"{commit} (2 files changed)"


def test_without_git_the_environment_is_written_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    write_environment(tmp_path)
    assert "git          none" in (tmp_path / "env.txt").read_text()


def test_finding_a_run_does_not_wait_for_torch():
    code = "import sys, base.system.run_folder; sys.exit('torch' in sys.modules)"
    root = PROJECT
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


# --- Jobs ----------------------------------------------------------------------------------------


def test_a_job_finds_its_own_run_before_a_newer_one(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    runs = {}
    for job in ("17", "18", None):
        monkeypatch.setenv("SLURM_JOB_ID", job) if job else monkeypatch.delenv("SLURM_JOB_ID")
        runs[job] = create_run_folder(tmp_path, "x", NOON)
        note_job(runs[job])
        add_checkpoint(runs[job])
    assert find_newest_run(tmp_path, "x") == runs[None]
    assert find_newest_run(tmp_path, "x", job="17") == runs["17"]
    assert find_newest_run(tmp_path, "x", job="18") == runs["18"]
    assert find_newest_run(tmp_path, "x", job="19") == runs[None]
    monkeypatch.setenv("SLURM_JOB_ID", "19")
    note_job(runs["17"])  # which resumes it
    assert find_newest_run(tmp_path, "x", job="19") == runs["17"]
    assert create_run_folder(tmp_path, "x", NOON).name.endswith("_4")  # the number goes on


@pytest.mark.parametrize(
    ("slurm", "torchrun", "job"),
    [(None, None, None), (None, "none", None), (None, "mine", "mine"), ("17", "mine", "17")],
)
def test_a_job_is_named_by_slurm_or_by_torchrun(monkeypatch, slurm, torchrun, job):
    for name, value in (("SLURM_JOB_ID", slurm), ("TORCHELASTIC_RUN_ID", torchrun)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    assert current_job() == job


@pytest.mark.parametrize("name", ["model.pt2", "model.ONNX", "model.safetensors"])
def test_an_exported_file_is_no_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    for find in (run_folder_of, find_run):
        with pytest.raises(UsageError) as caught:
            find(name)
        assert str(caught.value) == (
            f"{name}: an exported model, which is loaded without Kindling: MODEL_CARD.md beside it "
            "shows how; -r takes a run, such as saved/digits"
        )


# --- Thousands of runs ---------------------------------------------------------------------------


def many_runs(parent: Path, n_runs: int) -> list[Path]:
    """Make runs of which the names are in another order than the numbers."""
    made = []
    for number in range(1, n_runs + 1):
        folder = parent / f"2026{number * 7919 % n_runs:06d}"
        folder.mkdir(parents=True)
        stamp = {"number": number, "started": "2026-11-29T06:46:11+00:00"}
        (folder / "run.json").write_text(json.dumps(stamp))
        made.append(folder)
    return made


@pytest.fixture
def opened(monkeypatch) -> list[Path]:
    """Return a list that receives each file that is read."""
    paths: list[Path] = []
    for place in ("base.system.run_folder", "base.system.run_index"):
        monkeypatch.setattr(
            f"{place}.read_file", lambda path: paths.append(path) or path.read_bytes()
        )
    return paths


def test_each_run_is_opened_once_however_often_the_newest_is_looked_for(tmp_path, opened):
    runs = many_runs(tmp_path / "x", 500)
    add_checkpoint(runs[-1])
    assert find_newest_run(tmp_path, "x") == runs[-1]
    assert len(opened) == 501
    for look in (lambda: find_newest_run(tmp_path, "x"), lambda: find_newest_run(tmp_path)):
        opened.clear()
        assert look() == runs[-1]
        assert len(opened) == 1  # the index
    opened.clear()
    new = create_run_folder(tmp_path, "x", NOON)
    assert read_stamp(new)["number"] == 501
    assert len(opened) <= 3
    add_checkpoint(new)
    assert find_newest_run(tmp_path, "x") == new


def test_a_run_is_located_by_its_name_alone(tmp_path, opened, monkeypatch):
    looked = []
    monkeypatch.setattr(
        "base.system.run_folder.is_run", lambda folder: looked.append(folder) or is_run(folder)
    )
    runs = many_runs(tmp_path / "x", 300)
    assert locate(f"x/{runs[8].name}", tmp_path) == runs[8]
    assert (opened, looked) == ([], [runs[8]])


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": [1, "x", 2]}', "null"])
def test_a_damaged_index_of_runs_is_written_again(tmp_path, content):
    runs = many_runs(tmp_path / "x", 200)
    add_checkpoint(runs[-1])
    find_newest_run(tmp_path, "x")
    whole = (tmp_path / "x" / INDEX).read_text()
    (tmp_path / "x" / INDEX).write_text(content)
    assert find_newest_run(tmp_path, "x") == runs[-1]
    assert (tmp_path / "x" / INDEX).read_text() == whole


def test_removed_renamed_and_moved_runs_are_found_despite_the_index(tmp_path):
    runs = many_runs(tmp_path / "x", 200)
    for run in runs[-4:]:
        add_checkpoint(run)
    find_newest_run(tmp_path, "x")
    shutil.rmtree(runs[-1])
    assert find_newest_run(tmp_path, "x") == runs[-2]
    # The newest gets the name of an old one, which is removed.
    shutil.rmtree(runs[0])
    runs[-2].rename(runs[0])
    assert find_newest_run(tmp_path, "x") == runs[0]
    runs[0].rename(tmp_path / "x" / "by_hand")
    assert find_newest_run(tmp_path, "x") == tmp_path / "x" / "by_hand"
    (tmp_path / "y").mkdir()
    (tmp_path / "x" / "by_hand").rename(tmp_path / "y" / "by_hand")
    assert find_newest_run(tmp_path, "x") == runs[-3]
    assert find_newest_run(tmp_path) == tmp_path / "y" / "by_hand"


def test_another_run_in_a_folder_of_the_index_is_read_again(tmp_path):
    """As after `rm -r` and a copy under the same name, which may get the same inode."""
    runs = many_runs(tmp_path / "x", 200)
    for run in (runs[3], runs[-1]):
        add_checkpoint(run)
    assert find_newest_run(tmp_path, "x") == runs[-1]
    number = {"number": 201, "started": "2026-11-29T06:46:12+00:00"}
    (tmp_path / "copied.json").write_text(json.dumps(number))
    os.utime(tmp_path / "copied.json", (1, 1))
    (runs[3] / "run.json").unlink()
    shutil.copy2(tmp_path / "copied.json", runs[3] / "run.json")
    assert find_newest_run(tmp_path, "x") == runs[3]
    assert find_newest_run(tmp_path, "x") == runs[3]


def test_few_runs_and_a_folder_that_cannot_be_written_have_no_index(tmp_path, monkeypatch):
    runs = many_runs(tmp_path / "x", 20)
    add_checkpoint(runs[-1])
    assert find_newest_run(tmp_path, "x") == runs[-1]
    assert not (tmp_path / "x" / INDEX).exists()

    def refuse(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("base.system.run_index.write_whole", refuse)
    runs = many_runs(tmp_path / "y", 200)
    add_checkpoint(runs[-1])
    assert find_newest_run(tmp_path, "y") == runs[-1]


def test_a_job_finds_its_run_among_those_of_the_index(tmp_path, monkeypatch):
    runs = many_runs(tmp_path / "x", 200)
    for run in (runs[3], runs[-1]):
        add_checkpoint(run)
    find_newest_run(tmp_path, "x")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    note_job(runs[3])
    assert find_newest_run(tmp_path, "x", "77") == runs[3]
    assert find_newest_run(tmp_path, "x") == runs[-1]


def test_a_job_finds_its_run_without_opening_the_others(tmp_path, monkeypatch):
    """Also after runs were listed with the job, and one was resumed by another job since."""
    runs = many_runs(tmp_path / "x", 200)
    for run in (runs[3], runs[-1]):
        add_checkpoint(run)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    note_job(runs[3])
    find_newest_run(tmp_path, "x")
    opened = []
    monkeypatch.setattr(
        "base.system.run_folder.read_stamp", lambda folder: opened.append(folder) or {}
    )
    assert find_newest_run(tmp_path, "x", "77") == runs[3]
    assert opened == []
    monkeypatch.undo()
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    note_job(runs[3])
    assert find_newest_run(tmp_path, "x", "77") == runs[-1]
    assert find_newest_run(tmp_path, "x", "78") == runs[3]
