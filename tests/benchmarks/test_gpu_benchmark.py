"""benchmarks/gpu.py runs each of its sections, with toy sizes on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("waits", "speed", "feeding", "memory", "save", "cifar")


@pytest.mark.slow
def test_each_section_finds_something_and_none_fails(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    words = ["--tiny", "--only", ",".join((*SECTIONS, "resume")), "--out", str(out)]
    command = [sys.executable, "benchmarks/gpu.py", *words, "--budget", "3600"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [each for each in found if "failed" in each or "left_out" in each] == []
    measured = {each["section"] for each in found} - {"machine", "time"}
    assert measured == {*SECTIONS, "resume"}
    assert all("torch" in each for each in found if each["section"] == "machine")
    assert all(each["same_bits"] for each in found if each["section"] == "resume")


@pytest.mark.slow
def test_a_section_that_dies_leaves_what_it_found_and_the_others(tmp_path: Path) -> None:
    """An error of CUDA ends the process; a compiler may take longer than there is time."""
    script = tmp_path / "benchmarks" / "gpu.py"
    script.parent.mkdir()
    text = (ROOT / "benchmarks" / "gpu.py").read_text()
    text = text.replace(
        "    def waits(self) -> None:\n",
        "    def waits(self) -> None:\n        self.tell('waits', a=1)\n        os.abort()\n",
    )
    text = text.replace(
        "    def save(self) -> None:\n",
        "    def save(self) -> None:\n        self.tell('save', a=2)\n        time.sleep(600)\n",
    )
    text = text.replace(
        "    def feeding(self) -> None:\n",
        "    def feeding(self) -> None:\n        self.tell('feeding', a=3)\n        return\n",
    )
    script.write_text(text.replace("GRACE_SECONDS = 8.0", "GRACE_SECONDS = 12.0"))
    out = tmp_path / "gpu.json"
    words = ["--tiny", "--only", "waits,save,feeding", "--out", out, "--budget", "60"]
    command = [sys.executable, script, *map(str, words)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert [each["a"] for each in found if "a" in each] == [1, 2, 3]
    failed = {each["section"]: each["failed"] for each in found if "failed" in each}
    assert failed == {"waits": "exit code -6", "save": "killed, out of time"}
