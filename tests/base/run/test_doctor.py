"""The doctor: a line for each check, an exit code, nothing left behind; faults are found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from base.run import doctor
from base.run.doctor import Finding, satisfies, states_equal, version_numbers

NAMES = ["python", "packages", "optional", "cores", "memory", "disk", "training", "devices"]


def test_the_command_finds_this_machine_fit_and_leaves_nothing(
    tmp_path: Path, project_root: Path
) -> None:
    before = set(project_root.rglob("saved/*"))
    command = [sys.executable, "-m", "base.doctor", tmp_path]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=project_root, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert [name for name, _, _ in lines] == NAMES
    assert {state for _, state, _ in lines} <= {"ok", "warning"}
    (text,) = [text for name, _, text in lines if name == "training"]
    assert text.startswith("400 steps; resumed after step 360, bit-equal")
    assert list(tmp_path.iterdir()) == []
    assert set(project_root.rglob("saved/*")) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_leaves_nothing(
    tmp_path: Path, project_root: Path, number: int, code: int
) -> None:
    command = [sys.executable, "-m", "base.doctor", tmp_path]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=project_root, env=env, stdout=pipe, stderr=pipe) as process:
        while not list(tmp_path.glob(".doctor-*/saved/doctor/*")) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (code, b"")
    assert list(tmp_path.iterdir()) == []


def alone(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let all other checks be well."""
    for name in NAMES:
        if name not in names:
            monkeypatch.setattr(doctor, name, lambda _: Finding("ok", ""))


def test_one_failed_check_is_reported_and_the_others_are_made(
    monkeypatch, tmp_path, capsys
) -> None:
    def broken(_: Path) -> Finding:
        raise OSError("libcuda.so: no such file\nand more")

    alone(monkeypatch)
    monkeypatch.setattr(doctor, "devices", broken)
    broken.__name__ = "devices"
    assert doctor.main(tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "devices   failed   OSError: libcuda.so: no such file"
    assert len(lines) == len(NAMES)


def test_old_and_missing_packages_fail_with_what_to_do(monkeypatch, tmp_path) -> None:
    versions = {"torch": "2.9.1+cpu", "tqdm": None}
    monkeypatch.setattr(doctor, "installed_version", lambda name: versions.get(name, "99.0"))
    found = doctor.packages(tmp_path)
    assert found.state == "failed"
    assert "torch 2.9.1+cpu, wanted >=2.10" in found.text
    assert "tqdm missing" in found.text
    assert "-m pip install -r requirements.txt" in found.text
    assert "numpy" not in found.text


@pytest.mark.parametrize(
    ("version", "limits", "is_fit"),
    [
        ("2.10.0+cpu", ">=2.10", True),
        ("2.9.1", ">=2.10", False),
        ("2.10.0rc1", ">=2.10", True),
        ("0.18.0", ">=0.17,<0.18", False),
        ("0.17.6", ">=0.17,<0.18", True),
        ("1.0", "==1.0.0", True),
        ("1", "", True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, limits: str, is_fit: bool) -> None:
    assert satisfies(version, limits) is is_fit
    assert version_numbers("2.10.0") == (2, 10)


def test_a_resume_that_ends_otherwise_fails(monkeypatch, tmp_path) -> None:
    """As if the resumed run had gone on from another state: here it ends earlier."""
    train = doctor._train

    def going_astray(folder: Path, *words: str) -> None:
        shorter = ("--set", "trainer.steps=380", "trainer.epochs=null") if words[0] == "-r" else ()
        train(folder, *words, *shorter)

    monkeypatch.setattr(doctor, "_train", going_astray)
    found = doctor.training(tmp_path)
    assert (found.state, "other weights" in found.text) == ("failed", True)
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_fails_is_reported_by_its_last_line(monkeypatch, tmp_path, capsys) -> None:
    alone(monkeypatch, "training")
    monkeypatch.setattr(doctor, "CONFIG", doctor.CONFIG.replace("lr: 0.01", "lrr: 0.01"))
    assert doctor.main(tmp_path) == 1
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "failed" in each]
    assert "unknown argument for Adam; did you mean 'lr'?" in line
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_fails(monkeypatch, tmp_path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    found = doctor.disk(tmp_path / "not" / "there" / "yet")
    assert found.state == "failed"
    assert f"{tmp_path}: cannot be written (Permission denied)" in found.text


def test_little_room_is_a_warning(monkeypatch, tmp_path) -> None:
    usage = doctor.shutil._ntuple_diskusage(10, 9, 2**29)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert doctor.disk(tmp_path).state == "warning"
    monkeypatch.setattr("base.system.resources.free_memory", lambda: 2**30)
    assert doctor.memory(tmp_path).state == "warning"


def test_states_are_compared_to_the_last_bit() -> None:
    one = {"a": [torch.ones(2), 3, (1.5, "x")]}
    assert states_equal(one, {"a": [torch.ones(2), 3, (1.5, "x")]})
    for other in (
        {"a": [torch.ones(2).nextafter(torch.zeros(2)), 3, (1.5, "x")]},
        {"a": [torch.ones(2), 4, (1.5, "x")]},
        {"a": [torch.ones(2), 3, (1.5,)]},
        {"b": one["a"]},
    ):
        assert not states_equal(one, other)
