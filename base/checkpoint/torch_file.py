"""Files of ``torch.save``, loaded only by torch's own ``weights_only`` unpickler.

The checks here are cheap and run before or after it: an archive has torch's layout, the storages
together are no larger than the file, and the result is nested no deeper than a checkpoint.
"""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch._weights_only_unpickler import get_globals_in_pkl

from base.checkpoint.torch_archive import check_content
from base.errors import CheckpointError

MAX_DEPTH = 64
MAX_REPEATS = 1 << 22  # of items that a pickle references repeatedly
MEMBERS = re.compile(
    r"[^/\\]+/(data\.pkl|data/[0-9]+|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id)"
)
IS_FOLDER = 0x10  # an attribute by which torch reads nothing, and leaves memory as it is
ARCHIVE = b"PK\x03\x04"
BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of torch's magic number
PROTOCOL = (
    "refused: torch loads files of pickle protocol 2 safely, which it writes by default; save it "
    "again with `torch.save(weights, path)`"
)
N_PICKLES = 4  # at the start of such a file; the last one is the state


class _EqualToDict(type):
    """The class of `StandIn`: torch's unpickler sets items only if the type equals dict."""

    def __eq__(cls, other: object) -> bool:
        return other is dict or other is cls

    __hash__ = type.__hash__


class StandIn(list, metaclass=_EqualToDict):  # type: ignore[type-arg]
    """Replaces an object that is not a tensor or plain data, and stores only its name."""

    name = ""

    def __new__(cls, *_: object) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def _ignore(self, *_: object) -> None:
        """Ignore the content of the object."""

    __setstate__ = __setitem__ = append = extend = _ignore
    __eq__, __hash__ = object.__eq__, object.__hash__  # type: ignore[assignment]


def stand_in_name(value: Any) -> str:
    """Return the name of the class that a `StandIn` replaces; "" for other values."""
    kind = value if isinstance(value, type) else type(value)
    return kind.name if issubclass(kind, StandIn) else ""


def load_torch_file(file: BinaryIO, *, is_verified: bool, allows_objects: bool) -> Any:
    """Load a file of `torch.save` with tensors on the CPU, without importing or calling any name.

    Args:
        is_verified: whether the caller has verified a hash; otherwise checksums are verified.
        allows_objects: replace objects that are not tensors or plain data with a `StandIn`, instead
            of refusing the file.

    Raises:
        CheckpointError: the file is damaged or would need more memory than its size.
    """
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    start = file.read(len(BEFORE_1_6))
    try:
        if start.startswith(ARCHIVE):
            pickles: BinaryIO = io.BytesIO(_pickle_in_archive(file, size, is_verified))
            named = get_globals_in_pkl(pickles)
        elif start == BEFORE_1_6:
            file.seek(0)
            pickles = file = io.BytesIO(file.read())  # without a descriptor torch does not try tar
            named = set().union(*(get_globals_in_pkl(pickles) for _ in range(N_PICKLES)))
        else:
            raise CheckpointError(_unknown_format(start))
        if "builtins.bytearray" in named:
            raise CheckpointError(
                "refused: it names 'bytearray', which can allocate memory of any size"
            )
        file.seek(0)
        budget = _Budget(size, fills=start == BEFORE_1_6)
        value = _load(file, budget, named if allows_objects else ())
    except CheckpointError:
        raise
    except Exception as error:  # torch raises many types for damaged files
        raise CheckpointError(_describe(error)) from None  # its messages suggest loading unsafely
    _check_bounds(value, size)
    return value


def _load(file: BinaryIO, budget: _Budget, named: Iterable[str]) -> Any:
    made = [(type("StandIn", (StandIn,), {"name": name}), name) for name in named]
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # about protocols and sparse invariants
        stack.enter_context(torch.sparse.check_sparse_tensor_invariants())
        stack.enter_context(torch.serialization.safe_globals(made))  # type: ignore[arg-type]
        return torch.load(file, map_location=budget, weights_only=True)


class _Budget:
    """A ``map_location`` that limits all storages together to the size of the file.

    Args:
        fills: zero each storage, as torch reads its content later, if the file has any.
    """

    def __init__(self, n_bytes: int, fills: bool) -> None:
        self.n_bytes = self.left = n_bytes
        self.fills = fills

    def __call__(self, storage: Any, _: str) -> Any:
        self.left -= storage.nbytes()
        if self.left < 0:
            raise CheckpointError(f"refused: its tensors need more than its {self.n_bytes} bytes")
        return storage.fill_(0) if self.fills else storage


def _pickle_in_archive(file: BinaryIO, size: int, is_verified: bool) -> bytes:
    """Return ``data.pkl``; refuse an archive without the layout that torch writes."""
    _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        folder = names[0].partition("/")[0] if names else ""
        if f"{folder}/constants.pkl" in names:
            raise CheckpointError("it is a TorchScript program: save only the `state_dict()`")
        for name in names:
            if not MEMBERS.fullmatch(name) or not name.startswith(f"{folder}/"):
                raise CheckpointError(f"refused: torch.save does not write a member {name[:99]!r}")
        if len(set(names)) < len(names):
            raise CheckpointError("refused: two of its members have the same name")
        if f"{folder}/data.pkl" not in names:
            raise CheckpointError("it is an archive, but not of torch.save")
        if not all(map(_is_stored, members)) or sum(each.file_size for each in members) > size:
            raise CheckpointError("refused: it would unpack to more than its size")
        if not is_verified:
            check_content(file, archive)
        return archive.read(f"{folder}/data.pkl")


