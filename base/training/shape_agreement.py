"""Raises errors for outputs and targets whose shapes would broadcast, on the first batches.

``output - target`` of shapes (N, 1) and (N,) is a table of all pairs: torch raises no error, and
the model never learns. During the check every call of a torch function is intercepted. Tensors
computed from the output and from the target are tracked, and an elementwise function of both
requires equal shapes. Explicit broadcasting is allowed: a dimension that the code adds
(``target[:, None]``) or expands (``expand_as``).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from base.data.batch import CONTAINERS, tensors_in
from base.errors import ConfigError, Problem
from base.names.discovery import describe_error

# Elementwise losses of torch. The others (cross_entropy, nll_loss, ctc_loss, margins over classes,
# pairs and triples) take targets of another shape, or raise an error.
_LOSSES = frozenset((
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "gaussian_nll_loss",
    "hinge_embedding_loss", "huber_loss", "kl_div", "l1_loss", "mse_loss",
    "multilabel_margin_loss", "multilabel_soft_margin_loss", "poisson_nll_loss", "smooth_l1_loss",
    "soft_margin_loss",
))  # fmt: skip
# Elementwise losses that raise an error of their own for other shapes.
_STRICT = frozenset((
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "multilabel_margin_loss",
))  # fmt: skip
# Functions of two tensors, by name without underscores; Python adds a prefix `r` or `i`.
_COMPARISONS = frozenset((
    "sub", "subtract", "rsub", "isub", "eq", "ne", "lt", "le", "gt", "ge", "not_equal", "greater",
    "greater_equal", "less", "less_equal", "isclose", "allclose", "dist", "lerp",
))  # fmt: skip
_ARITHMETIC = frozenset((
    "add", "radd", "iadd", "mul", "rmul", "imul", "multiply", "div", "rdiv", "idiv", "divide",
    "truediv", "rtruediv", "itruediv", "true_divide", "floordiv", "rfloordiv", "floor_divide",
    "mod", "rmod", "fmod", "remainder", "pow", "rpow", "ipow", "power", "float_power", "maximum",
    "minimum", "fmax", "fmin", "max", "min", "and", "rand", "or", "ror", "xor", "rxor",
    "logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor", "where",
    "atan2", "arctan2", "hypot", "xlogy", "logaddexp", "addcmul", "addcdiv", "pairwise_distance",
    "cosine_similarity", "masked_fill", "masked_select",
))  # fmt: skip
_REDUCTIONS = frozenset((
    "all", "amax", "amin", "aminmax", "any", "argmax", "argmin", "count_nonzero", "logsumexp",
    "max", "mean", "median", "min", "mode", "nanmean", "nanmedian", "nansum", "norm", "prod",
    "quantile", "std", "sum", "var", "std_mean", "var_mean",
))  # fmt: skip
_RESHAPES = frozenset(("flatten", "ravel", "reshape", "reshape_as", "squeeze", "view", "view_as"))
_SPLITS = frozenset(("chunk", "iter", "select", "split", "tensor_split", "unbind"))
_EXPANSIONS = frozenset(("broadcast_tensors", "broadcast_to", "expand", "expand_as", "unsqueeze"))


class BroadcastError(ValueError):
    """An output and a target of different shapes would broadcast."""


class _Mark(NamedTuple):
    """The origin of a tensor.

    Args:
        is_target: whether it comes from the target, not from the output.
        shape: the shape of the whole output or target.
        is_explicit: whether the code added a dimension.
    """

    is_target: bool
    shape: tuple[int, ...]
    is_explicit: bool = False


class ShapeAgreement(TorchFunctionMode):
    """Tracks outputs and targets through torch and numpy functions, and compares their shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.called: dict[str, Any] = {}
        """The last result of each loss and metric, by its place in the config."""
        self._marks: Any = WeakIdKeyDictionary()
        self._is_active = False
        self._depth = 0  # of nested calls of the model, which is not checked

    @contextmanager
    def active(self) -> Iterator[None]:
        """Check each function that is called inside the block."""
        if self._is_active:
            yield
            return
        self._is_active = True
        # Compiled code cannot be intercepted; it runs eagerly here.
        is_loaded = "torch._dynamo.eval_frame" in sys.modules
        eager = torch.compiler.set_stance("force_eager") if is_loaded else nullcontext()
        try:
            with eager, self:
                yield
        finally:
            self._is_active = False

    def mark(self, value: Any, is_target: bool) -> None:
        """Mark the tensors of a nested value as outputs or targets."""
        for tensor in tensors_in(value):
            self._marks[tensor] = _Mark(is_target, tuple(tensor.shape))

    def of_step(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Wrap a trainer's step so that all tensors of its batch count as targets."""

        def call(batch: Any) -> Any:
            self.mark(batch, is_target=True)
            with self.active():
                return step(batch)

        return call

    def call(self, where: str, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
        """Call a loss or a metric with (output, target), and targets by keyword.

        Raises:
            ConfigError: the shapes would broadcast. It names both and the change to make.
        """
        try:
            with self.active():
                for value, is_target in zip(args[:2], (False, True), strict=False):
                    self.mark(value, is_target)
                self.mark(keywords, is_target=True)
                self.called[where] = function(*args, **keywords)
                return self.called[where]
        except BroadcastError as error:
            raise ConfigError([Problem(where, error_text(error))]) from error

    def call_function(
        self, where: str, function: Callable[..., Any], /, *args: Any, **keywords: Any
    ) -> Any:
        """Call a metric without state, which may use numpy; not all of numpy is intercepted."""
        value = self.call(where, function, *args, **keywords)
        if not keywords and _differs_once_reshaped(function, value, *args):
            text = _text(tuple(args[0].shape), tuple(args[1].shape), "in this metric")
            raise ConfigError([Problem(where, text)])
        return value

    @contextmanager
    def around_model(self, model: nn.Module) -> Iterator[None]:
        """Exclude the forward pass of the model, and mark its results as outputs."""
        ours = {id(module) for module in model.modules()}

        def enter(module: nn.Module, _: Any) -> None:
            self._depth += id(module) in ours

        def leave(module: nn.Module, _: Any, outputs: Any) -> None:
            self._depth -= id(module) in ours
            if id(module) in ours and not self._depth:
                self.mark(outputs, is_target=False)

        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(enter).remove)
            stack.callback(register_module_forward_hook(leave, always_call=True).remove)
            yield
        self._depth = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._depth:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        marked = [(each, mark) for each in _flat(args, kwargs) if (mark := self._mark_of(each))]
        if len(marked) > 1:
            _check(name, marked)
        result = func(*args, **kwargs)
        if not marked:
            return result
        if isinstance(result, np.ndarray):
            return _Array(result, marked[0][1])
        return self._propagate(name, args, kwargs, marked, result)

    def _mark_of(self, value: Any) -> _Mark | None:
        return self._marks.get(value) if isinstance(value, Tensor) else None

    def _propagate(
        self, name: str, args: Any, kwargs: Any, marked: list[tuple[Any, _Mark]], result: Any
    ) -> Any:
        """Mark the result of marked tensors if it has the same first dimension."""
        source = max((each for each, _ in marked), key=lambda each: each.dim())
        mark = _propagate_mark(name, args, kwargs, marked)
        if mark is not None:
            for tensor in [result] if isinstance(result, Tensor) else _tensors_of(result):
                is_kept = name in _RESHAPES or name == "getitem" or name == "cat"
                if tensor.dim() and (is_kept or tensor.shape[0] == source.shape[0]):
                    is_larger = tensor.dim() > source.dim()
                    is_explicit = mark.is_explicit or is_larger
                    self._marks[tensor] = mark._replace(is_explicit=is_explicit)
        return result


def _check(name: str, marked: list[tuple[Any, _Mark]]) -> None:
    """Raise BroadcastError for an output and a target that would broadcast."""
    output = next(((each, mark) for each, mark in marked if not mark.is_target), None)
    target = next(((each, mark) for each, mark in marked if mark.is_target), None)
    if output is None or target is None:
        return
    shapes, marks = (tuple(output[0].shape), tuple(target[0].shape)), (output[1], target[1])
    if shapes[0] == shapes[1] or () in shapes or not _can_broadcast(*shapes):
        return
    is_explicit = [mark.is_explicit for mark in marks]
    if name in _LOSSES:
        is_fault = not all(is_explicit)
    elif any(is_explicit) or shapes[0][0] != shapes[1][0]:  # one does not depend on the sample
        is_fault = False
    elif len(shapes[0]) != len(shapes[1]):
        is_fault = name in _COMPARISONS | _ARITHMETIC
    else:  # a factor of one channel or column is a mask or a weight
        is_whole = all(shape == mark.shape for shape, mark in zip(shapes, marks, strict=True))
        is_fault = name in _COMPARISONS and is_whole
    if is_fault:
        raise BroadcastError(_text(*shapes, f"in `{name}`", name in _STRICT))


def error_text(error: BroadcastError) -> str:
    """Return the message of an error, after the line of the project that raised it."""
    return describe_error(error).replace(f"{type(error).__name__}: ", "")


def _text(
    output: tuple[int, ...], target: tuple[int, ...], place: str, is_strict: bool = False
) -> str:
    """Return the message: both shapes, the shape they would broadcast to, and the fix."""
    both = tuple(np.broadcast_shapes(output, target))
    outcome = "must have the same shape" if is_strict else f"would broadcast to {both}"
    text = f"output {output} and target {target} {outcome} {place}: "
    if output == (*target, 1):
        text += "add a last dimension to the target (`ArrayFileDataset`: targets of shape (N, 1)), "
        return text + "or squeeze the model's output, `output.squeeze(-1)`"
    if target == (*output, 1):
        text += "drop the last dimension of the target (`targets[:, 0]` in your data), or add one "
        return text + "to the model's output, `output.unsqueeze(-1)`"
    text += f"give both the same shape{_fitting(output, target)}"
    if is_strict:
        return text
    if len(output) != len(target):
        return f"{text}; for all pairs, add a dimension explicitly, as in `output[:, None]`"
    small, large = ("output", "target") if output != both else ("target", "output")
    return f"{text}; if it is intended, write `{small}.expand_as({large})`"


def _fitting(output: tuple[int, ...], target: tuple[int, ...]) -> str:
    """Return the change that makes shapes equal if they differ by one dimension of size 1."""
    short, long = sorted((output, target), key=len)
    names = ("target", "output") if long == output else ("output", "target")
    for axis in range(len(long)):
        if long[axis] == 1 and (*long[:axis], *long[axis + 1 :]) == short:
            return f": `{names[0]}.unsqueeze({axis})`, or `{names[1]}.squeeze({axis})`"
    return ""


def _can_broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(one), reversed(other), strict=False))


