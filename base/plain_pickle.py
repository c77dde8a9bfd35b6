"""Pickles read as data: a machine that makes numbers, text, containers and tensors, no objects.

No name in a file is looked up or called. What it names is kept as an `Opaque`, a name and no more;
what is done to one has no effect, except that a handful of names mean a container or a tensor.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from math import prod
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from base.errors import CheckpointError

MAX_DEPTH = 64
MAX_DIMS = 64  # of a tensor, as in torch
MAX_REPEATS = 1 << 22  # of items that a pickle writes once and puts in many places
KEYS = (str, int, float, bool, type(None))
# fmt: off
PUSHED = frozenset((
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING",
    "SHORT_BINSTRING",
))
MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Opaque("builtins set"),
}
# What takes operands off the stack: how many, or None for all that came after the last mark.
OPERANDS = {
    "POP": 1, "POP_MARK": None, "BUILD": 1, "TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3,
    "APPEND": 1, "APPENDS": None, "SETITEM": 2, "SETITEMS": None, "STACK_GLOBAL": 2,
    "ADDITEMS": None, "FROZENSET": None, "BINPERSID": 1, "REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3,
}
STORAGES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool, "Untyped": torch.uint8,
    "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}
# fmt: on
DTYPES = {f"torch {n}": kind for n, kind in vars(torch).items() if isinstance(kind, torch.dtype)}
# What torch may call to make what we check no further: other layouts, devices, complex numbers.
CALLED = ("torch._utils _rebuild_sparse_", "torch.serialization _get_layout", "torch device")


class Opaque:
    """What a file names beside tensors and plain data: ``module name``."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Storage(NamedTuple):
    """The numbers behind tensors: how many bytes, and where they are (None: not wanted)."""

    dtype: torch.dtype
    n_bytes: int
    memory: Tensor | None


# Called with the key and the number of bytes of a storage; it refuses those that are not there.
OpenStorage = Callable[[str, int], Tensor | None]


def read_pickle(
    file: BinaryIO, open_storage: OpenStorage, allows: Callable[[str], Any] | None = None
) -> Any:
    """Return what the next pickle in a file holds; the file then stands behind it.

    With ``allows``, a name that it refuses, and a key that is no text or number, raise.
    """
    machine = _Machine(open_storage, allows)
    read = machine.run(file)
    # What stands in many places is counted in each, as whoever walks through it will meet it.
    level, n_items = [read], 0
    for _ in range(MAX_DEPTH + 1):
        level = [item for value in level for item in _items(value) if _items(item)]
        n_items += sum(map(len, map(_items, level)))
        if n_items > machine.n_read + MAX_REPEATS:
            raise CheckpointError("refused: it unfolds to far more than its size")
    if level:
        raise CheckpointError(f"refused: it is nested deeper than {MAX_DEPTH}, or within itself")
    return read


def _items(value: Any) -> Any:
    return value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()


def is_key(value: Any) -> bool:
    """Tell whether a value may be a key; of larger numbers many have one hash: a trap."""
    return type(value) in KEYS and not (type(value) is int and value.bit_length() > 64)


