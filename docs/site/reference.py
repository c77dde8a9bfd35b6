"""Writes the reference pages from the schema, the signatures and the commands' own help."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from base.config import schema
from base.config.fields import (
    ABSENT,
    REQUIRED,
    SAME_AS_TYPE,
    Either,
    Field,
    Key,
    ListOf,
    OneOrNamed,
    Scalar,
    Section,
)
from base.lazy_imports import exports
from base.names.listing import entries, first_line, shown_arguments
from base.names.registry import KINDS, NameFault

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = ("train.py", "test.py", "predict.py", "export.py", "new_project.py")
KIND_TEXTS = {
    "model": "`model:`, and layers within `Sequential` and other models",
    "init": "`init:`",
    "loss": "`loss:`",
    "metric": "`metrics:`",
    "data_loader": "`data_loader:`, `valid_data_loader:`, `test_data_loader:`",
    "dataset": "`dataset` of a `DatasetLoader`",
    "transform": "`transforms` of a `DatasetLoader`",
    "sampler": "`sampling` of a loader",
    "optimizer": "`optimizer:`",
    "lr_scheduler": "`lr_scheduler:`",
    "trainer": "`trainer: {type: ...}`",
    "callback": "`callbacks:`",
}


def pages() -> dict[str, str]:
    """Return the Markdown of each reference page, by its path in the site."""
    made = {
        "reference/config.md": config_page(),
        "reference/commands.md": commands_page(),
        "reference/python.md": python_page(),
    }
    made |= {f"reference/names/{kind}.md": names_page(kind) for kind in KINDS}
    return {"reference/names/index.md": kinds_page()} | made


def kinds_page() -> str:
    lines = ["# Names by kind", "", "The names that a config can use, by their kind.", ""]
    lines += [f"- [{kind}]({kind}.md): {text}" for kind, text in KIND_TEXTS.items()]
    return "\n".join([*lines, ""])


# The keys of a config.


def config_page() -> str:
    """Return a table of keys for each section of the schema, nested sections after their parent."""
    lines = [
        "# Config keys",
        "",
        "Every key of a config, its type, its default and its meaning.",
        "",
        "`python train.py -c FILE --print-config` prints each value of a config and where it was "
        "set. `[]` is an item of a list, and `NAME` a name of your choice. A **reference** such as "
        "`${trainer.epochs}` may stand in the place of any value.",
        "",
    ]
    for name, section in sections("", schema.ROOT):
        lines += [f"## {name or 'Top level'}", "", *_section_notes(section)]
        if section.keys:
            lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
            lines += [_row(name, key, each) for key, each in section.keys.items()]
        lines.append("")
    return "\n".join(lines)


def sections(name: str, section: Section) -> Iterator[tuple[str, Section]]:
    """Yield a section and all sections in it, each with its dotted path."""
    yield name, section
    inner = [(f"{name}.{key}".lstrip("."), each.field) for key, each in section.keys.items()]
    if isinstance(section.others, Section):
        inner.append((f"{name}.NAME", section.others))
    for path, field in inner:
        found, path = _section_in(field, path)
        if found is not None and _has_keys(found):
            yield from sections(path, found)


def _has_keys(section: Section) -> bool:
    """Return whether a section has keys that we define, at whatever depth."""
    return bool(section.keys) or isinstance(section.others, Section)


def _section_in(field: Field, path: str) -> tuple[Section | None, str]:
    if isinstance(field, ListOf):
        return _section_in(field.item, f"{path}[]")
    if isinstance(field, Either):
        return field.section, path
    return (field, path) if isinstance(field, Section) else (None, path)


def _section_notes(section: Section) -> list[str]:
    notes = []
    if section.exactly_one:
        notes.append(f"Exactly one of {_either(section.exactly_one)} is given.")
    if section.never_both:
        notes.append(f"{_either(section.never_both, 'and')} exclude each other.")
    notes += [f"`{old}` is an alias of `{new}`." for old, new in section.aliases.items()]
    if section.short:
        notes.append(f"Short form: {_words(section.short)} alone is `{section.short_key}`.")
    if section.names in KINDS:
        notes.append(f"Names: [{section.names}](names/{section.names}.md).")
    if section.others is schema.ANYTHING:
        notes.append("Any other key is an argument.")
    return [" ".join(notes), ""] if notes else []


def _either(keys: tuple[str, ...], word: str = "or") -> str:
    return f" {word} ".join(f"`{key}`" for key in keys)


def _words(short: tuple[str, ...]) -> str:
    return " or ".join({"string": "a text", "array": "a list"}.get(it, f"a {it}") for it in short)


def _row(section: str, name: str, key: Key) -> str:
    found, path = _section_in(key.field, f"{section}.{name}".lstrip("."))
    kind = _kind(key.field)
    if found is not None and _has_keys(found):
        kind = f"[{kind}](#{_anchor(path)})"
    return f"| `{name}` | {_cell(kind)} | {_cell(_default(key))} | {_cell(key.doc)} |"


def _kind(field: Field) -> str:
    if isinstance(field, Scalar):
        return field.expected
    if isinstance(field, ListOf):
        item = _kind(field.item)
        return f"{item}, or a list of them" if field.single else f"a list: {item}"
    if isinstance(field, Either):
        return f"{_kind(field.plain)}, or a section"
    if isinstance(field, OneOrNamed):
        return f"{_kind(field.item)}, a list of names, or a section of them"
    if isinstance(field, Section) and isinstance(field.others, Scalar):
        return f"a section, each value {_kind(field.others)}"
    return "a section" if isinstance(field, Section) else "any value"


def _default(key: Key) -> str:
    words = {id(REQUIRED): "**required**", id(ABSENT): "", id(SAME_AS_TYPE): "its `type`"}
    if id(key.default) in words:
        return words[id(key.default)]
    is_text = isinstance(key.default, str)
    return f"`{key.default if is_text else json.dumps(key.default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# The names that a config can use.

_WRAPPED: Any = {"subsequent_indent": "    ", "break_long_words": False, "break_on_hyphens": False}


def names_page(kind: str) -> str:
    """Return every name of a kind with its arguments, grouped by where it is defined."""
    groups: dict[str, list[str]] = {}
    for name, named, origin in entries(kind):
        group = _group(origin)
        lines = groups.setdefault(group, [])
        lines += [f"### {name}", ""]
        if isinstance(named, NameFault):
            lines += [f"Cannot be used: {_markdown(str(named))}", ""]
            continue
        text = textwrap.fill(f"{name}({', '.join(shown_arguments(kind, named))})", 88, **_WRAPPED)
        lines += ["```python", text, "```", ""]
        text = _markdown(first_line(named))
        lines += [text, ""] if text else []
    title = kind.replace("_", " ").capitalize()
    lines = [f"# {title} names", "", f"What {KIND_TEXTS[kind]} can name."]
    lines += [
        "",
        "Arguments go under `args`; those without a default are required. "
        f"`python train.py --list {kind}` prints the same list, with the names of your project.",
        "",
    ]
    for group, body in groups.items():
        lines += [f"## {group}", "", *body]
    return "\n".join(lines)


def _group(origin: str) -> str:
    """Return the heading of an origin: a file of ours, or a package and its part."""
    if "/" in origin or origin.startswith("base."):
        return "Kindling"
    return ".".join(origin.split(".")[:2]) or "Others"


def _call(name: str, arguments: list[str], result: str = "") -> str:
    """Return a call in one line, or with an argument a line if it is long."""
    line = f"{name}({', '.join(arguments)}){result}"
    if len(line) <= 88:
        return line
    return "\n".join([f"{name}(", *(f"    {each}," for each in arguments), f"){result}"])


# The commands.


def commands_page() -> str:
    """Return the help of each command and of its subcommands, as it prints them."""
    lines = ["# Commands", "", "The options of each command, as its `--help` prints them.", ""]
    with ThreadPoolExecutor(2) as pool:  # each waits for a process
        found = list(pool.map(help_texts, commands()))
    for words, texts in zip(commands(), found, strict=True):
        command = f"python {' '.join(words)}"
        for part, text in texts.items():
            heading = f"### {command} {part}" if part else f"## {command}"
            lines += [heading, "", "```text", text, "```", ""]
    return "\n".join(lines)


def commands() -> list[list[str]]:
    """Return the words of each command: the scripts, and the modules that are commands."""
    scripts = [[name] for name in SCRIPTS if (ROOT / name).is_file()]
    modules = []
    for path in sorted((ROOT / "base").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if '\nif __name__ == "__main__":' in text and path.name != "shipped.py":
            parts = path.relative_to(ROOT).with_suffix("").parts
            modules.append(["-m", ".".join(parts).removesuffix(".__main__")])
    return scripts + modules


def help_texts(words: list[str]) -> dict[str, str]:
    """Return the help of a command and of its subcommands; without options, its docstring."""
    module = ROOT / f"{words[1].replace('.', '/')}.py" if words[0] == "-m" else ROOT / words[0]
    if not module.is_file():
        module = module.with_suffix("") / "__main__.py"
    source = module.read_text(encoding="utf-8")
    if "parse" not in source.lower():
        return {"": inspect.cleandoc(re.findall(r'^"""(.*?)"""', source, re.DOTALL)[0])}
    env = os.environ | {"COLUMNS": "88", "NO_COLOR": "1"}
    command = [sys.executable, str(Path(__file__).parent / "help_texts.py"), *words]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, encoding="utf-8", check=True
    )
    texts: dict[str, str] = json.loads(done.stdout)
    return texts


# What Python code imports.


def python_page() -> str:
    """Return the public names of ``base``, grouped by the room that defines them."""
    import base

    rooms: dict[str, list[str]] = {}
    for name, (module, _) in exports("base").items():
        lines = rooms.setdefault(".".join(module.split(".")[:2]), [])
        lines += [f"### {name}", "", *_documented(name, getattr(base, name))]
    lines = [
        "# From Python",
        "",
        "What `from base import ...` gives to `model/`, `data_loader/`, `trainer/` and scripts.",
        "",
    ]
    for room, body in sorted(rooms.items()):
        lines += [f"## {room}", "", *body]
    return "\n".join(lines)


def _documented(name: str, named: Any) -> list[str]:
    if not callable(named) and not isinstance(named, types.FunctionType):
        return [f"`{type(named).__name__}`: {_markdown(type(named).__doc__ or '')}", ""]
    lines = ["```python", _signature(name, named), "```", "", _markdown(named.__doc__ or ""), ""]
    for method, found in _methods(named) if isinstance(named, type) else ():
        lines += [f"#### {name}.{method}", ""]
        lines += ["```python", _signature(method, found), "```", "", _markdown(found.__doc__), ""]
    return lines


def _methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the public, documented methods that our classes define, in the order of their file."""
    seen: set[str] = set()
    for each in cls.__mro__:
        if not each.__module__.startswith(("base.", "logger.")):
            continue
        for name, member in vars(each).items():
            found = getattr(member, "__func__", member)
            is_shown = inspect.isfunction(found) and not name.startswith("_") and found.__doc__
            if is_shown and name not in seen:
                seen.add(name)
                yield name, found


