"""Prints the help of a command and of its subcommands as JSON, without running it.

``python docs/site/help_texts.py train.py`` or ``... -m base.checkpoint``.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from typing import Any, NoReturn


class Found(BaseException):
    """The command's parser was reached. Not an Exception, so that no command handles it."""


def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
    raise Found(parser)


def parser_of(words: list[str]) -> argparse.ArgumentParser:
    """Return the parser that a command makes."""
    argparse.ArgumentParser.parse_args = stop  # type: ignore[method-assign, assignment]
    sys.argv, sys.path[0] = [words[-1], "--help"], "."
    try:
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    except Found as found:
        parser: argparse.ArgumentParser = found.args[0]
        return parser
    raise SystemExit(f"{' '.join(words)} does not use argparse")


def texts(parser: argparse.ArgumentParser, name: str = "") -> dict[str, str]:
    """Return the help of a parser as "", and of each subcommand by its name."""
    found = {name: parser.format_help().strip()}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each, sub in action.choices.items():
                found |= texts(sub, f"{name} {each}".strip())
    return found


if __name__ == "__main__":
    print(json.dumps(texts(parser_of(sys.argv[1:]))))
