"""The scripts as processes of their own, forked from one that has imported torch already.

To import torch and its optimizers takes seconds, and these tests start many processes. Each is
otherwise what a shell starts: its own process group, `train.py` as `__main__`, its own exit code.
A test of start-up, of imports or of the picture of the curves needs a fresh process instead, which
the fixture `run_cli` starts.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import multiprocessing.forkserver
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
CONTEXT.set_forkserver_preload(["preloaded"])


def start_server() -> None:
    """Start the process that is forked, if it is not running yet.

    Before Python 3.12.8 it ignores `sys.path`, and finds modules by PYTHONPATH alone.
    """
    former = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), former or ""])
    multiprocessing.forkserver.ensure_running()
    os.environ.pop("PYTHONPATH") if former is None else os.environ.update(PYTHONPATH=former)


def skip_syncs_and_pictures() -> None:
    """Skip what takes two thirds of a short run, and has tests of its own.

    The files of a test need not survive a power loss; faults/power.py records which files are
    synced, and when. tests/base/report/test_figures.py draws the curves, and so does each run
    that is started from a shell.
    """
    import base.run.session
    from logger.files import write_whole

    os.fsync = os.fstat  # type: ignore[assignment]  # fails for what is not open, as before
    base.run.session.write_curves = lambda folder: write_whole(
        folder / "report" / "curves.png", b""
    )


@dataclasses.dataclass
class Done:
    """What a process left: `returncode` is that of a shell's child, negative for a signal."""

    returncode: int
    stdout: str
    stderr: str


class Script:
    """A running `train.py` or `test.py`, or whatever follows `python`: a file, `-c` or `-m`."""

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
        start_server()
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
    os.environ.pop("PYTHONPATH")  # start_server's
    os.environ.pop("COLUMNS", None)  # set by readline, which pytest imports
    os.environ.update(env)
    time.tzset()
    os.chdir(cwd)
    # What the fork has inherited is not what a shell's child begins with.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    import base.data.workers

    # multiprocessing forgets in a child what was to be done at the end.
    Finalize(None, base.data.workers._kill_all, exitpriority=10)
    skip_syncs_and_pictures()
    if inject is not None:
        inject()
    try:
        _execute(args, [path for path in sys.path if "tests" not in path and path != str(ROOT)])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _execute(words: list[str], path: list[str]) -> None:
    """Run the words that follow `python`, as Python does."""
    first, *rest = words
    if first == "-c":
        code, *rest = rest
        sys.argv[:], sys.path[:] = [first, *rest], ["", str(ROOT), *path]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv[:], sys.path[:] = rest, ["", str(ROOT), *path]
        sys.modules.pop(rest[0], None)  # runpy warns of a module that is imported already
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        from base.names.discovery import set_project_root

        script = ROOT / first
        # A project of its own has a link to our base/.
        project = script.parent if (script.parent / "base").exists() else ROOT
        set_project_root(project)
        sys.argv[:], sys.path[:] = [str(script), *rest], [str(script.parent), str(project), *path]
        runpy.run_path(str(script), run_name="__main__")