def _is_stored(member: zipfile.ZipInfo) -> bool:
    """Return whether a member is an uncompressed file that states its size once."""
    extra = member.extra  # for members over 4 GiB: one field with the sizes
    is_one_size = not extra or (
        extra[:2] == b"\1\0" and len(extra) == 4 + extra[2] + 256 * extra[3]
    )
    is_plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
    is_plain &= not member.external_attr & IS_FOLDER
    return is_plain and is_one_size and member.compress_size == member.file_size


def _check_end(file: BinaryIO, size: int) -> None:
    """Refuse an archive in which zipfile and torch's reader may find different directories.

    The file has a single directory, right before the end records. If these repeat their values in
    64 bits, as torch writes them, both must agree.
    """
    file.seek(-min(size, 98), os.SEEK_END)
    tail = file.read()
    if len(tail) < 98 or tail[-22:-18] != b"PK\5\6":
        raise CheckpointError("damaged: it is truncated")
    *_, n_here, n_members, length, start, comment = struct.unpack("<4s4H2IH", tail[-22:])
    n_end, stated = 22, (n_members, length, start)
    is_one = n_here == n_members and not comment
    if tail[-42:-38] == b"PK\6\7":
        fields = struct.unpack("<4sQ2H2I4Q4sIQI", tail[:76])
        n_end, in_64 = 98, fields[7:10]
        limits = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        is_same = all(a in (b, limit) for a, b, limit in zip(stated, in_64, limits, strict=True))
        is_one &= is_same and fields[0] == b"PK\6\6" and fields[6] == fields[7]
        is_one &= fields[12] == size - n_end  # the offset of the 64-bit record
        stated = in_64
    if not is_one or stated[1] + stated[2] != size - n_end:
        raise CheckpointError("refused: its end records contradict each other")


def _check_bounds(value: Any, size: int) -> None:
    """Refuse values that contain themselves or expand to far more than the file when walked."""
    level: dict[int, tuple[Any, int]] = {id(value): (value, 1)}  # each object once, with its count
    n_items, storages = 0, dict[int, int]()
    for _ in range(MAX_DEPTH + 1):
        below: dict[int, tuple[Any, int]] = {}
        for each, times in level.values():
            for item in (items := _items(each)):
                if isinstance(item, torch.UntypedStorage | torch.storage.TypedStorage):
                    raise CheckpointError("refused: it holds a storage without a tensor")
                if isinstance(item, Tensor):
                    _check_tensor(item, storages)
                elif isinstance(item, dict | list | tuple):
                    below[id(item)] = (item, times + below.get(id(item), (None, 0))[1])
            n_items += times * len(items)
        if n_items > size + MAX_REPEATS:
            raise CheckpointError("refused: it expands to far more than its size")
        if sum(storages.values()) > size:
            raise CheckpointError(f"refused: its tensors need more than its {size} bytes")
        if not below:
            return
        level = below
    raise CheckpointError(f"refused: it is nested deeper than {MAX_DEPTH}, or within itself")


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        if getattr(value, "__dict__", {}).keys() - {"_metadata"}:  # such as `values`
            raise CheckpointError("refused: a dict in it has attributes")
        return [*dict.keys(value), *dict.values(value)]
    return value if type(value) in (list, tuple) else ()


def _check_tensor(tensor: Tensor, storages: dict[int, int]) -> None:
    if kind := unsupported_kind(tensor):
        raise CheckpointError(f"refused: a tensor in it is {kind}")
    if any(hasattr(Tensor, name) for name in vars(tensor)):
        raise CheckpointError("refused: a tensor in it overrides methods")
    if tensor.layout is not torch.strided:
        for part in _parts(tensor):
            _check_tensor(part, storages)
        return
    storage = tensor.untyped_storage()
    storages[storage.data_ptr()] = storage.nbytes()
    if tensor.nbytes > storage.nbytes():
        text = f"a tensor of shape {tuple(tensor.shape)} and stride {tensor.stride()}"
        raise CheckpointError(
            f"refused: {text} has {storage.nbytes()} bytes; if the file is yours, save its "
            "`.contiguous()`"
        )


def unsupported_kind(tensor: Tensor) -> str:
    """Return "meta", "quantized" or "nested" for tensors that are not saved or loaded; else ""."""
    if not (tensor.is_meta or tensor.is_quantized or tensor.is_nested):
        return ""
    return "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else "nested"


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    """Return the indices and the values of a sparse tensor."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    is_of_rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    names = ("crow_indices", "col_indices") if is_of_rows else ("ccol_indices", "row_indices")
    return [getattr(tensor, name)() for name in (*names, "values")]


def _unknown_format(start: bytes) -> str:
    """Return why a file that starts with these bytes is not loaded."""
    if not start:
        return "damaged: it is empty"
    if start[0] == 0x80 and start[1:2] > b"\2":
        return PROTOCOL
    return "it was not written by torch.save, or its start is damaged"


def _describe(error: Exception) -> str:
    """Return in one line why torch cannot load a file, without its advice to trust the file."""
    text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    if named := re.search(r"GLOBAL (\S+)", text):
        return f"refused: it names {named[1]!r}, which is not plain data"
    if StandIn.__name__ in text:  # torch 2.10 appends only to a list itself
        return (
            "it holds a deque or a subclass of list, which torch 2.10 does not load: update torch"
        )
    if "persistent_load of storage" in text:
        return "refused: it holds a whole model, or its class: save only the `state_dict()`"
    if "Unsupported operand" in text:
        return PROTOCOL
    line = next((each.strip() for each in text.splitlines() if each.strip()), "no reason given")
    if "weights_only" in line or "safe_globals" in line:
        line = "it holds values that torch's safe loader does not load"
    return f"torch cannot load it: {type(error).__name__}: {line[:200]}"