def _propagate_mark(
    name: str, args: Any, kwargs: Any, marked: list[tuple[Any, _Mark]]
) -> _Mark | None:
    """Return the mark of a function's result; None if its rows are no longer samples."""
    is_indexed = name == "getitem" and marked[0][0] is args[0]
    mark = marked[0][1] if is_indexed else _merge_marks([mark for _, mark in marked])
    mark = mark._replace(is_explicit=mark.is_explicit or name in _EXPANSIONS)
    if name in _SPLITS:
        return None
    if name == "getitem":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        if index and isinstance(index[0], int) and not isinstance(index[0], bool):
            return None
        return mark._replace(is_explicit=mark.is_explicit or any(one is None for one in index))
    is_pair = len(args) > 1 and isinstance(args[1], Tensor)
    if name in _REDUCTIONS and not is_pair:
        axes = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
        axes = [axes] if isinstance(axes, int) else axes
        if not axes or not isinstance(axes, (list, tuple)):
            return None
        rank = marked[0][0].dim()
        return None if any(axis % rank == 0 for axis in axes) else mark
    return mark


def _merge_marks(marks: Sequence[_Mark]) -> _Mark:
    """Return the mark of a function of several tensors; a difference counts as an output."""
    first = next((mark for mark in marks if not mark.is_target), marks[0])
    return first._replace(is_explicit=any(mark.is_explicit for mark in marks))


