"""The files of examples/launch/: their syntax, and their torchrun line with two processes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "examples" / "launch"
FILES = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".yaml"))
# The places of a cluster, which one machine replaces.
PLACES = ("--nnodes", "--nproc-per-node", "--node-rank", "--master-addr", "--master-port")
PLACES += ("--rdzv-backend", "--rdzv-id", "--rdzv-endpoint")


def scripts_in(name: str) -> list[str]:
    """Return the shell scripts in a file."""
    text = (LAUNCH / name).read_text("utf-8")
    if name.endswith(".sh"):
        return [text]

    def texts(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        children = value.values() if isinstance(value, dict) else value
        is_branch = isinstance(value, dict | list)
        return [text for child in children for text in texts(child)] if is_branch else []

    return [text for text in texts(yaml.safe_load(text)) if "\n" in text]


def torchrun_line(name: str) -> list[str]:
    """Return the words after `torchrun`."""
    lines = re.sub(r"\\\n", " ", "\n".join(scripts_in(name))).splitlines()
    (found,) = {line for line in lines if re.match(r"\s*((exec|srun) )?torchrun ", line)}
    return shlex.split(found)[shlex.split(found).index("torchrun") + 1 :]


def on_this_machine(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the options of torchrun for two processes here, and the script with its arguments."""
    script = words.index("train.py")
    options = iter(words[:script])
    kept = ["--standalone", "--nproc-per-node", "2"]
    for word in options:
        if word in PLACES:
            next(options)
        elif word != "--standalone":
            kept.append(word)
    return kept, words[script:]


@pytest.mark.parametrize("name", FILES)
def test_the_scripts_are_valid(name: str) -> None:
    assert scripts_in(name)
    for script in scripts_in(name):
        done = subprocess.run(
            ["bash", "-n"], input=script, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_the_readme_names_every_file() -> None:
    named = re.findall(r"\]\((.*?)\)", (LAUNCH / "README.md").read_text("utf-8"))
    assert sorted(named) == FILES


def test_pods_of_both_kinds_are_equal() -> None:
    (job,) = yaml.safe_load_all((LAUNCH / "kubeflow.yaml").read_text("utf-8"))
    replicas = job["spec"]["pytorchReplicaSpecs"]
    assert replicas["Master"] == replicas["Worker"]
    n_pods = sum(each["replicas"] for each in replicas.values())
    assert torchrun_line("kubeflow.yaml")[:2] == ["--nnodes", str(n_pods)]


def test_slurm_signals_the_steps_and_requeues_the_job(tmp_path: Path) -> None:
    """With stand-ins for SLURM: the job is queued again only if its run asks for it."""
    for name, code in {
        "srun": '[ -z "$FOUND" ] || echo "$FOUND" > saved/x/1/requeue; exit 1',
        "scontrol": '[ "$1" = show ] && echo node1 || echo "$@" >> calls',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / name).chmod(0o755)
    text = (LAUNCH / "slurm.sh").read_text("utf-8")
    assert {"#SBATCH --requeue", "#SBATCH --signal=TERM@120"} <= {*text.splitlines()}
    asks = tmp_path / "saved" / "x" / "1" / "requeue"
    asks.parent.mkdir(parents=True)
    # The last one fails before it resumes: what its earlier start asked for is no longer valid.
    for found, calls in {"76": "", "77": "requeue 77\n", "": ""}.items():
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "77", "FOUND": found}
        env |= {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2"}
        (tmp_path / "calls").write_text("")
        done = subprocess.run(["bash", LAUNCH / "slurm.sh"], cwd=tmp_path, env=env, check=False)
        assert (done.returncode, (tmp_path / "calls").read_text()) == (1, calls)


@pytest.mark.parametrize(
    "name",
    [name if name == "slurm.sh" else pytest.param(name, marks=pytest.mark.slow) for name in FILES],
)
def test_the_torchrun_line_trains(name: str, tmp_path: Path) -> None:
    options, (script, *arguments) = on_this_machine(torchrun_line(name))
    more = ["--epochs", "1", "-d", "cpu", "--set", f"trainer.save_dir={tmp_path}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, script, *arguments, *more]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters:") == 1
    assert len([*tmp_path.glob("digits/*/checkpoints/step-*")]) == 1
