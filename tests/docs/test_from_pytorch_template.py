"""Every "after" of the migration page runs: its files are written, its config is trained."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from base import registry
from base.checkpoint import read
from base.config import load_config
from base.experiment import build_experiment
from base.names import build, check_names
from base.seeding import seed_everything

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "from-pytorch-template.md").read_text(encoding="utf-8")
NEEDS = re.split(r"\n### \d+\. ", PAGE.partition("\n## Faults of")[0])[1:]
EXPECTED = {  # what each need is about, in the values that are logged at the end
    "Batches of another shape": "valid/accuracy",
    "Several loss terms, each logged": "train/smooth",
    "Outputs turned into predictions before the metrics": "valid/hit_rate",
    "Metrics over the whole epoch": "valid/worst_class_recall",
    "A test phase on the best model": "accuracy",
    "Several networks": "train/critic_grad_norm",
}


def test_all_ten_needs_are_there() -> None:
    assert len(NEEDS) == 10


@pytest.mark.parametrize("need", NEEDS, ids=[need.splitlines()[0] for need in NEEDS])
def test_the_code_after_runs(need: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for part in ("model", "data_loader", "trainer"):
        for path in (ROOT / part).glob("*.py"):
            (tmp_path / part).mkdir(exist_ok=True)
            (tmp_path / part / path.name).write_bytes(path.read_bytes())
    for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", need, re.DOTALL):
        (tmp_path / name).write_text(code, encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", need, re.DOTALL)

    former = registry.project_root()
    registry.set_project_root(tmp_path)
    try:
        config = load_config(None, ["trainer.tensorboard=false", "trainer.verbosity=0"], text=text)
        check_names(config)
        seed_everything(config["seed"])
        experiment = build_experiment(config, torch.device("cpu"))
        trainer = build("trainer", config["trainer"], experiment=experiment)
        folder = tmp_path / "run"
        folder.mkdir()
        values = trainer.train(folder)
        state = read(folder)
    finally:
        registry.set_project_root(former)

    title = need.splitlines()[0]
    assert EXPECTED.get(title, "valid/loss") in values
    assert all(math.isfinite(value) for value in values.values())
    if title == "More state saved":  # two epochs of 24 to train on and 8 to validate
        assert state["counter"] == {"n_samples": 2 * (24 + 8)}