def _flat(args: Any, kwargs: dict[str, Any]) -> Iterator[Any]:
    """Yield the arguments of a function, including the elements of lists, as for `cat`."""
    for value in (*args, *kwargs.values()):
        yield from value if isinstance(value, (list, tuple)) else (value,)


def _tensors_of(result: Any) -> Iterator[Tensor]:
    return tensors_in(result) if isinstance(result, CONTAINERS) else iter(())


class _Array(np.ndarray):
    """An array marked as coming from the output or from the target."""

    mark: _Mark | None

    def __new__(cls, array: Any, mark: _Mark) -> _Array:
        marked: _Array = array.view(cls)
        marked.mark = mark
        return marked

    def __array_finalize__(self, former: Any) -> None:
        mark = getattr(former, "mark", None)
        if mark is not None and self.ndim > former.ndim:
            mark = mark._replace(is_explicit=True)
        self.mark = mark

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        marked = [(each, each.mark) for each in inputs if isinstance(each, _Array) and each.mark]
        if method == "__call__" and len(marked) > 1:
            _check(_NUMPYS.get(ufunc.__name__, ufunc.__name__), marked)
        plain = [_plain(each) for each in inputs]
        if "out" in kwargs:
            kwargs["out"] = tuple(_plain(each) for each in kwargs["out"])
        result = getattr(ufunc, method)(*plain, **kwargs)
        if method != "__call__" or not isinstance(result, np.ndarray) or not marked:
            return result
        return _Array(result, _merge_marks([mark for _, mark in marked]))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(func, types, args, kwargs)
        marks = [mark for each in _flat(args, kwargs) if (mark := getattr(each, "mark", None))]
        is_kept = func.__name__ in _JOINS and marks and isinstance(result, np.ndarray)
        return _Array(result, _merge_marks(marks)) if is_kept else result


_NUMPYS = {"equal": "eq", "subtract": "sub"}
_JOINS = frozenset(("append", "concatenate", "hstack", "vstack"))


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, _Array) else value


def _differs_once_reshaped(function: Any, value: Any, *args: Any) -> bool:
    """Return whether a function's value for mixed shapes differs from that for equal shapes."""
    if len(args) != 2 or not all(isinstance(each, Tensor) and each.dim() for each in args):
        return False
    output, target = args
    if output.shape == target.shape or output.numel() != target.numel():
        return False
    try:
        as_output = float(function(output, target.reshape(output.shape)))
        as_target = float(function(output.reshape(target.shape), target))
        mixed = float(value)
    except Exception:  # it accepts only these shapes
        return False
    return math.isclose(as_output, as_target, rel_tol=1e-4) and not math.isclose(
        mixed, as_output, rel_tol=1e-4
    )
