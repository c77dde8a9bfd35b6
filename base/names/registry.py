"""Looks up names in a config among the classes and functions of the project, then of torch.

A config refers to a class or function at the top level of a file in ``model/``, ``data_loader/`` or
``trainer/`` by its name, without a decorator. Only the file that defines it is imported, so broken
or slow files beside it have no effect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from base.errors import ConfigError, Problem, nearest
from base.names.discovery import (
    Definition,
    is_shipped_definition,
    load,
    project_root,
    scan,
    set_project_root,
)
from base.names.kind_rules import CALLED_WITH, misfit
from base.names.shipped import FOLDERS
from base.names.stock_trainer import stock_trainers
from base.names.torch_names import SOURCES
from base.system.left_out import left_out_note

__all__ = ["find", "listed", "names", "project_root", "set_project_root"]  # and the names below

Named = TypeVar("Named")


class Place(NamedTuple):
    """The folders in which a project defines a kind, and the forms of its definitions."""

    folders: tuple[str, ...]
    forms: tuple[str, ...] = ("class", "function")


_CLASS, _ANY = ("class",), ("class", "function", "value")
_PLACES = {
    "model": Place(("model",), _ANY),
    "init": Place(("model",), ("function",)),
    "loss": Place(("model",), _ANY),
    "metric": Place(("model",), _ANY),
    "data_loader": Place(("data_loader",), _ANY),
    "dataset": Place(("data_loader",)),
    "transform": Place(("data_loader",)),
    "sampler": Place(("data_loader",)),
    "optimizer": Place(("model", "trainer")),
    "lr_scheduler": Place(("model", "trainer")),
    "trainer": Place(("trainer",), _CLASS),
    "callback": Place(("trainer",), _CLASS),
    "function": Place(FOLDERS, ("function", "value")),  # lr_lambda, collate_fn
}
# The files in which pytorch-template's train.py looks for models and loaders. As there, a builder
# function defined in or imported into such a file needs no decorator.
BUILDER_FILES = {
    "model": re.compile(r"model/(.*/)?(models?|__init__)\.py"),
    "data_loader": re.compile(r"data_loader/(.*/)?(data_?loaders?|__init__)\.py"),
}
KINDS = tuple(kind for kind in _PLACES if kind != "function")


class NameFault(ConfigError, LookupError):  # noqa: N818 -- as UnknownName, which is a promise
    """A name that cannot be used. The message gives the reason and a solution."""

    def __init__(self, message: str) -> None:
        super().__init__([Problem("", message)])


class UnknownName(NameFault):
    """A name that is not defined."""


class WrongKind(NameFault):
    """A name of something of another kind."""


class Registry:
    """The names of a kind that were registered with a decorator.

    >>> @MODELS.register("small-net")
    ... class SmallNet(BaseModel): ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.registered: dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Named], Named]:
        """Register the decorated class or function under a name, which must not be taken.

        The project's files may reuse a name from a file shipped with Kindling.
        """
        if not _is_plain(name):
            raise NameFault(f"{name!r} cannot be registered: choose a name such as 'small-net'")

        def keep(named: Named) -> Named:
            held = self.registered.get(name, named)
            holder = _identity(held)
            if holder != _identity(named):
                if is_shipped_definition(named) != is_shipped_definition(held):
                    self.registered[name] = held if is_shipped_definition(named) else named
                    return named
                text = f"{self.kind} {name!r} is already {holder}"
                raise NameFault(f"{text}; give {_identity(named)} another name")
            self.registered[name] = named
            return named

        return keep


MODELS, INITS, LOSSES, METRICS = (Registry(k) for k in ("model", "init", "loss", "metric"))
DATA_LOADERS, DATASETS = Registry("data_loader"), Registry("dataset")
TRANSFORMS, OPTIMIZERS = Registry("transform"), Registry("optimizer")
SAMPLERS = Registry("sampler")
LR_SCHEDULERS, TRAINERS, CALLBACKS = (Registry(k) for k in ("lr_scheduler", "trainer", "callback"))
_REGISTRIES = {name: it for name, it in vars().items() if isinstance(it, Registry)}
_REGISTERED = {registry.kind: registry.registered for registry in _REGISTRIES.values()}


def find(kind: str, name: str) -> Any:
    """Return the class, function or object of this kind named ``name``.

    Raises:
        UnknownName: it is not defined. The message lists similar names and the folders searched.
        NameFault: the name is malformed, defined twice or of another kind, or its file fails.
    """
    if not _is_plain(name):
        raise NameFault(
            f"{name!r} is not a valid name of a {kind}: give its last part, without a path or dots"
        )
    found = definition(kind, name)
    if found is not None:
        return _checked(kind, found)
    if name in _REGISTERED.get(kind, ()):
        return _REGISTERED[kind][name]
    torch_name = f"{name}_" if kind == "init" and not name.endswith("_") else name
    for source in SOURCES.get(kind, ()):
        member = source.get(torch_name)
        if member is not None:
            return member
    raise UnknownName(_unknown(kind, name))


def names(kind: str) -> list[str]:
    """Return all names, the project's first, without importing files of the project."""
    own = [each.name for each in listed(kind)] + list(_REGISTERED.get(kind, ()))
    behind = (name for source in SOURCES.get(kind, ()) for name in sorted(source.members()))
    return list(dict.fromkeys([*own, *behind]))


