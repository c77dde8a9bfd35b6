"""Files of torch.save by other programs and old versions are loaded, and no code in them runs."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import decimal
import io
import logging
import pickle
import re
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base.checkpoint.weights import load_pretrained, read_weights
from base.errors import CheckpointError
from base.system.torch_compat import TORCH


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def state(**kinds: Any) -> dict[str, Tensor]:
    torch.manual_seed(4)
    return network().state_dict()


def section(path: Path, **more: Any) -> dict[str, Any]:
    return {"file": str(path), "only": [], "skip": [], **more}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name


@pytest.fixture
def of_template(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A checkpoint as pytorch-template writes it: its ConfigParser object beside the weights."""
    module = types.ModuleType("parse_config")

    class ConfigParser:
        def __init__(self) -> None:
            self._config = collections.OrderedDict(arch={"type": "MnistModel"})
            self.resume, self.log_levels = None, {0: logging.WARNING, 2: logging.DEBUG}
            self.save_dir, self.odd = Path("saved/models"), {(1, 2): {3, 4}}

        def __setstate__(self, state: Any) -> None:
            raise AssertionError("code of the file was run")

    ConfigParser.__module__, ConfigParser.__qualname__ = "parse_config", "ConfigParser"
    module.ConfigParser = ConfigParser  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "parse_config", module)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=True)
    model(torch.zeros(1, 1, 4, 4).expand(2, 1, 4, 4)).sum().backward()
    optimizer.step()
    return {
        "arch": "MnistModel", "epoch": 3, "state_dict": state(), "config": ConfigParser(),
        "optimizer": optimizer.state_dict(), "monitor_best": torch.tensor(0.5),
    }  # fmt: skip


