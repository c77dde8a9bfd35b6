"""Weights from a run, a checkpoint or a file, as a user gives them to `train.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from workplace import Workplace

from base.checkpoint.weights import read_weights

pytestmark = pytest.mark.end_to_end


def table(log: str) -> dict[str, int]:
    """Return the counts of the table of what was loaded."""
    lines = log.partition("weights of the model from ")[2].splitlines()[1:7]
    return {" ".join(words[:-1]): int(words[-1]) for words in (line[:19].split() for line in lines)}


@pytest.mark.parametrize("kind", ["run", "checkpoint", "pth", "pt", "safetensors"])
def test_each_kind_of_file_gives_its_weights(place: Workplace, finished: Path, kind: str) -> None:
    checkpoint = finished / "checkpoints" / "step-00000015"
    weights = read_weights(checkpoint if kind == "checkpoint" else finished)
    file = {"run": finished, "checkpoint": checkpoint}.get(kind, place.folder / f"w.{kind}")
    if kind == "safetensors":
        save_file({name: value.contiguous() for name, value in weights.items()}, file)
    elif kind.startswith("p"):
        torch.save(weights, file)
    done = place.run("-c", "tiny.yaml", "--set", f"model.weights={file}", "trainer.epochs=1")
    assert done.returncode == 0, done.stderr
    (new,) = set(place.runs()) - {finished}
    log = (new / "log.txt").read_text()
    expected = {"loaded": len(weights), **dict.fromkeys(["renamed", "missing", "unexpected"], 0)}
    assert table(log) == {**expected, "mismatched": 0, "left out": 0}
    assert table(log) == table(done.stdout + done.stderr)
    assert f",{file.name}," in (new / "parameters.csv").read_text()


def test_rules_load_a_part_and_what_does_not_fit_ends_with_2_before_any_folder(
    place: Workplace, finished: Path
) -> None:
    weights = read_weights(finished)
    file = place.folder / "w.pt"
    torch.save({f"module.{name.replace('body', 'trunk')}": weights[name] for name in weights}, file)
    config = place.folder / "tiny.yaml"
    section = '{file: w.pt, strip: module., rename: {"trunk.*": "body.*"}, skip: head.bias'
    text = config.read_text().replace("dropout: 0.3}", "dropout: 0.3}, weights: " + section)
    others = "data_loader.args.validation_split=960", "trainer.epochs=1"

    config.write_text(text.replace("skip: head.bias", "skip: head.bias}"))
    done = place.run("-c", "tiny.yaml", "--set", *others, "trainer.save_dir=other")
    assert done.returncode == 0, done.stderr
    n_renamed = len(weights)
    assert table(done.stderr + done.stdout) == {
        **{"loaded": n_renamed - 1, "renamed": n_renamed, "missing": 0, "unexpected": 0},
        **{"mismatched": 0, "left out": 1},
    }
    config.write_text(text.replace("skip: head.bias", "skip: haed.bias}"))
    wide = "model.args.width=8"
    for words, expected in (
        ([], "`skip`: no weight matches 'haed.bias'; did you mean 'head.bias'?"),
        (["model.weights.skip=[]", wide], "stem.conv.weight: shape (4, 1, 3, 3) in the file"),
        (["model.weights.skip=[]", "model.weights.strip=[]"], "`rename`: no weight matches"),
    ):
        done = place.run("-c", "tiny.yaml", "--set", "trainer.save_dir=third", *words)
        assert done.returncode == 2, done.stderr
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        assert "tiny.yaml:" in done.stderr
    assert not (place.folder / "third").exists()
