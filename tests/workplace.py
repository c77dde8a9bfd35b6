"""A small experiment, and a folder to run it in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from processes import ROOT, Done, Script

# 477 digits in 5 batches, 3 epochs: dropout, shifted images, averages, a rate that changes each
# step. Runs go to `saved/` below the current folder, which is the test's own.
TINY = f"""
name: tiny
seed: 7
model: {{type: DigitsNet, args: {{width: 4, dropout: 0.3}}}}
data_loader:
  type: DigitsDataLoader
  args: {{data_dir: {ROOT / "data"}, batch_size: 96, validation_split: 960, augment: true,
         workers: processes}}
optimizer: {{type: AdamW, args: {{lr: 0.003}}}}
lr_scheduler: {{type: OneCycleLR, args: {{max_lr: 0.01}}, every: step}}
loss: cross_entropy
metrics: [accuracy]
trainer: {{epochs: 3, ema: {{decay: 0.9}}, save_every: 1 steps, log_every: 1 steps, keep: 99}}
"""
N_STEPS = 15


class Workplace:
    """A folder of one test, with `tiny.yaml` in it, where scripts are started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "tiny.yaml").write_text(TINY, encoding="utf-8")

    def start(
        self,
        *args: str | Path,
        terminal: str | None = None,
        inject: Callable[[], object] | None = None,
        **env: str,
    ) -> Script:
        """Start `train.py` (or another script, if the first word ends so)."""
        words = args if args and str(args[0]).endswith(".py") else ("train.py", *args)
        return Script(words, self.folder, env, terminal, inject)

    def run(
        self, *args: str | Path, inject: Callable[[], object] | None = None, **env: str
    ) -> Done:
        """Start a script and wait for its end."""
        return self.start(*args, inject=inject, **env).wait()

    def train(
        self, *args: str | Path, inject: Callable[[], object] | None = None, **env: str
    ) -> Path:
        """Train `tiny.yaml` from the start, with success; return the run's folder."""
        former = set(self.runs())
        done = self.run("-c", "tiny.yaml", *args, inject=inject, **env)
        assert done.returncode == 0, done.stderr
        (new,) = set(self.runs()) - former
        return new

    def runs(self) -> list[Path]:
        """Return the runs' folders, the oldest first."""
        return sorted(self.folder.glob("saved/*/*/"))

    def files(self) -> set[str]:
        """Return all that is there beside what the test itself has written."""
        found = {str(path.relative_to(self.folder)) for path in self.folder.rglob("*")}
        return {name for name in found if not name.startswith((".std", "tiny.yaml"))}
