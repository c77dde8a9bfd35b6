"""Reads the arguments of a class or function from its signature."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Callable
from inspect import Parameter
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from base.config.references import has_reference

# The leading arguments, which Kindling passes itself. A config must not give them.
INJECTED = {"optimizer": "params", "lr_scheduler": "optimizer", "trainer": "experiment"}
# Arguments that Kindling computes from the length of the run if a config omits them.
FILLED_IN = {"OneCycleLR": ("total_steps",), "CosineAnnealingLR": ("T_max",)}
# Arguments of torch's schedulers that may be durations.
DURATION_ARGUMENTS = frozenset((
    "T_0", "T_max", "milestones", "total_iters", "total_steps",
    "step_size", "step_size_up", "step_size_down",
))  # fmt: skip

_MEANINGS = {
    "int": ("a whole number", "integer", (int,)),
    "float": ("a number", "number", (int, float)),
    "bool": ("true or false", "boolean", (bool, int)),
    "str": ("a text", "string", (str,)),
    "None": ("null", "null", (type(None),)),
    "Tensor": ("a list of numbers", "array", (list,)),
}


_SHOWN = (str, int, float, bool, list, tuple, dict, type(None))


class Signature(NamedTuple):
    """The arguments that a config may give, and those that it must give.

    Args:
        is_open: whether any other argument is accepted too.
        injected: the arguments that Kindling passes.
        durations: the arguments of a scheduler that may be written as ``2 epochs``.
    """

    parameters: dict[str, Parameter]
    required: tuple[str, ...]
    injected: tuple[str, ...]
    is_open: bool
    durations: frozenset[str] = frozenset()


def signature(kind: str, named: Any) -> Signature:
    """Return the valid ``args`` in a config for a class or function of this kind."""
    if isinstance(named, type):
        parameters, inherited, is_open = _of_class(named)
    elif inspect.isroutine(named) or not hasattr(named, "forward"):
        parameters, inherited, is_open = _of_function(named)
    else:
        parameters, inherited, is_open = {}, set(), False  # a module instance
    injected: tuple[str, ...] = ()
    if kind in INJECTED:
        injected = (INJECTED[kind],) if INJECTED[kind] in parameters else tuple(parameters)[:1]
    elif kind in ("loss", "metric", "init", "function") and not isinstance(named, type):
        # Called with data: (tensor), or (output, target) and values that a user's trainer adds.
        by_position = [n for n, it in parameters.items() if it.kind is not Parameter.KEYWORD_ONLY]
        injected = tuple(by_position[: 2 if kind in ("loss", "metric") else 1])
        inherited = set(parameters)
    filled_in = FILLED_IN.get(getattr(named, "__name__", ""), ())
    required = tuple(
        name
        for name, parameter in parameters.items()
        if parameter.default is Parameter.empty and name not in {*injected, *inherited, *filled_in}
    )
    allowed = {name: each for name, each in parameters.items() if name not in injected}
    durations = _durations(named) if kind == "lr_scheduler" else frozenset[str]()
    return Signature(allowed, required, injected, is_open, durations)


def _durations(named: Any) -> frozenset[str]:
    """Return the arguments that may be durations: torch's lengths and users' integers."""
    own: dict[str, Parameter] = {}
    classes = named.__mro__ if isinstance(named, type) else ()
    for each in [vars(one).get("__init__") for one in classes] or [named]:
        if inspect.isfunction(each) and not each.__module__.startswith("torch."):
            own = {**inspect.signature(each).parameters, **own}
    whole = (name for name, each in own.items() if takes_whole_numbers(each.annotation))
    return DURATION_ARGUMENTS | frozenset(whole)


def takes_whole_numbers(annotation: Any) -> bool:
    """Return whether an annotation consists only of int, None and lists of int."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation is int
    words = {word.rpartition(".")[2] for word in re.findall(r"[A-Za-z_][\w.]*", str(annotation))}
    return "int" in words and words <= _WHOLE_NUMBERS


_WHOLE_NUMBERS = {"int", "None", "NoneType", "Optional", "Union", "list", "List", "Sequence"}
_WHOLE_NUMBERS |= {"tuple", "Tuple", "Iterable"}


def value_fault(parameter: Parameter, value: Any) -> str:
    """Return the fault of a value by simple annotations, or ""."""
    members = simple_types(parameter.annotation)
    if not members or type(value) is type(parameter.default) or has_reference(value):
        return ""
    if "Tensor" in members and type(value).__name__ in ("Tensor", "Parameter", "ndarray"):
        return ""
    for member in members:
        is_number_for_bool = isinstance(value, bool) and member in ("int", "float")
        if isinstance(value, _MEANINGS[member][2]) and not is_number_for_bool:
            return ""
    found = repr(value) if isinstance(value, _SHOWN) else f"a {type(value).__name__}"
    expected = " or ".join(_MEANINGS[member][0] for member in members if member != "None")
    return f"expected {expected}, found {found}"


