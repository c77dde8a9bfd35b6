"""Builds the documentation as a site: ``make docs``. A warning is an error.

Everything that the site shows is in its folder: it can be opened without a server or a network.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]


def build(target: Path) -> int:
    """Build the site in a folder, which is made again; return the exit code of Sphinx."""
    from pages import gather
    from sphinx.cmd.build import main as sphinx

    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder)
        for path, text in gather().items():
            (staged / path).parent.mkdir(parents=True, exist_ok=True)
            (staged / path).write_text(text, encoding="utf-8")
        if (pictures := ROOT / "docs" / "pictures").is_dir():
            shutil.copytree(pictures, staged / "pictures", ignore=shutil.ignore_patterns("*.py"))
        shutil.rmtree(target, ignore_errors=True)
        options = ["-q", "-W", "--keep-going", "-d", str(staged / ".doctrees")]
        code: int = sphinx([*options, "-c", str(Path(__file__).parent), str(staged), str(target)])
    return code


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site"
    try:
        code = build(target)
    except FileNotFoundError as error:  # a link that leads nowhere
        sys.exit(str(error))
    print(f"{target}/index.html" if code == 0 else "the site has faults: see above", flush=True)
    sys.exit(code)
