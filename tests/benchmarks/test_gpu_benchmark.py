"""benchmarks/gpu.py runs each of its sections, with toy sizes on the CPU."""

import json
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
    assert all(each["same_bits"] for each in found if each["section"] == "resume")
