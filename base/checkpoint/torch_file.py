"""Files of ``torch.save``, read by torch's own ``weights_only`` unpickler and nothing beside it.

What is checked here is cheap and comes before or after: an archive is laid out as torch lays it
out, all storages together are no larger than the file, and what was read is no deeper than we save.
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

from base.errors import CheckpointError

MAX_DEPTH = 64
MAX_REPEATS = 1 << 22  # of items that a pickle writes once and puts in many places
MEMBERS = re.compile(
    r"[^/\\]+/(data\.pkl|data/[0-9]+|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id)"
)
ARCHIVE = b"PK\x03\x04"
BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of torch's magic number
PROTOCOL = (
    "refused: torch reads safely what it writes by itself, in pickle protocol 2; save it again "
    "with `torch.save(weights, path)`"
)
N_NAMED = 4  # pickles of such a file that may name something: the fourth is the state


class _EqualToDict(type):
    """The class of `StandIn`: torch's unpickler sets items only of what it compares to dict."""

    def __eq__(cls, other: object) -> bool:
        return other is dict or other is cls

    __hash__ = type.__hash__


class StandIn(list, metaclass=_EqualToDict):  # type: ignore[type-arg]
    """What a file names beside tensors and plain data: the name, and nothing of what it held."""

    name = ""

    def __new__(cls, *_: object) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def _ignore(self, *_: object) -> None:
        """Do nothing: no content is kept."""

    __setstate__ = __setitem__ = append = extend = _ignore
    __eq__, __hash__ = object.__eq__, object.__hash__  # type: ignore[assignment]


def stands_for(value: Any) -> str:
    """Return the name that an object of a file had, or the name of a class itself; "" of data."""
    kind = value if isinstance(value, type) else type(value)
    return kind.name if issubclass(kind, StandIn) else ""


def load(file: BinaryIO, *, is_verified: bool, keeps_names: bool) -> Any:
    """Return what `torch.save` wrote, tensors on the CPU; no name in it is looked up or called.

    Args:
        is_verified: the caller has compared a hash; else an archive's checksums are compared.
        keeps_names: what the file names beside tensors and plain data is kept as a `StandIn`, not
            refused.

    Raises:
        CheckpointError: the file is damaged or asks for more than it holds; why, in one line.
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
            pickles = file = io.BytesIO(file.read())  # without a descriptor torch tries no tar
            named = set().union(*(get_globals_in_pkl(pickles) for _ in range(N_NAMED)))
        else:
            raise CheckpointError(_stranger(start))
        if "builtins.bytearray" in named:
            raise CheckpointError("refused: it names 'bytearray', which takes memory of any size")
        file.seek(0)
        budget = _Budget(size, fills=start == BEFORE_1_6)
        value = _load(file, budget, named if keeps_names else ())
    except CheckpointError:
        raise
    except Exception as error:  # torch raises some thirty kinds for a damaged file
        raise CheckpointError(_in_words(error)) from None  # its texts advise to load unsafely
    _must_be_bounded(value, size)
    return value


def _load(file: BinaryIO, budget: _Budget, named: Iterable[str]) -> Any:
    made = [(type("StandIn", (StandIn,), {"name": name}), name) for name in named]
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # on protocols, and on how sparse tensors are checked
        stack.enter_context(torch.sparse.check_sparse_tensor_invariants())
        stack.enter_context(torch.serialization.safe_globals(made))  # type: ignore[arg-type]
        return torch.load(file, map_location=budget, weights_only=True)


class _Budget:
    """Called by torch with each storage that it has made: all of them fit into the file.

    Args:
        fills: numbers are read later, if the file has any for a storage: till then they are 0.
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
    """Return ``data.pkl``; refuse an archive that is not laid out as torch does it."""
    _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        folder = names[0].partition("/")[0] if names else ""
        if f"{folder}/constants.pkl" in names:
            raise CheckpointError("it is a program of TorchScript: save the `state_dict()` alone")
        for name in names:
            if not MEMBERS.fullmatch(name) or not name.startswith(f"{folder}/"):
                raise CheckpointError(f"refused: torch.save writes no member {name[:99]!r}")
        if len(set(names)) < len(names):
            raise CheckpointError("refused: two of its members have one name")
        if f"{folder}/data.pkl" not in names:
            raise CheckpointError("it is an archive, but none of torch.save")
        if not all(map(_is_stored, members)) or sum(each.file_size for each in members) > size:
            raise CheckpointError("refused: it would unpack to more than its size")
        if not is_verified and (bad := archive.testzip()):
            raise CheckpointError(f"damaged: {bad} does not have its checksum")
        return archive.read(f"{folder}/data.pkl")


def _is_stored(member: zipfile.ZipInfo) -> bool:
    """Tell whether a member is not compressed, and states its size once."""
    extra = member.extra  # of one larger than 4 GiB: its sizes, in one field
    is_one_size = not extra or (
        extra[:2] == b"\1\0" and len(extra) == 4 + extra[2] + 256 * extra[3]
    )
    is_plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1
    return is_plain and is_one_size and member.compress_size == member.file_size