def _signature(name: str, named: Any) -> str:
    try:
        parameters = inspect.signature(named)
    except (ValueError, TypeError):
        return name
    arguments = [_argument(each) for each in parameters.parameters.values() if each.name != "self"]
    result = parameters.return_annotation
    is_known = result is not inspect.Signature.empty and not isinstance(named, type)
    return _call(name, arguments, f" -> {_annotation(result)}" if is_known else "")


def _argument(parameter: inspect.Parameter) -> str:
    stars: dict[Any, str] = {
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    text = stars.get(parameter.kind, "") + parameter.name
    if parameter.annotation is not inspect.Parameter.empty:
        text += f": {_annotation(parameter.annotation)}"
    if parameter.default is inspect.Parameter.empty:
        return text
    shown = getattr(parameter.default, "__name__", repr(parameter.default))
    is_address = " object at 0x" in shown
    return f"{text} = {f'{type(parameter.default).__name__}()' if is_address else shown}"


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _markdown(docstring: str) -> str:
    """Return a docstring as Markdown: ``code``, ``Args:`` lists and indented blocks."""
    lines: list[str] = []
    for block in re.split(r"\n\n(?=\S)", inspect.cleandoc(docstring)):
        head, _, rest = block.partition("\n")
        if re.fullmatch(r"(Args|Raises|Returns|Yields|Attributes):", head):
            lines += [f"**{head.rstrip(':')}**", "", *_items(rest), ""]
        elif block.startswith(">>>"):
            lines += ["```python", block, "```", ""]
        else:
            lines += [*_paragraph(block), ""]
    return "\n".join(lines).strip()


def _items(text: str) -> list[str]:
    found = re.split(r"\n(?=\S)", inspect.cleandoc(text))
    joined = [" ".join(each.split()) for each in found]
    return [
        "- " + _escape(re.sub(r"^([\w*, .]+?)( \([^)]*\))?: ", r"``\1``\2: ", each))
        for each in joined
    ]


def _paragraph(block: str) -> list[str]:
    """Return a paragraph, and what ``::`` introduces as code."""
    text, mark, code = block.partition("::\n")
    if not mark:
        return [_escape(block)]
    return [f"{_escape(text)}:", "", "```python", inspect.cleandoc(code), "```"]


def _escape(text: str) -> str:
    """Return text in which only what stands in backticks is markup."""
    parts = re.split(r"(``.+?``|`[^`]+`)", text, flags=re.DOTALL)
    return "".join(
        f"`{part.strip('`')}`" if number % 2 else re.sub(r"([*_<\[\]])", r"\\\1", part)
        for number, part in enumerate(parts)
    )