class _Machine:
    """The stack on which a pickle is read."""

    def __init__(self, open_storage: OpenStorage, allows: Callable[[str], Any] | None) -> None:
        self.open_storage, self.allows = open_storage, allows
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.n_read = self.n_copied = 0  # opcodes; items of containers given to what is called

    def run(self, file: BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            self.n_read += 1
            if name in PUSHED:
                self.stack.append(argument)
            elif name in MADE:
                self.stack.append(MADE[name]())
            elif name in OPERANDS:
                ACTIONS[name](self, self.take(OPERANDS[name]))
            elif name == "GLOBAL":
                self.name(str(argument))
            elif name == "MARK":
                self.marks.append(len(self.stack))
            else:
                self.remember(name, argument)
        return self.take(1)[0]

    def remember(self, name: str, argument: Any) -> None:
        """Keep the top of the stack in the memo, or fetch something from there."""
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if argument is None else argument] = self.top()
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise CheckpointError(f"refused: its pickle has a {name}, which no file of torch has")

    def take(self, count: int | None) -> list[Any]:
        """Take operands off the stack."""
        if count is None:
            start = self.marks.pop()
        else:
            start = len(self.stack) - count
            if start < (self.marks[-1] if self.marks else 0):
                raise CheckpointError("damaged: its pickle takes more than it has")
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise CheckpointError("damaged: its pickle takes more than it has")
        return self.stack[-1]

    def ignore(self, _: list[Any]) -> None:
        """Drop the operands: of an object's state nothing is kept."""

    def make_tuple(self, items: list[Any]) -> None:
        self.stack.append(tuple(items))

    def make_set(self, _: list[Any]) -> None:
        self.stack.append(Opaque("builtins frozenset"))

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Opaque:
            raise CheckpointError(f"damaged: it appends to a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) not in (dict, Opaque) or len(items) % 2:
            raise CheckpointError(f"damaged: it sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if is_key(key) and type(target) is dict:
                target[key] = value
            elif self.allows:  # else the entry is of no use to us
                raise CheckpointError(f"refused: a key in it is a {type(key).__name__}")

    def name(self, name: str) -> None:
        if self.allows and not self.allows(name):
            raise CheckpointError(f"refused: it names {name!r}, which is no plain data")
        self.stack.append(Opaque(name))

    def name_taken(self, parts: list[Any]) -> None:
        if {type(part) for part in parts} != {str}:
            raise CheckpointError("damaged: a name in it is no text")
        self.name(" ".join(parts))

    def call(self, operands: list[Any]) -> None:
        named, args = operands[:2]
        if type(named) is not Opaque or type(args) is not tuple:
            raise CheckpointError("damaged: it calls what is no name")
        make = CALLS.get(named.name)
        if self.allows and not make and not named.name.startswith((*CALLED, "__builtin__ complex")):
            raise CheckpointError(f"refused: it calls {named.name!r}, which is no plain data")
        if make or self.allows:
            # Each item was read once, so more copies than that make a bomb of a small file.
            self.n_copied += sum(len(each) for each in args if type(each) in (tuple, list, dict))
            if self.n_copied > self.n_read:
                raise CheckpointError("refused: it copies far more than its size")
        self.stack.append(make(self, *args) if make else named)

    def make_dict(self, pairs: Any = ()) -> dict[Any, Any]:
        """Return an OrderedDict's or a Counter's content as a dict, in its order."""
        items = pairs.items() if type(pairs) is dict else pairs
        return {key: value for key, value in items if is_key(key)}

    def fetch(self, operands: list[Any]) -> None:
        """Push the storage that a persistent id means, or the class that a ``module`` has."""
        (given,) = operands
        if type(given) is not tuple or len(given) < 2:
            raise CheckpointError("damaged: it refers to what is no storage")
        if given[0] == "module":
            self.stack.append(given[1])
            return
        kind, (_, named, key, _, count, *view) = given[0], given
        module, _, word = getattr(named, "name", "").rpartition(" ")
        dtype = STORAGES.get(word.removesuffix("Storage"))
        is_known = kind == "storage" and module in ("torch", "torch.cuda", "torch.storage")
        is_plain = view in ([], [None]) and type(key) is str and type(count) is int
        if dtype is None or not is_known or not is_plain or count < 0:
            raise CheckpointError(f"refused: a storage in it is of no known kind: {word!r}")
        n_bytes = count * dtype.itemsize
        self.stack.append(Storage(dtype, n_bytes, self.open_storage(key, n_bytes)))

    def make_tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        """Return the tensor, if it lies within its storage and is no larger than that."""
        return self.view(storage, offset, size, stride, getattr(storage, "dtype", None), *rest[2:])

    def make_typed_tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any
    ) -> Any:
        """Return a tensor whose storage knows no type: its name comes with it."""
        dtype = DTYPES.get(getattr(rest[2], "name", ""))
        return self.view(storage, offset, size, stride, dtype, *rest[3:])

    def view(
        self, storage: Any, offset: Any, size: Any, stride: Any, dtype: Any, metadata: Any = None
    ) -> Any:
        numbers = (offset, *size, *stride)
        is_plain = type(storage) is Storage and isinstance(dtype, torch.dtype) and not metadata
        are_numbers = all(type(n) is int and n.bit_length() <= 63 for n in numbers)
        if not is_plain or not are_numbers or len(size) != len(stride) or len(size) > MAX_DIMS:
            raise CheckpointError("refused: a tensor in it is of no known kind")
        n_held, n_asked = storage.n_bytes // dtype.itemsize, prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min(numbers) < 0 or n_asked > n_held or (n_asked and last >= n_held):
            raise CheckpointError(
                f"refused: a tensor of shape {size}, stride {stride} and offset {offset} does not "
                f"lie in its {n_held} numbers; save its `.contiguous()` where it is yours"
            )
        if storage.memory is None:
            return Opaque("a tensor")
        return storage.memory.view(dtype).as_strided(size, stride, offset)

    def take_data(self, data: Any, *_: Any) -> Any:
        return data


ACTIONS: dict[str, Callable[[_Machine, list[Any]], None]] = {
    **dict.fromkeys(("POP", "POP_MARK", "BUILD", "ADDITEMS"), _Machine.ignore),
    **dict.fromkeys(("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), _Machine.make_tuple),
    **dict.fromkeys(("APPEND", "APPENDS"), _Machine.append),
    **dict.fromkeys(("SETITEM", "SETITEMS"), _Machine.set_items),
    **dict.fromkeys(("REDUCE", "NEWOBJ", "NEWOBJ_EX"), _Machine.call),
    "FROZENSET": _Machine.make_set,
    "STACK_GLOBAL": _Machine.name_taken,
    "BINPERSID": _Machine.fetch,
}
CALLS: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": _Machine.make_dict,
    "collections Counter": _Machine.make_dict,
    "torch Size": _Machine.take_data,
    "torch._utils _rebuild_tensor": _Machine.make_tensor,
    "torch._utils _rebuild_tensor_v2": _Machine.make_tensor,
    "torch._utils _rebuild_tensor_v3": _Machine.make_typed_tensor,
    "torch._utils _rebuild_parameter": _Machine.take_data,
    "torch._utils _rebuild_parameter_with_state": _Machine.take_data,
}
