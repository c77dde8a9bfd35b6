"""The tool on checkpoints says what is in them, finds damage and differences, exports weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Done, Script
from stores import flip
from torch import Tensor, nn
from toy import run, weights

from base.checkpoint.__main__ import main
from base.checkpoint.store import CheckpointStore, read
from base.checkpoint.weights import read_record, read_weights
from base.errors import CheckpointError, UsageError


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished run with averages: its folder, and its trainer."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, run(folder, "trainer.ema={decay: 0.9}")


@pytest.fixture
def folder(trained: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the run, to do with it what one likes."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*"))


def call(*words: str | Path) -> int:
    return main([str(word) for word in words])


def test_inspect_tells_a_checkpoint_by_name_shape_and_dtype(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = checkpoints(folder)[-1]
    assert call("inspect", newest) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    state = read(newest)
    assert f"step {state['progress']['step']}, epoch {state['progress']['epoch']}" in lines
    assert f"size {(newest / 'state.pt').stat().st_size:,} bytes" in lines
    assert any(f"torch {torch.__version__}, Python" in line for line in lines)
    assert any(line.startswith("metrics train/loss ") for line in lines)
    for name, value in state["model"].items():
        assert f"{name} {'x'.join(map(str, value.shape))} float32" in lines
    n_numbers = sum(value.numel() for value in state["model"].values())
    n_tensors = len(state["model"])
    assert lines[-1] == f"{n_tensors} tensors, {n_numbers} numbers, {4 * n_numbers} bytes"


def test_inspect_lists_the_checkpoints_of_a_run_damaged_ones_too(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoints(folder)[0] / "manifest.json").write_text("{}")
    for path in checkpoints(folder)[1:]:
        flip(path / "state.pt")  # which `inspect` of a run does not read
    assert call("inspect", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(any(path.name in line for line in lines) for path in checkpoints(folder))
    assert "not a valid checkpoint" in next(line for line in lines if "step-00000005" in line)


def test_verify_finds_a_flipped_bit_in_any_checkpoint_of_a_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("verify", folder, checkpoints(folder)[0] / "state.pt") == 0
    assert capsys.readouterr().out.count("whole") == len(checkpoints(folder)) + 1
    first, *others = checkpoints(folder)
    flip(first / "state.pt")
    assert call("verify", *others) == 0
    assert call("verify", first) == 1
    capsys.readouterr()
    assert call("verify", folder) == 1
    damaged = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert len(damaged) == 1
    assert first.name in damaged[0]


def test_verify_reads_a_file_of_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pt")
    assert call("verify", tmp_path / "a.pt") == 0
    assert "no hash" in capsys.readouterr().out
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:100])
    assert call("verify", tmp_path / "a.pt") == 1


def test_diff_of_a_checkpoint_with_itself_and_with_another(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_, last = checkpoints(folder)
    shutil.copytree(first, tmp_path / first.name)
    assert call("diff", first, tmp_path / first.name) == 0
    assert " 0 different, 0 only" in capsys.readouterr().out
    assert call("diff", first, last) == 1
    out = capsys.readouterr().out
    assert "progress.step" in out
    apart = (read(first)["model"]["head.weight"] - read(last)["model"]["head.weight"]).abs().max()
    assert f"{apart.item():.5g}"[:6] in next(r for r in out.splitlines() if "model.head.wei" in r)
    assert call("diff", "--weights", first, last) == 1
    assert "progress.step" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"w": torch.tensor([1.0, float("nan")])}, "1 equal, 0 different, 0 only"),
        ({"w": torch.tensor([1.5, float("nan")])}, "0 equal, 1 different"),
        ({"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}, "0 equal, 1 different"),
        ({"w": torch.zeros(2, 1)}, "w 2 float32 2x1 float32 -"),
        ({"v": torch.zeros(2)}, "1 only in the first, 1 only in the second"),
        ({"w": torch.tensor([True, False])}, "0 equal, 1 different"),
        ({"w": torch.tensor([1.0, 2j])}, "0 equal, 1 different"),
    ],
)
def test_diff_tells_how_weights_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Tensor], expected: str
) -> None:
    torch.save({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "a.pt")
    torch.save(other, tmp_path / "b.pt")
    assert call("diff", tmp_path / "a.pt", tmp_path / "b.pt") == ("1 equal" not in expected)
    assert expected in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("words", "averaged"), [([], 1), (["--ema"], 1), (["--no-ema"], 0)])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_exported_is_the_weights_and_what_is_known_of_their_data(
    trained: tuple[Path, Any], tmp_path: Path, suffix: str, words: list[str], averaged: bool
) -> None:
    folder, trainer = trained
    out = tmp_path / f"w{suffix}"
    newest = checkpoints(folder)[-1]
    assert call("export", newest, out, *words) == 0
    expected = trainer.ema.averages if averaged else weights(trainer)
    found = read_weights(out)
    assert found.keys() == weights(trainer).keys()
    assert all(found[name].equal(value) for name, value in expected.items())
    names = {out.name, f"{out.name}.json"} if suffix == ".pt" else {out.name}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert call("diff", out, newest, "--weights") == (not averaged)
    record = json.loads((folder / "data.json").read_text())["record"]
    assert read_record(out) == read_record(newest) == read_record(folder) == record != {}
    assert call("export", out, tmp_path / "again.pth") == 0
    assert read_record(tmp_path / "again.pth") == record


def test_a_record_of_other_weights_does_not_stay_beside_new_ones(
    trained: tuple[Path, Any], tmp_path: Path
) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    assert call("export", trained[0], tmp_path / "b.pt") == 0
    with pytest.raises(UsageError, match="already exists"):
        call("export", tmp_path / "a.pt", tmp_path / "b.pt")
    assert call("export", tmp_path / "a.pt", tmp_path / "b.pt", "--overwrite") == 0
    assert read_record(tmp_path / "b.pt") == {}
    (tmp_path / "b.pt.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="its record of the data cannot be read"):
        read_record(tmp_path / "b.pt")


def test_shared_weights_can_be_exported(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": shared, "b": shared, "t": shared.t()}, tmp_path / "a.pt")
    assert call("export", tmp_path / "a.pt", tmp_path / "b.safetensors") == 0
    assert call("diff", tmp_path / "a.pt", tmp_path / "b.safetensors") == 0


def test_nothing_is_overwritten_unless_asked_and_never_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"precious")
    with pytest.raises(UsageError, match="already exists"):
        call("export", tmp_path / "a.pt", tmp_path / "b.pt")

    def fail(_: int) -> None:
        assert len([*tmp_path.iterdir()]) == 3  # a temporary file is written
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", fail)
        with pytest.raises(CheckpointError, match="not written: No space left"):
            call("export", tmp_path / "a.pt", tmp_path / "b.pt", "--overwrite")
    assert (tmp_path / "b.pt").read_bytes() == b"precious"
    assert len([*tmp_path.iterdir()]) == 2
    assert call("export", tmp_path / "a.pt", tmp_path / "b.pt", "--overwrite") == 0
    assert read_weights(tmp_path / "b.pt")["a"].item() == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("inspekt x", "'inspekt' is not a command; did you mean 'inspect'"),
        ("inspect ww.pt", r"did you mean 'w\.pt'"),
        ("verify .", "holds no checkpoint"),
        ("diff w.pt", "arguments are required: FILE|2 arguments"),
        ("export w.pt w.onnx", r"must end in \.safetensors, \.pt, \.pth"),
        ("export w.pt nowhere/x.pt", "no such file or folder"),
        ("inspect w.pt --emma", "unrecognized arguments: --emma"),
        ("", "COMMAND"),
    ],
)
def test_a_slip_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, expected: str
) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=expected):
        call(*words.split())


def test_a_fault_of_the_system_and_an_odd_name_are_told_in_a_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match="File name too long"):
        call("export", tmp_path / "w.pt", tmp_path / f"{'x' * 252}.pt")
    state, facts = {"model": {"a\x1b[31m\n": torch.ones(1)}}, {"metrics": {}, "facts": {}}
    store = CheckpointStore(tmp_path)
    path = store.save(state, step=1, epoch=0, is_best=True, **facts)  # type: ignore[arg-type]
    assert call("inspect", path) == 0
    assert r"'a\x1b[31m\n'  1 " in capsys.readouterr().out


@pytest.mark.end_to_end
def test_the_command_ends_with_its_codes_and_no_traceback(folder: Path) -> None:
    first = checkpoints(folder)[0]

    def shell(*words: str | Path) -> Done:
        return Script(["-m", "base.checkpoint", *words], folder.parent).wait()

    done = [shell("verify", folder), shell("verify", folder / "chekpoints")]
    flip(first / "state.pt")
    done += [shell("verify", first), shell("inspect", first)]
    assert [each.returncode for each in done] == [0, 2, 1, 1]
    assert not any("Traceback" in each.stderr or "Warning" in each.stderr for each in done)
    assert "did you mean 'checkpoints'" in done[1].stderr
    assert "sha256" in done[3].stderr