def needed_arguments(function: Callable[..., Any]) -> list[str]:
    """Return the required arguments; empty for a function without a signature."""
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        return []
    is_free = (each.default is Parameter.empty and each.kind not in several for each in parameters)
    return [each.name for each, free in zip(parameters, is_free, strict=True) if free]


def takes_modules(parameter: Parameter) -> bool:
    """Return whether an argument is annotated as a module, or as a list or dict of modules."""
    text = str(parameter.annotation)
    is_module = re.search(r"\bnn\.(modules\.module\.)?Module\b|\bTransformer\w+Layer\b", text)
    return bool(is_module) and "type[" not in text


def simple_types(annotation: Any) -> list[str]:
    """Return the members of an annotation of only int, float, bool, str, None and Tensor."""
    if get_origin(annotation) in (Union, types.UnionType):
        members = [getattr(member, "__name__", "?") for member in get_args(annotation)]
    elif isinstance(annotation, str):
        text = re.sub(r"^(?:typing\.)?Optional\[(.*)\]$", r"\1 | None", annotation.strip("'\""))
        members = [member.strip().removeprefix("torch.") for member in text.split("|")]
    else:
        members = [getattr(annotation, "__name__", "?")]
    members = ["None" if member == "NoneType" else member for member in members]
    return members if all(member in _MEANINGS for member in members) else []


def json_schema(kind: str, named: Any) -> dict[str, Any]:
    """Return a JSON Schema (draft 7) of ``args``."""
    takes = signature(kind, named)
    return {
        "type": "object",
        "properties": {
            name: _property(each, name in takes.durations)
            for name, each in takes.parameters.items()
        },
        "additionalProperties": takes.is_open,
        **({"required": list(takes.required)} if takes.required else {}),
    }


def _property(parameter: Parameter, may_be_duration: bool) -> dict[str, Any]:
    members = [_MEANINGS[member][1] for member in simple_types(parameter.annotation)]
    if members and may_be_duration:
        members.append("string")
    default = parameter.default
    if members and default is None:
        members.append("null")
    shape: dict[str, Any] = {"type": sorted(set(members))} if members else {}
    if len(shape.get("type", ())) == 1:
        shape["type"] = members[0]
    if isinstance(default, (int, float, str, bool, type(None))):
        shape["default"] = default
    return shape


def _of_function(function: Any) -> tuple[dict[str, Parameter], set[str], bool]:
    try:
        parameters, rest = _split(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # a builtin without a signature
        return {}, set(), True
    if rest and (function.__module__ or "").startswith("torchvision."):
        returned = get_type_hints(function).get("return")
        if isinstance(returned, type):
            of_class, _, is_open = _of_class(returned)
            # The builder passes those without a default itself: blocks, layers.
            more = {name: it for name, it in of_class.items() if it.default is not it.empty}
            return {**more, **parameters}, set(), is_open
    return parameters, set(), bool(rest)


def _of_class(cls: type[Any]) -> tuple[dict[str, Parameter], set[str], bool]:
    """Collect the parameters of ``__init__`` and, via ``**kwargs``, of its base classes."""
    parameters: dict[str, Parameter] = {}
    inherited: set[str] = set()
    rest = ""
    for base in cls.__mro__[:-1]:
        if "__new__" in vars(base) and base.__module__ != "typing" and not parameters:
            return {}, set(), True
        init = vars(base).get("__init__")
        if init is None or (base.__module__ == "torch.nn.modules.module" and not rest):
            continue
        try:
            own, rest = _split(list(inspect.signature(init).parameters.values())[1:])
        except (ValueError, TypeError):
            return parameters, inherited, True
        if init is not cls.__init__:  # the class may pass these itself
            inherited |= set(own) - set(parameters)
        parameters = {**own, **parameters}
        if not rest or not _passes_on(init, rest):
            break
    return parameters, inherited, bool(rest)


def _split(parameters: Any) -> tuple[dict[str, Parameter], str]:
    """Return the parameters that can be passed by name, and the name of ``**kwargs``."""
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    named = {each.name: each for each in parameters if each.kind not in several}
    rest = [each.name for each in parameters if each.kind is Parameter.VAR_KEYWORD]
    return named, rest[0] if rest else ""


def _passes_on(init: Callable[..., None], rest: str) -> bool:
    """Return whether ``**kwargs`` are used only to call another ``__init__``."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(init)))
    except (OSError, TypeError, SyntaxError):
        return False
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == rest]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    inits = [call for call in calls if getattr(call.func, "attr", "") == "__init__"]
    passed = [word.value for call in inits for word in call.keywords if word.arg is None]
    return bool(passed) and all(use in passed for use in uses)
