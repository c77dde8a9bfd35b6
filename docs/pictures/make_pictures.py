"""Makes the pictures of README.md: a run's console and its report, as they are.

``python docs/pictures/make_pictures.py`` trains ``config/digits.yaml`` in a terminal and takes
pictures of what it prints and of ``report/index.html``. It needs chromium and takes a minute.
"""

from __future__ import annotations

import html
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
COLUMNS = 100
LIMIT = 150_000  # bytes of a picture
STYLE = """
body { margin: 0; background: #16181d; }
pre { margin: 0; padding: 18px 22px; color: #d8dce4; font: 13px/18px "DejaVu Sans Mono"; }
.b { font-weight: bold } .d { opacity: .6 }
.c31 { color: #ff7b72 } .c32 { color: #7ee787 } .c33 { color: #f2cc60 }
.c34 { color: #79c0ff } .c35 { color: #d2a8ff } .c36 { color: #76e3ea } .c90 { color: #8b949e }
"""


def run_in_terminal(words: list[str], cwd: Path) -> str:
    """Return what a command prints to a terminal, with its colours."""
    reader, writer = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    env |= {"COLUMNS": str(COLUMNS), "LINES": "50", "TERM": "xterm-256color"}
    # The progress bar, which moves, goes to stderr.
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, cwd=cwd, env=env, stdin=writer, stdout=writer, stderr=pipe)
    os.close(writer)
    printed = b""
    try:
        while chunk := os.read(reader, 65536):
            printed += chunk
    except OSError:  # on Linux, how a terminal ends
        pass
    errors = process.communicate()[1].decode()
    if process.returncode != 0:
        raise SystemExit(printed.decode() + errors)
    return printed.decode().replace("\r\n", "\n")


def to_html(text: str) -> str:
    """Return a page that looks as the terminal does."""
    parts = re.split(r"\x1b\[([\d;]*)m", text)
    body, is_open = "", False
    for number, part in enumerate(parts):
        if number % 2 == 0:
            body += html.escape(re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", part))
            continue
        body += "</span>" if is_open else ""
        codes = [code for code in part.split(";") if code.strip("0")]
        is_open = bool(codes)
        names = [{"1": "b", "2": "d"}.get(code, f"c{code}") for code in codes]
        body += f'<span class="{" ".join(names)}">' if is_open else ""
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><pre>{body}</pre>"


def photograph(page: Path, target: Path, width: int, height: int) -> None:
    """Save a picture of the top of a page, in few colours."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("chromium is not installed")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", f"--window-size={width},{height}"]
        command += [f"--screenshot={shot}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(shot) as image:
            few = image.convert("RGB").quantize(96, dither=Image.Dither.NONE)
            few.save(target, optimize=True)
    size = target.stat().st_size
    print(f"{target.relative_to(ROOT)}: {width}x{height}, {size:,} bytes")
    if size > LIMIT:
        raise SystemExit(f"{target.name} is larger than {LIMIT:,} bytes")


def shorten(text: str) -> str:
    """Return the text without the epochs from 5 to the last but two.

    Hints on speed are left out: they depend on what else the machine does.
    """
    lines = [line for line in text.rstrip().splitlines() if not line.startswith("faster:")]
    plain = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines]
    epochs = [n for n, line in enumerate(plain) if re.match(r" +\d+ ", line)]
    middle = epochs[4:-2]
    shown = [line for n, line in enumerate(lines) if n not in range(middle[0], middle[-1] + 1)]
    shown.insert(middle[0], "...")
    return "\n".join(shown)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "project")
        made = [sys.executable, str(ROOT / "new_project.py"), str(folder)]
        subprocess.run(made, check=True, capture_output=True)
        words = ["train.py", "-c", "config/digits.yaml"]
        printed = run_in_terminal([sys.executable, *words], folder)
        text = f"$ python {' '.join(words)}\n{shorten(printed)}"
        page = folder / "console.html"
        page.write_text(to_html(text), encoding="utf-8")
        height = 36 + 18 * len(text.splitlines())
        photograph(page, FOLDER / "console.png", 44 + 8 * COLUMNS, height)
        for report in folder.glob("saved/*/*/report/index.html"):
            photograph(report, FOLDER / "report.png", 1000, 1345)


if __name__ == "__main__":
    main()