def listed(kind: str) -> list[Definition]:
    """Return the project's definitions of this kind, sorted by name."""
    return sorted(each for each in _candidates(kind) if _is_meant(kind, each))


def definition(kind: str, name: str) -> Definition | None:
    """Return the project's definition of this name for this kind, or None.

    Among several, precedence goes to the one that suits the kind (a loss in ``loss.py``), then to
    the project's files over files shipped with Kindling, then to the file that pytorch-template
    reads, such as ``model/model.py``.

    Raises:
        NameFault: the name is defined twice.
    """
    found = _rivals(kind, name)
    if len(found) > 1:
        found = [each for each in found if each.first_for == kind] or found
    if len(found) > 1:
        places = " and ".join(map(str, found))
        raise NameFault(f"{kind} {name!r} is defined twice, in {places}; rename one of them")
    return found[0] if found else None


def _rivals(kind: str, name: str) -> list[Definition]:
    """Return the candidate definitions of a name for this kind; a single one if unambiguous."""
    found = _candidates_named(kind, name)
    own = [each for each in found if not each.is_shipped]
    may_be_meant = [
        each
        for each in own
        if _is_meant(kind, each) or each.likely_kind == "function" or each.may_be_any
    ]
    found = may_be_meant or [each for each in found if _is_meant(kind, each)] or own or found
    if len(found) > 1:
        found = [each for each in found if _is_meant(kind, each)] or found
    return found


def overridden(kind: str, name: str) -> str:
    """Return the location of Kindling's definition of a project's name: ``in base.datasets``."""
    chosen = definition(kind, name)
    if chosen is None or chosen.is_shipped:
        return ""
    for each in _candidates_named(kind, name):
        if each.is_shipped and each.likely_kind in (kind, chosen.likely_kind):
            return f"at {each}"
    ours = (source for source in SOURCES.get(kind, ()) if source.module.startswith("base."))
    return next((f"in {source.module}" for source in ours if source.get(name)), "")


def override_note(kind: str, name: str) -> str:
    """Return a note on which of two definitions is used; empty if there is only one."""
    chosen = definition(kind, name)
    if aside := overridden(kind, name):
        return f"{kind} {name!r} is yours, {chosen}, not Kindling's {aside}"
    others = [str(each) for each in _rivals(kind, name) if each != chosen]
    return f"{kind} {name!r} is that of {chosen}, not {' or '.join(others)}" if others else ""


def _candidates_named(kind: str, name: str) -> list[Definition]:
    return [each for each in _candidates(kind) if each.name == name]


def _is_plain(name: Any) -> bool:
    is_word = isinstance(name, str) and name.replace("-", "_").isidentifier()
    return is_word and not name.startswith("_") and "__" not in name


def _identity(named: Any) -> str:
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', repr(named))}"


def _candidates(kind: str) -> Iterator[Definition]:
    """Yield the candidates of a kind: definitions in its folders, and registered ones."""
    if kind not in _PLACES:
        raise NameFault(f"no kind {kind!r}{nearest(kind, KINDS)}")
    for folder in FOLDERS:
        for each in scan(folder)[0]:
            if each.registry in _REGISTRIES:
                if _REGISTRIES[each.registry].kind == kind:
                    yield each
            elif folder in _PLACES[kind].folders and each.form in (*_PLACES[kind].forms, "import"):
                yield each


def _is_meant(kind: str, found: Definition) -> bool:
    if found.registry in _REGISTRIES:
        return True
    # Functions of other kinds need a decorator to count as builders.
    is_helper = found.form == "function" and kind not in CALLED_WITH
    return found.likely_kind == kind and not is_helper


def _checked(kind: str, found: Definition) -> Any:
    """Import a definition and check that it is of this kind."""
    try:
        named = load(found)
    except (ImportError, ConfigError) as error:
        # The file, or a file imported by trainer/__init__.py, may be from pytorch-template.
        is_trainer = found.folder == "trainer"
        if is_trainer and (faults := list(stock_trainers(project_root()))):
            raise NameFault("; ".join(faults)) from error
        if isinstance(error, ConfigError):
            raise
        raise NameFault(str(error)) from error
    is_marked = any(named is each for each in _REGISTERED.get(kind, {}).values())
    if kind in BUILDER_FILES and found.form != "import":
        files = [found.file] if found.is_shipped else [found.file, *found.imported_by]
        is_marked |= any(BUILDER_FILES[kind].fullmatch(file) for file in files)
    if fault := misfit(kind, named, is_marked, found.likely_kind == kind):
        raise WrongKind(f"{found}: {found.attribute!r} cannot be a {kind}: {fault}")
    return named


def _unknown(kind: str, name: str) -> str:
    places = [f"{folder}/" for folder in _PLACES[kind].folders]
    places += [source.place for source in SOURCES.get(kind, ())]
    text = f"there is no {kind} {name!r}{left_out_note()}{nearest(name, names(kind))}"
    text += f" (looked in {', '.join(places)}"
    text += f"; `python train.py --list {kind}` lists all)" if kind in KINDS else ")"
    broken = [each for folder in _PLACES[kind].folders for each in scan(folder)[1]]
    return text + (f"; not searched, as it does not parse: {', '.join(broken)}" if broken else "")
