"""Files that attack whoever reads them: `python attack_corpus.py FOLDER KIND NAME` meets one.

It prints, as JSON, what a hook of Python's audit events saw, how far memory grew and how it ended.
The hook counts what no reading of a file may do; it is set once all is imported and warmed up.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import resource
import struct
import sys
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch

from base.checkpoint.state_file import manifest_bytes
from base.checkpoint.store import CheckpointStore, read
from base.checkpoint.weights import read_weights
from base.errors import KindlingError

FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.", "socket.",
    "compile", "ctypes.dlopen", "pickle.find_class", "urllib.", "shutil.", "tempfile.",
)  # fmt: skip
BIG = 10**12
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files from before torch 1.6


class Calls:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Global:
    """An opcode that names something, whether it exists or not."""

    def __init__(self, module: str, name: str) -> None:
        self.code = f"c{module}\n{name}\n".encode()


def zipped(pickled: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    """Return an archive like torch.save's, around any pickle; ``__`` in names stands for a dot."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/byteorder", sys.byteorder.encode())
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()


def saved(value: Any, new: bool = True) -> bytes:
    """Return what torch.save writes."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def tensor(
    count: int, size: int, stride: int, offset: int = 0, kind: str = "Float", legacy: bool = False
) -> bytes:
    """Return the pickle of a dict with one tensor of storage ``0``."""
    storage = (
        b"(" + text("storage") + Global("torch", f"{kind}Storage").code + text("0")
        + text("cpu") + number(count) + b"N" * legacy + b"tQ"
    )  # fmt: skip
    hooks = Global("collections", "OrderedDict").code + b")R"
    rebuild = Global("torch._utils", "_rebuild_tensor_v2").code
    arguments = number(offset) + number(size) + b"\x85" + number(stride) + b"\x85" + b"\x89" + hooks
    return b"\x80\x02}" + text("a") + rebuild + b"(" + storage + arguments + b"tRs."


def sparse(count: int) -> bytes:
    """Return the pickle of a sparse tensor whose indices and values repeat one number each."""
    indices = tensor(1, count, 0, kind="Long")[:-2].partition(text("a"))[2]
    shape, strides = number(count) + b"\x85", number(0) + b"\x85"
    indices = indices.replace(shape, number(1) + number(count) + b"\x86")
    indices = indices.replace(strides, number(0) + number(0) + b"\x86")
    values = tensor(1, count, 0)[:-2].partition(text("a"))[2].replace(text("0"), text("1"))
    layout = called(Global("torch.serialization", "_get_layout"), text("torch.sparse_coo"))
    layout = layout[:-2].partition(text("a"))[2]
    parts = b"(" + indices + values + number(1) + b"\x85" + b"\x89t"
    rebuild = Global("torch._utils", "_rebuild_sparse_tensor").code
    return b"\x80\x02}" + text("a") + rebuild + layout + parts + b"\x86Rs."


def unfolding(levels: int = 50) -> bytes:
    """Return the code of dicts of which each has the last one twice; without a pickle's ends."""
    made = b"}q\x00"
    for level in range(levels):
        inner = b"}" + text("a") + made + b"s" + text("b") + bytes((104, level)) + b"s"
        made = inner + bytes((113, level + 1))
    return made


def repeated(name: Global, count: int = 30) -> bytes:
    """Return a pickle that calls something on one long list again and again.

    No more than torch's unpickler can take: it does not bound this.
    """
    pairs = b"](" + b"".join(text(f"{i:05}") + b"K\x01\x86" for i in range(count)) + b"eq\x01"
    return b"\x80\x02](" + pairs + (name.code + b"h\x01\x85R") * count + b"e."


def of_one_hash(count: int = 4_000) -> bytes:
    """Return the pickle of a dict whose keys Python cannot tell apart but one by one."""
    keys = (((2**61 - 1) * number).to_bytes(10, "little") for number in range(1, count))
    return b"\x80\x02}(" + b"".join(b"\x8a\x0a" + key + b"N" for key in keys) + b"u."


def called(name: Global, arguments: bytes) -> bytes:
    return b"\x80\x02}" + text("a") + name.code + arguments + b"\x85Rs."


def built(name: Global, state: bytes) -> bytes:
    """Return a pickle that sets the state of what it names, as of an object."""
    return b"\x80\x02}" + text("a") + name.code + state + b"bs."


