"""What may lie where a file is expected: each is made at a path."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest


def make_socket(path: Path) -> None:
    """Leave a socket behind; its path is relative, as it may have 108 letters at most."""
    with pytest.MonkeyPatch.context() as patch, socket.socket(socket.AF_UNIX) as one:
        patch.chdir(path.parent)
        one.bind(path.name)


STAND_INS: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": make_socket,
    "folder": Path.mkdir,
}
