"""The scripts as processes of their own, forked from one that has imported torch already.

To import torch and its optimizers takes seconds, and these tests start many processes. Each is
otherwise what a shell starts: its own process group, `train.py` as `__main__`, its own exit code.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.util import Finalize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([
    "torch._dynamo", "torchvision", "base.names.construction", "base.training.run_log", "pytest",
    "faults.injections",
])  # fmt: skip


@dataclasses.dataclass
class Done:
    """What a process left: `returncode` is that of a shell's child, negative for a signal."""

    returncode: int
    stdout: str
    stderr: str


class Script:
    """A running `train.py` or `test.py`."""

    def __init__(
        self,
        args: Sequence[str | Path],
        cwd: Path,
        env: Mapping[str, str] | None = None,
        terminal: str | None = None,
        inject: Callable[[], object] | None = None,
    ) -> None:
        """Start it; `inject` is called there first, to prepare a fault."""
        self.output = [cwd / f".{name}-{time.monotonic_ns()}" for name in ("stdout", "stderr")]
        streams = [terminal or str(path) for path in self.output]
        words = [str(arg) for arg in args]
        given = (words, str(cwd), dict(env or {}), streams, inject)
        process = CONTEXT.Process(target=_run, args=given)
        process.start()
        assert process.pid is not None
        self.process, self.pid = process, process.pid

    def wait(self, seconds: float = 120) -> Done:
        """Wait for the end."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill()
            raise TimeoutError(f"no end after {seconds} s: {self.read()}")
        return Done(self.process.exitcode, *self.read())

    def wait_until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Wait until something is so; fail when the process ends before."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.exitcode is None, f"it ended: {self.read()}"
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"not so after {seconds} s")
            time.sleep(0.005)

    def signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to this process and its workers, as Ctrl-C in a terminal does."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it as kill -9 does, and its workers."""
        with suppress(ProcessLookupError):
            self.signal_group(signal.SIGKILL)
        self.process.join()

    def read(self) -> list[str]:
        """Return what it has printed so far: to stdout, and to stderr."""
        return [path.read_text("utf-8") if path.exists() else "" for path in self.output]


def _run(
    args: list[str],
    cwd: str,
    env: Mapping[str, str],
    streams: list[str],
    inject: Callable[[], object] | None,
) -> None:
    os.setsid()
    for number, name in enumerate(streams, start=1):
        opened = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    sys.argv[:] = [str(ROOT / args[0]), *args[1:]]
    sys.path[:] = [str(ROOT), *(path for path in sys.path if "tests" not in path)]
    # What the fork has inherited is not what a shell's child begins with.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    import base.data.workers

    # multiprocessing forgets in a child what was to be done at the end.
    Finalize(None, base.data.workers._kill_all, exitpriority=10)
    if inject is not None:
        inject()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
