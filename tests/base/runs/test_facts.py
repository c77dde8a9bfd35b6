"""The facts of a run, read from its folder, whatever is missing or damaged there."""

import subprocess
import sys
from datetime import timezone

import pytest

from base.runs import list_runs, read_run
from base.system.places import PROJECT
from base.system.run_folder import create_run_folder
from base.system.run_lock import lock
from logger.csv_writer import CsvWriter
from tests.base.runs.made import CONFIG, NOON, make_run


def test_a_run_is_read(tmp_path):
    folder = make_run(tmp_path, changed={"optimizer.args.lr": 0.001}, state="finished")
    (folder / "report").mkdir()
    (folder / "report" / "test.json").write_text('{"accuracy": 0.7}')
    run = read_run(folder)
    assert (run.folder, run.name, run.number, run.state) == (folder, "toy", 1, "finished")
    assert run.started == NOON.astimezone(timezone.utc)
    assert run.config["optimizer"] == {"type": "Adam", "args": {"lr": 0.001}}
    assert run.changed == {"optimizer.args.lr": 0.001}
    assert (run.epoch, run.step) == (3, 30)
    assert (run.monitor, run.best, run.best_epoch) == ("max valid/accuracy", 0.75, 2)
    assert run.rows[1] == {"epoch": 2, "step": 20, "valid/accuracy": 0.75}
    assert run.test == {"accuracy": 0.7}


def test_an_empty_folder_is_a_run_without_facts(tmp_path):
    run = read_run(tmp_path / "saved" / "x")
    assert (run.name, run.number, run.started, run.changed) == ("saved", 0, None, {})
    assert (run.config, run.rows, run.test, run.epoch, run.step) == ({}, [], {}, 0, 0)
    assert (run.monitor, run.best, run.best_epoch) == (None, None, None)
    assert run.state == "interrupted"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\0", b"a: [", b"- 1", b"a,a\n1,2\n"])
@pytest.mark.parametrize("name", ["run.json", "config.yaml", "metrics.csv", "report/test.json"])
def test_a_damaged_file_gives_no_values_and_no_error(tmp_path, name, content):
    folder = make_run(tmp_path, state="finished")
    (folder / "report").mkdir()
    (folder / name).write_bytes(content)
    run = read_run(folder)
    facts = [run.number, run.changed, run.config, run.rows, run.test, run.best, run.state, run.step]
    assert len(facts) == 8


def test_a_row_that_is_being_written_is_not_read(tmp_path):
    folder = make_run(tmp_path)
    with (folder / "metrics.csv").open("a") as file:
        file.write("4,40,0.9")
    assert read_run(folder).epoch == 3
    with (folder / "metrics.csv").open("a") as file:
        file.write("\n5,5")  # and a line that was cut in the middle of the file
    assert (read_run(folder).epoch, read_run(folder).best) == (4, 0.9)


@pytest.mark.parametrize(
    ("rule", "values", "best"),
    [
        ("max valid/accuracy", [0.5, 0.75, 0.75], (0.75, 2)),  # the first of equal ones
        ("min valid/accuracy", [0.5, 0.25, 0.75], (0.25, 2)),
        ("min valid/accuracy", [float("nan"), 0.5, float("nan")], (0.5, 2)),
        ("max valid/accuracy", [float("nan")] * 2, (None, None)),
        ("max valid/accuracy", [None, 0.5, None], (0.5, 2)),  # validated in each second epoch
        ("max valid/other", [0.5], (None, None)),
        ("off", [0.5], (None, None)),
    ],
)
def test_the_best_is_that_of_the_monitor(tmp_path, rule, values, best):
    run = read_run(make_run(tmp_path, values, CONFIG.replace("max valid/accuracy", rule)))
    assert (run.best, run.best_epoch) == best


@pytest.mark.parametrize("part", ["valid", "train"])
def test_without_a_monitor_the_best_is_the_lowest_loss(tmp_path, part):
    folder = make_run(tmp_path, (), CONFIG.replace("max valid/accuracy", "null"))
    assert read_run(folder).monitor is None  # not known before the first epoch
    row = {"epoch": 1, "step": 5, "train/loss": 2.0, f"{part}/loss": 1.0}
    CsvWriter(folder / "metrics.csv").add_row(row)
    run = read_run(folder)
    assert (run.monitor, run.best) == (f"min {part}/loss", 1.0)


def test_a_step_between_two_epochs_is_known_by_its_checkpoint(tmp_path):
    folder = make_run(tmp_path)
    for name in ("step-00000030", "step-00000035~", "step-x", ".tmp-00000099-ab"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    assert read_run(folder).step == 35


@pytest.mark.parametrize(
    ("recorded", "is_held", "state"),
    [
        ("running", True, "running"),
        ("running", False, "interrupted"),  # its process was killed
        ("finished", True, "finished"),  # its report is being written
        ("failed", False, "failed"),
        ("interrupted", False, "interrupted"),
        ("nonsense", False, "interrupted"),
        (7, True, "running"),
    ],
)
def test_the_state_is_the_recorded_one_unless_the_process_is_gone(
    tmp_path, recorded, is_held, state
):
    folder = make_run(tmp_path, state=recorded)
    held = lock(folder)
    if not is_held:
        held.release()
    assert read_run(folder).state == state
    held.release()


@pytest.mark.parametrize(
    ("settings", "is_finished"),
    [
        ("epochs: 3", True),
        ("epochs: 4", False),
        ("steps: 30", True),
        ("steps: 31", False),
        ("epochs: 9, early_stop: 1", True),  # the best is epoch 2 of 3
        ("epochs: 9, early_stop: 2", False),
    ],
)
def test_a_run_of_an_earlier_version_is_finished_if_it_reached_its_length(
    tmp_path, settings, is_finished
):
    config = f"name: toy\ntrainer: {{{settings}, monitor: max valid/accuracy}}\n"
    run = read_run(make_run(tmp_path, config=config))
    assert (run.state, run.changed) == ("finished" if is_finished else "interrupted", {})


def test_runs_are_listed_in_the_order_in_which_they_started(tmp_path):
    made = [make_run(tmp_path) for _ in range(11)]
    (tmp_path / "toy" / "notes").mkdir()  # not a run
    other = create_run_folder(tmp_path, "other", NOON)
    assert [run.folder for run in list_runs(tmp_path, "toy")] == made
    assert [run.folder for run in list_runs(tmp_path)] == [*made, other]
    assert list_runs(tmp_path, "none") == list_runs(tmp_path / "none") == []


def test_reading_runs_does_not_load_torch():
    code = "import sys, base.runs; base.runs.list_runs('x'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0