def tar(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:") as archive:
        for name in ("storages", "tensors", "pickle", "/../../../tmp/x"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def legacy(state: bytes) -> bytes:
    """Return a file as of before torch 1.6 around a pickle, with four bytes of numbers."""
    about = {"little_endian": True, "protocol_version": PROTOCOL, "type_sizes": {}}
    head = b"".join(pickle.dumps(each, 2) for each in (MAGIC, PROTOCOL, about))
    return head + state + pickle.dumps(["0"], 2) + struct.pack("<q", 1) + bytes(4)


def confused(content: bytes) -> bytes:
    """Return two archives in one: which is read, depends on where one begins to look."""
    evil = saved({"a": Calls(os.system, "touch SENTINEL")})
    return content[:-2] + struct.pack("<H", len(evil)) + evil


def two_directories() -> bytes:
    """Return an archive in which torch's reader follows a pointer to another directory.

    zipfile finds the records of the end by their place, and takes what is before for a foreword.
    """
    bomb = zipped(b"\x80\x02}.", zipfile.ZIP_DEFLATED, archive__data__0=bytes(1 << 27))
    place, start = len(bomb) - 22, struct.unpack("<I", bomb[-6:-2])[0]
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 4, 4, place - start, start)
    good = saved({"a": torch.ones(1)})
    return bomb[:-22] + record + good[:-34] + struct.pack("<Q", place) + good[-26:]


def in_two_fields(good: bytes) -> bytes:
    """Return an archive whose first member has two sizes in its extra fields, one after another."""
    start = good.index(b"PK\1\2")
    entry = bytearray(good[start : good.index(b"PK\1\2", start + 4)])
    once = struct.pack("<2HQ", 1, 8, 0xFFFFFFFF)
    twice = once + struct.pack("<2HQ", 1, 8, struct.unpack("<I", entry[24:28])[0])
    entry[24:28], entry[30:32] = b"\xff" * 4, struct.pack("<H", len(twice))
    length = struct.unpack("<I", good[-10:-6])[0] + len(twice)
    end = b"PK\5\6" + good[-18:-10] + struct.pack("<2IH", length, start, 0)
    return good[:start] + entry + twice + good[start + len(entry) : -98] + end


def many_keys(count: int) -> bytes:
    """Return the pickle of tensors of one member, each under a key that torch takes for another."""
    each = (
        b"(" + text("storage") + Global("torch", "ByteStorage").code + text(f"0\0{i}")
        + text("cpu") + number(1 << 20) + b"tQ" for i in range(count)
    )  # fmt: skip
    return b"\x80\x02](" + b"".join(each) + b"e."


def with_attribute(name: str) -> torch.Tensor:
    tensor = torch.ones(1)
    tensor.__dict__[name] = 1
    return tensor


def corpus(sentinel: Path) -> dict[str, Callable[[], bytes]]:
    """Return the attacks on readers of weights and checkpoints, by name."""
    command = f"touch {sentinel}"
    evil = {"model": Calls(os.system, command), "a": torch.ones(2)}
    good, one = saved({"a": torch.ones(1)}), struct.pack("<f", 1)
    names = {
        "os": ("os", "system"), "posix": ("posix", "system"), "alias": ("logging", "os.system"),
        "eval": ("builtins", "eval"), "old eval": ("__builtin__", "eval"),
        "exec": ("builtins", "exec"), "import": ("builtins", "__import__"),
        "getattr": ("builtins", "getattr"), "hub": ("torch.hub", "load"),
        "load": ("torch", "load"), "jit": ("torch.jit", "load"), "Popen": ("subprocess", "Popen"),
        "pickle": ("pickle", "loads"), "storage": ("torch.storage", "_load_from_bytes"),
        "partial": ("functools", "partial"), "lazy": ("torch", "_inductor"),
        "dunder": ("torch._utils", "_rebuild_tensor.__globals__"),
        "find": ("torch._utils", "_import_dotted_name"), "run": ("runpy", "run_path"),
        "socket": ("socket", "create_connection"),
    }  # fmt: skip
    argument = text(command)
    attacks = {
        f"{form}: {name}": (lambda form=form, name=name: form_of[form](
            called(Global(*names[name]), argument)))
        for form in ("zip", "raw", "legacy") for name in list(names)[: None if form == "zip" else 4]
    }  # fmt: skip
    form_of = {"zip": zipped, "raw": bytes, "legacy": legacy}
    stacked = b"\x80\x04\x8c\x02os\x8c\x06system\x93" + argument + b"\x85R."
    code = b"}" + text("__code__") + text("x") + b"s"
    deep = 30_000
    return {
        **attacks,
        "reduce in zip": lambda: saved(evil),
        "reduce in legacy": lambda: saved(evil, new=False),
        "reduce in raw pickle": lambda: pickle.dumps(evil, 2),
        "reduce in tar": lambda: tar(pickle.dumps(evil, 2)),
        "stack global": lambda: zipped(stacked),
        "instance": lambda: zipped(b"(" + argument + b"ios\nsystem\n."),
        "object": lambda: zipped(b"(cos\nsystem\n" + argument + b"o."),
        "extension": lambda: zipped(b"\x80\x02\x82\x01" + argument + b"\x85R."),
        "new object": lambda: zipped(b"\x80\x02csubprocess\nPopen\n" + argument + b"\x85\x81."),
        "state of a function": lambda: zipped(
            built(Global("torch._utils", "_rebuild_tensor_v2"), b"N" + code + b"\x86")
        ),
        "state of a class": lambda: zipped(
            built(Global("collections", "OrderedDict"), b"N" + code + b"\x86")
        ),
        "instantiator": lambda: saved(
            {"hyper_parameters": {"_instantiator": "os.system", "_target_": "os.system"}}
        ),
        "evil config": lambda: saved({"config": f"!!python/object/apply:os.system ['{command}']"}),
        "bytearray": lambda: zipped(called(Global("builtins", "bytearray"), number(BIG))),
        "bytes": lambda: zipped(called(Global("builtins", "bytes"), number(BIG))),
        "untyped storage": lambda: zipped(
            called(Global("torch.storage", "UntypedStorage"), number(10**10))
        ),
        "empty": lambda: zipped(called(Global("torch", "empty"), number(10**10))),
        "range": lambda: zipped(called(Global("builtins", "range"), number(BIG))),
        "unfolds beside weights": lambda: zipped(
            tensor(1, 1, 1)[:-1] + text("b") + unfolding() + b"s.", archive__data__0=one
        ),
        "storage that unfolds": lambda: zipped(
            b"\x80\x02(" + text("storage") + Global("torch", "FloatStorage").code
            + unfolding() + text("cpu") + number(1) + b"tQ."
        ),
        "list of storages that unfolds": lambda: legacy(b"\x80\x02}.\x80\x02" + unfolding() + b"."),
        "one list, many dicts": lambda: zipped(repeated(Global("collections", "OrderedDict"))),
        "one list, many sizes": lambda: zipped(repeated(Global("torch", "Size"))),
        "name of another case": lambda: zipped(
            tensor(1, 1, 1), archive__data__0=one, **{"archive__DATA.PKL": saved(evil)}
        ),
        "pickle of another case": lambda: zipped(tensor(1, 1, 1), archive__data__0=one).replace(
            b"data.pkl", b"DATA.PKL"
        ),
        "digit of another script": lambda: zipped(
            tensor(1, 1, 1), archive__data__0=one, **{"archive__data__\u0661": one}
        ),
        "second folder": lambda: zipped(b"\x80\x02}.", **{"other__data.pkl": saved(evil)}),
        "member of no name": lambda: zipped(b"\x80\x02}.", archive__other=b"x"),
        "second directory": lambda: two_directories(),
        "sizes in two fields": lambda: in_two_fields(good),
        "prepended": lambda: b"PK\3\4" + bytes(60) + good,
        "appended": lambda: good + bytes(60),
        "one storage, many keys": lambda: zipped(many_keys(500), archive__data__0=bytes(1 << 20)),
        "tensor of a constructor": lambda: zipped(
            called(Global("torch", "FloatTensor"), number(10**9))
        ),
        "legacy grows its storage": lambda: legacy(tensor(1, 10**9, 1, legacy=True)),
        "legacy without its numbers": lambda: legacy(tensor(10**9, 10**9, 1, legacy=True)),
        "dict with methods": lambda: zipped(
            b"\x80\x02" + Global("collections", "OrderedDict").code + b")R}" + text("items")
            + Global("torch", "Size").code + b"sb."
        ),
        "tensor with methods": lambda: saved({"a": with_attribute("detach")}),
        "keys of one hash": lambda: zipped(of_one_hash()),
        "nested": lambda: saved({"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}),
        "memo": lambda: zipped(b"\x80\x02]r\xff\xff\xff\xff."),
        "long bytes": lambda: zipped(b"\x80\x04\x8e" + struct.pack("<q", BIG) + b"."),
        "long text": lambda: zipped(b"\x80\x04\x8d" + struct.pack("<q", BIG) + b"."),
        "long bytearray": lambda: zipped(b"\x80\x05\x96" + struct.pack("<q", BIG) + b"."),
        "frame": lambda: zipped(b"\x80\x04\x95" + struct.pack("<q", BIG) + b"."),
        "long number": lambda: zipped(b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"."),
        "deflated": lambda: zipped(
            b"\x80\x02}.", zipfile.ZIP_DEFLATED, archive__data__0=bytes(1 << 26)
        ),
        "deflated tensor": lambda: zipped(
            tensor(1 << 26, 1 << 26, 1), zipfile.ZIP_DEFLATED, archive__data__0=bytes(1 << 28)
        ),
        "declared too large": lambda: zipped(tensor(BIG, BIG, 1), archive__data__0=one),
        "stride 0": lambda: zipped(tensor(1, BIG, 0), archive__data__0=one),
        "sparse of stride 0": lambda: zipped(
            sparse(10**6), archive__data__0=bytes(8), archive__data__1=one
        ),
        "beyond its storage": lambda: zipped(tensor(1, 1, 1, offset=1 << 40), archive__data__0=one),
        "stride beyond": lambda: zipped(tensor(2, 2, 1 << 60), archive__data__0=one * 2),
        "negative stride": lambda: zipped(tensor(2, 2, -1), archive__data__0=one * 2),
        "negative size": lambda: zipped(tensor(2, -2, 1), archive__data__0=one * 2),
        "negative count": lambda: zipped(tensor(-2, 1, 1), archive__data__0=one),
        "negative offset": lambda: zipped(tensor(2, 1, 1, offset=-9), archive__data__0=one * 2),
        "legacy declared too large": lambda: legacy(tensor(BIG, 1, 1)[:-1] + b"."),
        "deep list": lambda: zipped(b"\x80\x02" + b"]" * deep + b"a" * (deep - 1) + b"."),
        "deep dict": lambda: zipped(
            b"\x80\x02" + b"}K\x01" * deep + b"N" + b"s" * deep + b"."
        ),
        "deep key": lambda: zipped(b"\x80\x02}N" + b"\x85" * deep + b"Ns."),
        "items of a text": lambda: zipped(b"\x80\x02" + text("a") + text("b") + b"Ns."),
        "items of a tensor": lambda: zipped(
            tensor(1, 1, 1)[:-2] + b"K\x00K\x00ss.", archive__data__0=one
        ),
        "more than the stack": lambda: zipped(b"\x80\x02" + b"\x87" * 9 + b"."),
        "absolute name": lambda: zipped(b"\x80\x02}.", **{"__etc__x": b"x"}),
        "name outside": lambda: zipped(b"\x80\x02}.", **{"archive__..__..__x": b"x"}),
        "double name": lambda: zipped(b"\x80\x02}.", archive__version=b"4\n"),
        "double pickle": lambda: zipped(b"\x80\x02}.", **{"archive__data.pkl": saved(evil)}),
        "second archive": lambda: confused(good),
        "comment": lambda: confused(zipped(tensor(1, 1, 1), archive__data__0=one)),
        "TorchScript": lambda: zipped(
            b"\x80\x02}.", **{"archive__constants.pkl": b"\x80\x02)."}
        ),
    }  # fmt: skip


# What a checkpoint may hold: text, read as text, and keys that take torch's unpickler long.
HARMLESS = ("instantiator", "evil config", "keys of one hash")


def meet(folder: Path, kind: str, name: str) -> dict[str, Any]:
    """Read one attack as weights or as a checkpoint, and tell what happened."""
    sentinel = folder / "sentinel"
    content = corpus(sentinel)[name]().replace(b"SENTINEL", str(sentinel).encode()[:8])
    store = CheckpointStore(folder / "checkpoints")
    facts: dict[str, Any] = {"epoch": 0, "metrics": {}, "is_best": False, "facts": {}}
    path = store.save({"model": {"a": torch.ones(1)}}, step=1, **facts)
    weights = folder / "weights.pth"
    torch.save({"a": torch.ones(1)}, weights)
    for _ in range(2):
        read(path), read_weights(weights)

    weights.write_bytes(content)
    (path / "state.pt").write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_text())
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"]["state.pt"] = {"bytes": len(content), "sha256": digest}
    (path / "manifest.json").write_bytes(manifest_bytes(manifest))
    return {**watched(lambda: read(path) if kind == "checkpoint" else read_weights(weights)),
            "size": len(content), "sentinel": sentinel.exists()}  # fmt: skip


PLACES = (
    "model: {{type: {0}}}", "optimizer: {{type: {0}, args: {{lr: 1}}}}", "loss: {0}",
    "metrics: [{0}]", "lr_scheduler: {{type: {0}}}", "data_loader: {{type: {0}}}",
    "trainer: {{type: {0}, epochs: 1}}", "callbacks: [{{type: {0}}}]",
    "init: [{{match: '*', weight: {0}}}]",
    "model: {{type: Sequential, args: {{layers: [{{type: {0}, args: {{command: touch x}}}}]}}}}",
    "data_loader: {{type: DatasetLoader, args: {{dataset: {{type: {0}}}, batch_size: 1}}}}",
)  # fmt: skip
NAMES = (
    "os.system", "logging.os.system", "builtins.eval", "torch.hub.load", "torch.load", "load",
    "__import__", "nn.__builtins__", "base.names.construction.importlib", "../x", "/etc/passwd",
    "Popen", "torch._inductor", "model.model", "load_state_dict_from_url", "_C", "get_model",
)  # fmt: skip
CONFIGS = (
    "name: !!python/object/apply:os.system ['touch x']",
    "!!python/object/new:subprocess.Popen [touch x]",
    "name: !!python/name:os.system",
    "name: !!python/module:os",
    "name: ${oc.env:HOME}",
    "name: ${env:HOME}",
    "name: ${__import__('os').system('touch x')}",
    "name: ../../x",
    "name: /x",
    "inherit: /etc/passwd",
    "inherit: ../../../../../../etc/shadow",
    "model: {type: MLP, _target_: os.system}",
    "model: {_target_: os.system, _args_: [touch x]}",
    "trainer: {resume: x, epochs: 1}",
    "seed: " + "[" * 10_000 + "]" * 10_000,
    "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{n + 1}: &a{n + 1} [{','.join([f'*a{n}'] * 9)}]\n" for n in range(12)),
)


WHOLE = """
name: x
model: {type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3}}
data_loader: {type: SyntheticDataLoader, args: {batch_size: 4}}
optimizer: {type: SGD, args: {lr: 0.1}}
loss: cross_entropy
trainer: {epochs: 2}
"""


def config_attacks() -> list[str]:
    """Return configs that ask for code, in each place where a config may name something."""
    return [*CONFIGS, *(place.format(name) for place in PLACES for name in NAMES)]


def with_rest(attack: str) -> str:
    """Return a whole config with an attack in place of its own sections."""
    own = re.findall(r"^(\w+):", attack, re.MULTILINE)
    return "\n".join([attack, *(x for x in WHOLE.splitlines() if x.split(":")[0] not in own)])


def read_configs() -> None:
    """Read and check each attack of a config, and print what happened to it."""
    from base.config import load_config
    from base.names.check import check_names

    def check(text: str) -> None:
        check_names(load_config(None, [], text=text))

    for place in PLACES:  # what a name is looked for in is imported, once
        watched(partial(check, with_rest(place.format("nothing"))))
    for attack in config_attacks():
        told = watched(partial(check, with_rest(attack)))
        print(json.dumps({"name": attack[:200], "size": len(attack), **told}), flush=True)


hooked: list[bool] = []
watching: list[bool] = []
events: list[str] = []


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what no reading may do."""
    if watching and event.startswith(FORBIDDEN):
        events.append(f"{event} {arguments!r:.200}")
    if watching and event == "exec":
        file = str(getattr(arguments[0], "co_filename", ""))
        if not file.startswith((sys.prefix, sys.base_prefix, str(ROOT))):
            events.append(f"exec of {file}")


def peak_kilobytes() -> int:
    """Return the most memory that this program had: getrusage would count its parent's too."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def watched(action: Callable[[], object]) -> dict[str, Any]:
    """Do something under the hook; return events, seconds, growth of memory, and the end."""
    Path("/proc/self/clear_refs").write_text("5")  # what was the most until now, is forgotten
    before = peak_kilobytes()
    if not hooked:
        sys.addaudithook(hook)
        hooked.append(True)
    events.clear()
    watching.append(True)
    started = time.perf_counter()
    try:
        action()
        end = "read"
    except KindlingError as error:
        end = f"refused: {error}"
    except BaseException as error:
        end = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - started
    watching.clear()
    grown = peak_kilobytes() - before
    return {"events": list(events), "seconds": seconds, "grown": grown * 1024, "end": end}


if __name__ == "__main__":
    if sys.argv[2] == "config":
        read_configs()
        sys.exit()
    for count, name_of_it in enumerate(sys.argv[3:] or corpus(Path())):
        place = Path(sys.argv[1], f"{sys.argv[2]}{count}")
        place.mkdir()
        print(json.dumps({"name": name_of_it, **meet(place, sys.argv[2], name_of_it)}), flush=True)