@pytest.mark.fault("F32")
@pytest.mark.parametrize("new", [True, False])
def test_a_file_of_pytorch_template_gives_its_weights(
    tmp_path: Path, of_template: Any, new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model_best.pth"
    torch.save(of_template, path, _use_new_zipfile_serialization=new)
    monkeypatch.delitem(sys.modules, "parse_config")
    with pytest.raises((pickle.UnpicklingError, UserWarning)):  # torch's own safe loader
        torch.load(path, weights_only=True)
    assert_equal(read_weights(path), state())
    model = network()
    load_pretrained(model, section(path))
    assert_equal(model.state_dict(), state())


KINDS = {
    "float32": torch.arange(6.0).reshape(2, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "part": torch.arange(20)[3:9:2],
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "bfloat16": torch.tensor([1.5, -2], dtype=torch.bfloat16),
    "complex": torch.tensor([1 + 2j]),
    "bool": torch.tensor([True, False]),
    "int8": torch.tensor([-3], dtype=torch.int8),
    "uint16": torch.tensor([65_535], dtype=torch.uint16),
    "float8": torch.tensor([0.5]).to(torch.float8_e4m3fn),
    "parameter": nn.Parameter(torch.ones(3)),
}
UNTYPED = ("uint16", "float8")


@pytest.mark.parametrize("new", [True, False])
def test_tensors_of_all_kinds_are_read_as_torch_reads_them(tmp_path: Path, new: bool) -> None:
    kinds = {**KINDS, "shared": KINDS["float32"][1]}
    if not new:  # torch itself writes these so that it cannot read them
        kinds = {name: kinds[name] for name in kinds if name not in UNTYPED}
    torch.save(kinds, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    theirs = torch.load(tmp_path / "a.pt", weights_only=True)
    ours = read_weights(tmp_path / "a.pt")
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (value.dtype, value.shape), name
        assert ours[name].tolist() == value.tolist(), name


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_a_wrappers_prefix_goes_where_then_all_fits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrap: Any
) -> None:
    prefix = "module." if wrap is nn.DataParallel else "_orig_mod."
    torch.save({prefix + name: value for name, value in state().items()}, tmp_path / "a.pth")
    model = network()
    load_pretrained(model, section(tmp_path / "a.pth"))
    assert_equal(model.state_dict(), state())
    assert f"a.pth: removed the prefix {prefix!r} from all names" in caplog.text


def test_a_prefix_stays_where_then_not_all_fits(tmp_path: Path) -> None:
    wrapped = {"module." + name: value for name, value in state().items()}
    torch.save({**wrapped, "module.3.bias": torch.zeros(9)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"module\.3\.bias: only in the file"):
        load_pretrained(network(), section(tmp_path / "a.pth"))


def test_a_prefix_stays_where_the_model_has_it_too(tmp_path: Path) -> None:
    model = nn.Sequential(collections.OrderedDict(module=network()))
    torch.save(model.state_dict(), tmp_path / "a.pth")
    load_pretrained(model, section(tmp_path / "a.pth"))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_missing_counter_of_batch_norm_is_0_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, prefix: str
) -> None:
    old = {prefix + n: value for n, value in state().items() if "num_batches" not in n}
    torch.save(old, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    model = network()
    model[1].num_batches_tracked.fill_(5)
    load_pretrained(model, section(tmp_path / "a.pth"))
    assert_equal(model.state_dict(), state())
    assert model[1].num_batches_tracked == 0
    assert "set counters to 0 that this old file lacks: 1.num_batches_tracked" in caplog.text


def test_a_counter_whose_norm_is_missing_is_an_error(tmp_path: Path) -> None:
    torch.save({n: v for n, v in state().items() if not n.startswith("1.")}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"1\.num_batches_tracked: not in the file"):
        load_pretrained(network(), section(tmp_path / "a.pth"))


@pytest.mark.parametrize("new", [True, False])
def test_a_whole_model_is_refused_by_its_class(tmp_path: Path, new: bool) -> None:
    torch.save(network(), tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    text = r"which are not loaded.*\.container\.Sequential'" if new else "whole model.*`state_dict"
    with pytest.raises(CheckpointError, match=text):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_another_protocol_is_refused_with_what_to_do(
    tmp_path: Path, new: bool, protocol: int
) -> None:
    about = {"note": b"x", "state_dict": state()}  # of protocol 3 the bytes alone are different
    path = tmp_path / "a.pth"
    torch.save(about, path, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=r"protocol 2 safely.*again with `torch\.save\(") as e:
        read_weights(path)
    assert "\n" not in str(e.value)


class Settings(dict):
    """As EasyDict, AttrDict, CfgNode and their kind: a dict whose items are attributes too."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.__dict__ = self


class History(list):
    def __reduce__(self) -> Any:
        return (History, (), {"name": "loss"}, iter(self))


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        Settings(lr=0.1, data=Settings(root=Path("x"))),
        argparse.Namespace(lr=0.1, function=F.nll_loss, kind=Path, path=Path("x")),
        collections.defaultdict(list, a=[1]),
        collections.deque([1, 2, 3]),
        History([0.5, 0.25]),
        np.float64(0.5),
        np.arange(6.0).reshape(2, 3),
        datetime.datetime(2020, 1, 1),
        logging.Formatter("%(message)s"),
        {Path("x"): {np.int64(3)}, (1, 2): frozenset([3])},
        re.compile("x"),
        collections.OrderedDict(a=1),
        decimal.Decimal("0.5"),
        b"bytes",
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_beside_the_weights_are_read_as_nothing(
    tmp_path: Path, new: bool, beside: Any
) -> None:
    content = {"state_dict": state(), "about": beside, "more": [beside, {"again": beside}]}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
    allowed = set(torch.serialization.get_safe_globals())
    if type(beside) in (collections.deque, History) and TORCH < (2, 11):
        with pytest.raises(CheckpointError, match="a deque or a subclass of list, which torch"):
            read_weights(tmp_path / "a.pth")
    else:
        assert_equal(read_weights(tmp_path / "a.pth"), state())
    assert set(torch.serialization.get_safe_globals()) == allowed


@pytest.mark.parametrize(
    ("among", "named"),
    [
        ({"about": Path("x")}, r"'about' is 'pathlib\.Po"),
        ({"a": torch.eye(2).to_sparse()}, r"'a' is 'torch\.sparse_coo"),
    ],
    ids=["an object", "a sparse tensor"],
)
def test_what_is_no_plain_tensor_among_the_weights_is_named(
    tmp_path: Path, among: dict[str, Any], named: str
) -> None:
    torch.save({**state(), **among}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=f"objects other than plain tensors, .*: {named}"):
        read_weights(tmp_path / "a.pth")


def test_what_hangs_on_a_tensor_is_left_out(tmp_path: Path) -> None:
    odd = nn.Parameter(torch.ones(2))
    odd.no_decay = Path("x")  # type: ignore[attr-defined]
    torch.save({"a": odd, "b": nn.Buffer(torch.ones(1))}, tmp_path / "a.pth")
    read = read_weights(tmp_path / "a.pth")
    assert [type(each) for each in read.values()] == [Tensor, Tensor]
    assert [vars(each) for each in read.values()] == [{}, {}]
    assert_equal(read, {"a": torch.ones(2), "b": torch.ones(1)})


def test_tensors_beside_the_weights_are_no_matter(tmp_path: Path) -> None:
    beside = {"best": torch.tensor(0.5), "data": {"root": Path("x"), "mean": [torch.ones(3)]}}
    torch.save({"net": state(), **beside}, tmp_path / "a.pth")
    assert_equal(read_weights(tmp_path / "a.pth"), state())
    beside["data"] = {"root": Path("x"), "mean": torch.ones(3)}
    torch.save({"state_dict": state(), **beside}, tmp_path / "a.pth")
    assert_equal(read_weights(tmp_path / "a.pth"), state())


def test_what_is_within_itself_is_refused(tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    torch.save({"state_dict": state(), "about": loop}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="nested deeper than 64, or within itself"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("new", [True, False])
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path: Path, new: bool) -> None:
    """Random bytes within the pickle, with a checksum that fits where there is one."""
    file, random = io.BytesIO(), torch.Generator().manual_seed(1)
    torch.save(
        {"state_dict": state(), "a": [1, (2, {3: "x"})]}, file, _use_new_zipfile_serialization=new
    )
    for _ in range(400):
        (tmp_path / "a.pth").write_bytes(damaged(file.getvalue(), new, random))
        with contextlib.suppress(CheckpointError):
            read_weights(tmp_path / "a.pth")


def damaged(content: bytes, is_archive: bool, random: torch.Generator) -> bytes:
    def change(part: bytes) -> bytes:
        changed = bytearray(part)
        for place in torch.randint(len(part), (2,), generator=random).tolist():
            changed[place] = int(torch.randint(256, (), generator=random))
        return bytes(changed)

    if not is_archive:
        return change(content)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            is_pickle = name.endswith("data.pkl")
            new.writestr(name, change(old.read(name)) if is_pickle else old.read(name))
    return made.getvalue()


@pytest.mark.parametrize("new", [True, False])
def test_a_cut_file_is_told(tmp_path: Path, new: bool) -> None:
    file = io.BytesIO()
    torch.save(state(), file, _use_new_zipfile_serialization=new)
    for length in range(1, len(file.getvalue()) - 1, 97):
        (tmp_path / "a.pth").write_bytes(file.getvalue()[:length])
        with pytest.raises(CheckpointError, match="cannot be read as a file of weights"):
            read_weights(tmp_path / "a.pth")


def test_a_flipped_bit_in_the_numbers_is_found(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    place = content.find(state()["3.weight"].numpy().tobytes())
    content[place + 5] ^= 1
    (tmp_path / "a.pth").write_bytes(content)
    torch.load(tmp_path / "a.pth", weights_only=True)  # which does not notice
    with pytest.raises(CheckpointError, match="damaged: the checksum of a/data/7 does not match"):
        read_weights(tmp_path / "a.pth")


def test_a_storage_without_numbers_gives_none_of_this_programs_memory(tmp_path: Path) -> None:
    """In a file from before torch 1.6 whose list of storages is empty."""
    torch.save({"a": torch.ones(1 << 10)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "a.pth").read_bytes()
    start = content.rindex(b"\x80\x02]q\x00X")  # its list of storages
    (tmp_path / "a.pth").write_bytes(content[:start] + b"\x80\x02]." + bytes(1 << 12))
    blocks = [torch.full((1 << 10,), 7.0) for _ in range(20)]  # given back, and likely given again
    del blocks
    assert read_weights(tmp_path / "a.pth")["a"].tolist() == [0.0] * (1 << 10)
