"""Trainings of two processes: forked with what torchrun's agent does, or started by a launcher."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from processes import ROOT, Done, Script
from torch.distributed import TCPStore
from workplace import Workplace

Fault = Callable[[], object]
# train.py in a process of its own: rank and attempt have their fault, and each step is noted.
SCRIPT = f"""
import os, pickle, sys, time
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import train
from base.config.command_line import run
if "RANK" in os.environ:
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    Path(f".pid-{{rank}}-{{attempt}}").write_text(str(os.getpid()))
    from faults.injections import NoteSteps
    from processes import skip_syncs_and_pictures
    skip_syncs_and_pictures()
    NoteSteps(Path(f".steps-{{rank}}-{{attempt}}"))()
    faults = pickle.loads(Path(".faults").read_bytes())
    faults.get((rank, attempt), lambda: None)()
run(train.main)
"""


class Ends(NamedTuple):
    """The exit code of the process that failed first (0 if none did), and all that was printed."""

    code: int
    text: str


class Ranks:
    """Processes of one training, and what torchrun's agent does for them.

    It holds the store in which they meet, and sends SIGTERM to the others when one has failed.
    """

    def __init__(
        self,
        place: Workplace,
        *args: str | Path,
        faults: Mapping[int, Fault] | None = None,
        size: int = 2,
    ) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        env = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
        env |= {"MASTER_PORT": self.store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
        self.scripts = []
        for rank in range(size):
            given = {name: str(value) for name, value in env.items()}
            given |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            fault = (faults or {}).get(rank)
            self.scripts.append(place.start("train.py", *args, inject=fault, **given))

    def wait(self, seconds: float = 60) -> Ends:
        """Wait for the end of all, for so many seconds together.

        Raises:
            TimeoutError: a process is left, which is killed.
        """
        end, codes = time.monotonic() + seconds, dict[int, int]()
        try:
            while len(codes) < len(self.scripts):
                for rank, script in enumerate(self.scripts):
                    code = script.process.exitcode
                    if code is not None and rank not in codes:
                        if code != 0 and not any(codes.values()):
                            self.signal(signal.SIGTERM)
                        codes[rank] = code
                if time.monotonic() > end:
                    raise TimeoutError(f"{codes} after {seconds} s: {self.text()}")
                time.sleep(0.02)
        finally:
            for script in self.scripts:
                script.kill()
        return Ends(next((code for code in codes.values() if code), 0), self.text())

    def signal(self, number: int) -> None:
        """Send a signal to all that have not ended."""
        for script in self.scripts:
            if script.process.exitcode is None:
                script.signal(number)

    def text(self) -> str:
        """Return what all have printed to stderr."""
        return "".join(script.read()[1] for script in self.scripts)


def run_ranks(
    place: Workplace, *args: str | Path, faults: Mapping[int, Fault] | None = None, size: int = 2
) -> Ends:
    """Start processes and wait for the end of all."""
    return Ranks(place, *args, faults=faults, size=size).wait()


class Launched:
    """Two processes that torchrun starts, or `-d cpu:2`.

    Args:
        faults: prepared in a process, by its rank and the number of the restart.
        restarts: the most restarts by torchrun; None lets `-d cpu:2` start the processes.
    """

    def __init__(
        self,
        place: Workplace,
        *args: str | Path,
        faults: Mapping[tuple[int, int], Fault] | None = None,
        restarts: int | None = 0,
    ) -> None:
        self.folder = place.folder
        self.script = place.folder / "faulty.py"
        self.script.write_text(SCRIPT)
        (place.folder / ".faults").write_bytes(pickle.dumps(dict(faults or {})))
        words: tuple[str | Path, ...] = (self.script, *args, "-d", "cpu:2")
        if restarts is not None:
            words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
            words += (f"--max-restarts={restarts}", self.script, *args, "-d", "cpu")
        self.launcher = Script(words, place.folder)

    def pid(self, rank: int, attempt: int = 0) -> int:
        """Wait for the process of a rank to begin; return its number."""
        path = self.folder / f".pid-{rank}-{attempt}"
        self.launcher.wait_until(lambda: path.exists() and path.read_text())
        return int(path.read_text())

    def steps(self, rank: int = 0, attempt: int = 0) -> list[tuple[int, float]]:
        """Return the steps that an attempt has made, each with the time of its end."""
        path = self.folder / f".steps-{rank}-{attempt}"
        if not path.exists():
            return []
        pairs = (line.split() for line in path.read_text().splitlines())
        return [(int(step), float(when)) for step, when in pairs]

    def attempts(self) -> int:
        """Return how often the processes were started."""
        return len([*self.folder.glob(".pid-0-*")])

    def wait(self, seconds: float = 90) -> Done:
        """Wait for the launcher to end."""
        try:
            return self.launcher.wait(seconds)
        finally:
            self.launcher.kill()