def _check_end(file: BinaryIO, size: int) -> None:
    """Refuse an archive in which zipfile and torch's reader may find different directories.

    There is one directory, right before the records of the end. Where these say again in 64 bits
    what they say in 32, as in each file of torch, both say the same.
    """
    file.seek(-min(size, 98), os.SEEK_END)
    tail = file.read()
    if len(tail) < 98 or tail[-22:-18] != b"PK\5\6":
        raise CheckpointError("damaged: it ends too soon")
    *_, n_here, n_members, length, start, comment = struct.unpack("<4s4H2IH", tail[-22:])
    n_end, said = 22, (n_members, length, start)
    is_one = n_here == n_members and not comment
    if tail[-42:-38] == b"PK\6\7":
        fields = struct.unpack("<4sQ2H2I4Q4sIQI", tail[:76])
        n_end, in_64 = 98, fields[7:10]
        limits = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        is_same = all(a in (b, limit) for a, b, limit in zip(said, in_64, limits, strict=True))
        is_one &= is_same and fields[0] == b"PK\6\6" and fields[6] == fields[7]
        is_one &= fields[12] == size - n_end  # where the record in 64 bits is
        said = in_64
    if not is_one or said[1] + said[2] != size - n_end:
        raise CheckpointError("refused: the records at its end contradict each other")


def _must_be_bounded(value: Any, size: int) -> None:
    """Refuse what has no end or unfolds to far more than its file, for whoever walks through it."""
    level: dict[int, tuple[Any, int]] = {id(value): (value, 1)}  # each once, and how often it is in
    n_items, storages = 0, dict[int, int]()
    for _ in range(MAX_DEPTH + 1):
        below: dict[int, tuple[Any, int]] = {}
        for each, times in level.values():
            for item in (items := _items(each)):
                if isinstance(item, torch.UntypedStorage | torch.storage.TypedStorage):
                    raise CheckpointError("refused: a storage in it is of no tensor")
                if isinstance(item, Tensor):
                    _check_tensor(item, storages)
                elif isinstance(item, dict | list | tuple):
                    below[id(item)] = (item, times + below.get(id(item), (None, 0))[1])
            n_items += times * len(items)
        if n_items > size + MAX_REPEATS:
            raise CheckpointError("refused: it unfolds to far more than its size")
        if sum(storages.values()) > size:
            raise CheckpointError(f"refused: its tensors need more than its {size} bytes")
        if not below:
            return
        level = below
    raise CheckpointError(f"refused: it is nested deeper than {MAX_DEPTH}, or within itself")


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        if getattr(value, "__dict__", {}).keys() - {"_metadata"}:  # `values`, say: what walks
            raise CheckpointError("refused: a dict in it has attributes")
        return [*dict.keys(value), *dict.values(value)]
    return value if type(value) in (list, tuple) else ()


def _check_tensor(tensor: Tensor, storages: dict[int, int]) -> None:
    odd = [kind for kind in ("meta", "quantized", "nested") if getattr(tensor, f"is_{kind}")]
    if odd or any(hasattr(Tensor, name) for name in vars(tensor)):
        text = f"a tensor in it is {odd[0]}" if odd else "a tensor in it has methods of its own"
        raise CheckpointError(f"refused: {text}")
    if tensor.layout is not torch.strided:
        for part in _parts(tensor):
            _check_tensor(part, storages)
        return
    storage = tensor.untyped_storage()
    storages[storage.data_ptr()] = storage.nbytes()
    if tensor.nbytes > storage.nbytes():
        text = f"a tensor of shape {tuple(tensor.shape)} and stride {tensor.stride()}"
        raise CheckpointError(
            f"refused: {text} has {storage.nbytes()} bytes; save its `.contiguous()` where it is "
            "yours"
        )


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    """Return the indices and the values of a sparse tensor."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    is_of_rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    names = ("crow_indices", "col_indices") if is_of_rows else ("ccol_indices", "row_indices")
    return [getattr(tensor, name)() for name in (*names, "values")]


def _stranger(start: bytes) -> str:
    """Return why a file that begins so is not read."""
    if not start:
        return "damaged: it is empty"
    if start[0] == 0x80 and start[1:2] > b"\2":
        return PROTOCOL
    return "it was not written by torch.save, or its beginning is damaged"


def _in_words(error: Exception) -> str:
    """Return in one line why torch does not read a file, without its advice to trust the file."""
    text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    if named := re.search(r"GLOBAL (\S+)", text):
        return f"refused: it names {named[1]!r}, which is no plain data"
    if "persistent_load of storage" in text:
        return "refused: it holds a whole model, or its class: save the `state_dict()` alone"
    if "Unsupported operand" in text:
        return PROTOCOL
    line = next((each.strip() for each in text.splitlines() if each.strip()), "no reason given")
    if "weights_only" in line or "safe_globals" in line:
        line = "it holds what torch's safe loader does not read"
    return f"torch cannot read it: {type(error).__name__}: {line[:200]}"
