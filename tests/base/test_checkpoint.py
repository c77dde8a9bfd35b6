"""Checkpoints: what was saved comes back, and no fault met while saving or after loses it."""

import copy
import errno
import json
import os
import pickle
import random
import resource
import shutil
import time
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from base import checkpoint, state_file
from base.checkpoint import CheckpointStore, load_weights, read, read_manifest, restore
from base.errors import CheckpointError, UsageError
from base.seeding import capture_random_state

N_FAULTS = int(os.environ.get("KINDLING_FAULT_COUNT", "50"))


def make_state(seed: int, size: int = 40) -> dict:
    """Return a state like a trainer's: tensors, numbers, text, nested."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": OrderedDict(weight=torch.randn(size, generator=generator), bias=torch.ones(2)),
        "optimizer": {"state": {0: {"step": torch.tensor(float(seed))}}, "param_groups": [{}]},
        "progress": {"step": seed, "best": float("inf"), "names": ("a", None, True)},
    }


def save(store: CheckpointStore, step: int, state: dict | None = None, **options) -> Path:
    """Save a state made from the step, with harmless facts."""
    given = {"epoch": 0, "metrics": {"loss": 1.0}, "is_best": False, "facts": {}, **options}
    return store.save(make_state(step) if state is None else state, step=step, **given)


def same(one, other) -> bool:
    """Tell whether two states are equal in types, numbers and bits."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        pairs = zip(one, other, strict=True)
        return type(one) is type(other) and all(same(a, b) for a, b in pairs)
    return type(one) is type(other) and one == other


def names(store: CheckpointStore) -> set[str]:
    """Return what lies in the store, beside its hints."""
    return {path.name for path in store.folder.iterdir()} - {"last.json", "best.json"}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


# --- What is saved comes back --------------------------------------------------------------------


def test_what_was_saved_is_read_by_each_of_its_paths(store):
    path = save(store, 480)

    assert path.name == "step-00000480"
    for name in (path, path / "state.pt", store.folder, store.folder.parent):
        assert same(read(name), make_state(480))


def test_manifest_tells_what_the_files_are(store):
    path = save(store, 3, epoch=2, metrics={"loss": float("nan")}, is_best=True, facts={"a": [1]})

    manifest = json.loads((path / "manifest.json").read_text(), parse_constant=pytest.fail)
    assert manifest == read_manifest(path)
    assert (manifest["step"], manifest["epoch"], manifest["is_best"]) == (3, 2, True)
    assert manifest["metrics"] == {"loss": "nan"}
    assert manifest["facts"] == {"a": [1]}
    assert manifest["files"]["state.pt"]["bytes"] == (path / "state.pt").stat().st_size
    assert manifest["torch_version"] == torch.__version__


def test_equal_states_give_equal_bytes_also_after_a_round_trip(store):
    first = save(store, 1, {"a": "some text", "b": ["some text"], "t": torch.arange(9)[::2]})
    text = "".join(["some", " text"])  # equal, but another object
    second = save(
        store, 2, {"a": text, "b": ["".join(["some ", "text"])], "t": torch.arange(0, 9, 2)}
    )
    third = save(store, 3, read(first))

    contents = {(path / "state.pt").read_bytes() for path in (first, second, third)}
    assert len(contents) == 1


def test_a_view_is_saved_without_the_rest_and_an_expanded_tensor_whole(store):
    state = {"view": torch.zeros(1_000_000)[:10], "expanded": torch.ones(1).expand(100)}
    path = save(store, 1, state)

    assert (path / "state.pt").stat().st_size < 20_000
    assert same(read(path), state)


def test_conjugate_negative_and_sparse_tensors_are_read_as_they_were_saved(store, recwarn):
    numbers = torch.tensor([1 + 2j, 3 - 1j])
    state = {"conjugate": numbers.conj(), "negative": numbers.conj().imag}
    path = save(store, 1, {**state, "sparse": torch.eye(3).to_sparse()})
    found = read(path)
    assert found["conjugate"].tolist() == [1 - 2j, 3 + 1j]
    assert found["negative"].tolist() == [-2, 1]
    assert found["sparse"].to_dense().equal(torch.eye(3))
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["quantized", "nested"])
def test_what_could_not_be_read_again_is_refused_when_saved(store, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to drop these
        odd = (
            torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
            if kind == "quantized"
            else torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
        )
    for value, text in ((odd, f"a tensor that is {kind}"), ({2**64: 1}, "the key 18446744073709")):
        with pytest.raises(CheckpointError, match=text):
            save(store, 1, {"a": value})
    assert read(save(store, 1, {"a": {2**64 - 1: 1, -(2**63): 2}})) == {
        "a": {2**64 - 1: 1, -(2**63): 2}
    }


def test_versions_of_a_modules_parts_survive(store):
    saved = nn.BatchNorm1d(3).state_dict()
    assert read(save(store, 1, {"model": saved}))["model"]._metadata == saved._metadata


def test_random_state_and_every_dtype_can_be_saved(store):
    dtypes = [torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.complex64, torch.float64]
    state = {str(dtype): torch.ones(3).to(dtype) for dtype in dtypes}
    state["random"] = capture_random_state()
    state["small"] = [torch.Size([1, 2]), torch.float32, torch.device("cpu"), 1 + 2j, 10**30]

    assert same(read(save(store, 1, state)), state)


SCHEDULERS = {
    "LambdaLR": {"lr_lambda": lambda step: 0.9**step},
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [1, 3]},
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 9},
    "ReduceLROnPlateau": {"patience": 1},
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("optimizer_name", ["SGD", "AdamW"])
def test_training_goes_on_from_a_checkpoint_as_if_never_stopped(store, name, optimizer_name):
    def build() -> dict:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        optimizer = getattr(torch.optim, optimizer_name)(model.parameters(), lr=0.01)
        schedule = getattr(torch.optim.lr_scheduler, name)(optimizer, **SCHEDULERS[name])
        return {"model": model, "optimizer": optimizer, "schedule": schedule}

    def train(parts: dict, steps: range) -> None:
        for step in steps:
            data = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            loss = parts["model"](data).square().mean()
            parts["optimizer"].zero_grad()
            loss.backward()
            parts["optimizer"].step()
            given = [1.0] if name == "ReduceLROnPlateau" else []
            parts["schedule"].step(*given)

    def states(parts: dict) -> dict:
        return {key: part.state_dict() for key, part in parts.items()}

    straight, stopped, resumed = build(), build(), build()
    train(straight, range(6))
    train(stopped, range(3))
    restore(resumed, read(save(store, 3, states(stopped))))
    train(resumed, range(3, 6))

    assert same(states(resumed), states(straight))


# --- What may be saved ---------------------------------------------------------------------------


class Meta(torch.Tensor):
    """A kind of tensor that a checkpoint would have to name code for."""


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        b"bytes",
        np.float64(1),
        np.zeros(2),
        Path("x"),
        nn.Linear(1, 1),
        len,
        torch.empty(2, device="meta"),
        torch.ones(2).as_subclass(Meta),
        {(1, 2): "tuple as key"},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_checkpoint_can_hold_is_refused_by_its_place(store, value):
    save(store, 1)
    with pytest.raises(CheckpointError, match=r"state\['a'\]\[1\]\['b'\]"):
        save(store, 2, {"a": [0, {"b": value}]})
    assert names(store) == {"step-00000001"}


def test_endless_nesting_is_refused(store):
    state: dict = {}
    state["self"] = state
    with pytest.raises(CheckpointError, match="nested deeper than 64"):
        save(store, 1, state)


# --- Damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_every_flipped_bit_is_detected(store, name):
    path = save(store, 7, metrics={"loss": 0.25}, facts={"config": "lr: 1"})
    good = (path / name).read_bytes()
    draw = random.Random(name)

    for _ in range(N_FAULTS):
        bad = bytearray(good)
        place = draw.randrange(len(bad) * 8)
        bad[place // 8] ^= 1 << place % 8
        (path / name).write_bytes(bad)
        with pytest.raises(CheckpointError, match="step-00000007"):
            read(path)
    (path / name).write_bytes(good)
    assert same(read(path), make_state(7))


@pytest.mark.parametrize("left", [0, 1, 3, 4, 10, 100, "n//2", "n-64", "n-22", "n-1"])
@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_a_cut_file_is_passed_over_with_one_line_that_names_both(store, caplog, name, left):
    save(store, 1)
    path = save(store, 2)
    content = (path / name).read_bytes()
    length = left if isinstance(left, int) else eval(left, {"n": len(content)})
    (path / name).write_bytes(content[:length])

    with pytest.raises(CheckpointError):
        read(path)
    assert same(read(store.folder), make_state(1))
    (message,) = [record.getMessage() for record in caplog.records]
    assert "step-00000002" in message
    assert "going back to" in message
    assert "step-00000001" in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"hello\n" * 99, bytes(4096), pickle.dumps({"a": 1})])
def test_garbage_with_a_fitting_manifest_is_a_clear_error(store, content):
    path = forge(save(store, 1), content)
    with pytest.raises(CheckpointError, match=r"state\.pt: \w+"):
        read(path)


def test_a_missing_file_is_a_damaged_checkpoint(store):
    save(store, 1)
    (save(store, 2) / "state.pt").unlink()
    (save(store, 3) / "manifest.json").unlink()
    assert store.newest().name == "step-00000001"


def test_all_damaged_is_an_error_that_says_what_to_do(store):
    for step in (1, 2):
        (save(store, step) / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"(?s)start anew without -r.*00000002.*00000001"):
        store.newest()
    with pytest.raises(CheckpointError, match="start anew"):
        read(store.folder.parent)


def test_newest_goes_by_number_not_by_date_or_hint(store):
    for step in (9, 10, 11):
        os.utime(save(store, step), (2_000_000_000 - step, 2_000_000_000 - step))
    (store.folder / "last.json").write_text('{"step": 9}')
    assert store.newest().name == "step-00000011"


def test_steps_beyond_eight_digits_are_still_ordered(store):
    save(store, 99_999_999)
    save(store, 100_000_000)
    assert store.newest().name == "step-100000000"


def test_a_newer_format_is_refused_and_never_passed_over(store):
    save(store, 1)
    path = save(store, 2)
    write_manifest(path, format=checkpoint.FORMAT + 1)

    for attempt in (lambda: read(path), store.newest):
        with pytest.raises(CheckpointError, match="newer version: its format is 2"):
            attempt()
    save(store, 3)
    assert path.exists()


def test_an_older_format_is_migrated(store, monkeypatch):
    path = save(store, 1)
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    monkeypatch.setitem(checkpoint.migrations, 1, lambda state: {**state, "two": 2})
    monkeypatch.setitem(
        checkpoint.migrations, 2, lambda state: {**state, "three": state["two"] + 1}
    )
    assert same(read(path), {**make_state(1), "two": 2, "three": 3})


def test_paths_that_hold_no_checkpoint_say_so(store, tmp_path):
    path = save(store, 480)
    foreign = tmp_path / "model.pth"
    torch.save({}, foreign)

    with pytest.raises(UsageError, match="did you mean 'step-00000480'"):
        read(path.with_name("step-00000481"))
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        read(foreign)
    shutil.rmtree(path)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        read(tmp_path)
    assert store.newest() is None
    assert store.best() is None


# --- Attacks: the manifest fits, the content is hostile ------------------------------------------


def write_manifest(path: Path, **changes) -> None:
    """Change a manifest and seal it again."""
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_bytes(checkpoint.sealed({**manifest, **changes}))


def forge(path: Path, content: bytes) -> Path:
    """Replace a checkpoint's state by other bytes that its manifest vouches for."""
    (path / "state.pt").write_bytes(content)
    facts = {"bytes": len(content), "sha256": state_file.hashlib.sha256(content).hexdigest()}
    write_manifest(path, files={"state.pt": facts})
    return path


class Calls:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_code_in_a_checkpoint_is_never_run(store, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    sentinel = tmp_path / "sentinel"
    evil = {"model": Calls(os.system, f"touch {sentinel}")}
    path = save(store, 1)
    torch.save(evil, tmp_path / "zip")
    torch.save(evil, tmp_path / "legacy", _use_new_zipfile_serialization=False)

    for content in [
        (tmp_path / "zip").read_bytes(),
        (tmp_path / "legacy").read_bytes(),
        pickle.dumps(evil),
    ]:
        with pytest.raises(CheckpointError):
            read(forge(path, content))
    assert not sentinel.exists()


def test_a_small_file_cannot_ask_for_much_memory(store, tmp_path):
    torch.save({"a": Calls(bytearray, 10**12)}, tmp_path / "bomb")
    with pytest.raises(CheckpointError, match="refused: it names '__builtin__ bytearray'"):
        read(forge(save(store, 1), (tmp_path / "bomb").read_bytes()))


@pytest.mark.parametrize("attack", ["deflated", "doubled", "absolute", "outside"])
def test_a_forged_archive_is_refused(store, tmp_path, attack):
    path = save(store, 1)
    names = {"absolute": "/etc/x", "outside": "archive/../../x", "doubled": "archive/version"}
    kind = zipfile.ZIP_DEFLATED if attack == "deflated" else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(path / "state.pt", "a", kind) as archive:
        warnings.simplefilter("ignore")
        archive.writestr(names.get(attack, "archive/bomb"), bytes(10_000))
    with pytest.raises(CheckpointError, match="refused"):
        read(forge(path, (path / "state.pt").read_bytes()))


# --- Faults while saving -------------------------------------------------------------------------


class Faults:
    """Counts the calls that change the disk, and acts at one of them, or from it on.

    Of the writes, which are many, only each `every`-th counts; half of it is written.
    """

    def __init__(self, monkeypatch, at: int, act, lasting: bool = False, every: int = 1) -> None:
        self.at, self.act, self.lasting, self.every = at, act, lasting, every
        self.count = self.n_writes = 0
        self.unsynced: list[int] = []
        monkeypatch.setattr(state_file, "os", self)
        for name in ("rename", "replace", "mkdir"):
            monkeypatch.setattr(Path, name, self.wrap(getattr(Path, name)))
        self.open = self.wrap(self.open)
        self.fsync = self.wrap(self.fsync)

    def __getattr__(self, name):
        return getattr(os, name)

    def is_due(self) -> bool:
        self.count += 1
        return self.count >= self.at if self.lasting else self.count == self.at

    def wrap(self, function):
        def call(*arguments, **options):
            if self.is_due():
                self.act(self)
            return function(*arguments, **options)

        return call

    def open(self, path, flags, mode=0o666):
        descriptor = os.open(path, flags, mode)
        if flags & os.O_CREAT:
            self.unsynced.append(os.fstat(descriptor).st_ino)
        return descriptor

    def fsync(self, descriptor):
        os.fsync(descriptor)
        inode = os.fstat(descriptor).st_ino
        self.unsynced = [each for each in self.unsynced if each != inode]

    def write(self, descriptor, data):
        self.n_writes += 1
        has_died = self.lasting and self.count >= self.at
        if has_died or (self.n_writes % self.every == 0 and self.is_due()):
            os.write(descriptor, data[: 0 if has_died else len(data) // 2])
            self.act(self)
        return os.write(descriptor, data)


def prepare(folder: Path, scenario: str) -> None:
    """Save the checkpoints that stand before the save that will be disturbed."""
    (folder / "checkpoints").mkdir(parents=True)
    store = CheckpointStore(folder / "checkpoints", keep=2)
    steps = {"first": [], "next, with pruning": [1, 2, 3], "the same step": [1, 5]}[scenario]
    for step in steps:
        save(store, step, is_best=step == 2)


def expected(scenario: str) -> list[dict]:
    """Return the states that may be found after a disturbed save: the new or the old."""
    olds = {"first": [], "next, with pruning": [make_state(3)], "the same step": [make_state(5)]}
    return [make_state(50), *olds[scenario]]


def found_in(store: CheckpointStore) -> dict | None:
    """Return what a resume would go on with."""
    newest = store.newest()
    return None if newest is None else read(newest)


DISTURBED = {"step": 5, "state": make_state(50), "is_best": True}
scenarios = pytest.mark.parametrize("scenario", ["first", "next, with pruning", "the same step"])
# Quick: each open, fsync, rename and mkdir, but only some of the writes. Slow: each call.
every_write = pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])


@pytest.mark.parametrize("power", ["kept", "lost"])
@scenarios
def test_a_kill_at_any_point_leaves_the_old_or_the_new(tmp_path, scenario, power):
    """Also when the power goes and all that was not synced turns to zeros."""
    prepare(tmp_path / "prepared", scenario)
    assert kill_everywhere(tmp_path, scenario, power, kill=killed_in_thought, every=20) > 12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("power", ["kept", "lost"])
@scenarios
def test_a_real_kill_at_every_single_call_leaves_the_old_or_the_new(tmp_path, scenario, power):
    prepare(tmp_path / "prepared", scenario)
    assert kill_everywhere(tmp_path, scenario, power, kill=killed_in_truth, every=1) > 60


def kill_everywhere(tmp_path: Path, scenario: str, power: str, kill, every: int) -> int:
    """Save once for each point where a kill may come, and check what is found after it."""
    for at in range(1, 1000):
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "prepared", folder)
        store = CheckpointStore(folder / "checkpoints", keep=2)
        was_killed, unsynced = kill(store, at, every)
        if power == "lost":
            lose(unsynced, folder)

        found = found_in(store)
        assert scenario == "first" or found is not None
        assert found is None or any(same(found, state) for state in expected(scenario))
        store.sweep()
        assert not [name for name in names(store) if not name.startswith("step-")]
        save(store, **DISTURBED)
        assert same(found_in(store), make_state(50))
        assert not [name for name in names(store) if name.endswith("~")]
        if not was_killed:
            break
    return at


class Killed(BaseException):
    """The process is no more: nothing that follows reaches the disk."""


def killed_in_thought(store: CheckpointStore, at: int, every: int) -> tuple[bool, list[int]]:
    """Save up to a call, and let no later one through; return what was not synced by then."""

    def kill(_: Faults) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as monkeypatch:
        faults = Faults(monkeypatch, at, kill, lasting=True, every=every)
        monkeypatch.setattr(shutil, "rmtree", faults.wrap(shutil.rmtree))
        try:
            save(store, **DISTURBED)
        except Killed:
            return True, faults.unsynced
    return False, faults.unsynced


def killed_in_truth(store: CheckpointStore, at: int, every: int) -> tuple[bool, list[int]]:
    """Do the same in a process that ends at that call."""
    note = store.folder.parent / "unsynced"

    def die(faults: Faults) -> None:
        note.write_text(json.dumps(faults.unsynced))
        os._exit(9)

    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as monkeypatch:
            Faults(monkeypatch, at, die, every=every)
            save(store, **DISTURBED)
            os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9, json.loads(note.read_text()) if note.exists() else []


def lose(unsynced: list[int], folder: Path) -> None:
    """Turn into zeros the files (named by their inodes) that had not been synced."""
    for path in (folder / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_ino in unsynced:
            path.write_bytes(bytes(path.stat().st_size))


@every_write
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@scenarios
def test_an_io_error_at_any_call_is_told_and_loses_nothing(
    tmp_path, caplog, scenario, lasting, every
):
    def fail(faults: Faults) -> None:
        raise OSError(errno.EIO, "Input/output error")

    prepare(tmp_path / "prepared", scenario)
    outcomes = set()
    for at in range(1, 1000):
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "prepared", folder)
        store = CheckpointStore(folder / "checkpoints", keep=2)
        caplog.clear()
        with pytest.MonkeyPatch.context() as monkeypatch:
            faults = Faults(monkeypatch, at, fail, lasting, every)
            outcome, message = outcome_of(store, caplog)
        told = (str(store.folder), "Input/output error (errno 5)", " bytes needed, ")
        assert outcome != "raised" or all(part in message for part in told)

        found = found_in(store)
        states = expected(scenario)[: 2 if outcome == "raised" else 1]
        assert (scenario, outcome) == ("first", "raised") or found is not None
        assert found is None or any(same(found, state) for state in states)
        assert outcome == "warned" or not list(store.folder.glob(".tmp-*"))
        assert scenario != "the same step" or lasting or (store.folder / "step-00000005").exists()
        outcomes.add(outcome)
        if faults.count < at:
            break
    assert outcomes == {"raised", "warned", "saved"}


def outcome_of(store: CheckpointStore, caplog) -> tuple[str, str]:
    """Save, and tell how it went and what was said."""
    try:
        save(store, **DISTURBED)
    except CheckpointError as error:
        return "raised", str(error)
    return ("warned" if caplog.records else "saved"), caplog.text


def test_a_full_disk_is_an_error_with_its_own_words(store):
    """Where torch alone would raise a RuntimeError without errno."""
    save(store, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"File too large \(errno 27\); 400008 bytes"
        ) as info:
            save(store, 2, make_state(2, size=100_000) | {"optimizer": 0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(info.value.__cause__, OSError)
    assert names(store) == {"step-00000001"}
    assert same(read(store.folder), make_state(1))


def test_too_little_room_is_seen_before_writing(store, monkeypatch):
    save(store, 1)
    disk = SimpleNamespace(total=10**9, free=2**20 + 99)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    monkeypatch.setattr(checkpoint, "write_state", lambda *_: pytest.fail("wrote"))
    with pytest.raises(CheckpointError, match=r"No space left .* 172 bytes needed, 1048675 free"):
        save(store, 2)


def test_an_interrupt_while_saving_leaves_no_rest(store, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    save(store, 1)
    with monkeypatch.context() as patch:
        Faults(patch, 20, interrupt)
        with pytest.raises(KeyboardInterrupt):
            save(store, 2)
    assert names(store) == {"step-00000001"}


# --- The same step, pruning, hints ---------------------------------------------------------------


def test_the_same_step_can_be_saved_again(store):
    save(store, 5, {"a": 1}, metrics={}, is_best=False)
    path = save(store, 5, {"a": 2}, metrics={"loss": 0.5}, is_best=True)
    assert names(store) == {"step-00000005"}
    assert read(path) == {"a": 2}

    save(store, 5, {"a": 3}, metrics={}, is_best=False)  # as on a signal right after
    assert read(path) == {"a": 3}
    assert read_manifest(path)["metrics"] == {"loss": 0.5}
    assert store.best() == path

    save(store, 6, metrics={}, is_best=False)
    save(store, 6, metrics={}, is_best=True)
    assert store.best().name == "step-00000006"


def test_pruning_keeps_the_last_the_best_and_the_protected(store):
    for step in range(1, 9):
        path = save(store, step, is_best=step in (1, 3))
        if step == 2:
            store.protect(path / "state.pt")
    assert names(store) == {f"step-0000000{step}" for step in (2, 3, 6, 7, 8)}
    assert store.best().name == "step-00000003"
    assert json.loads((store.folder / "last.json").read_text()) == {"step": 8}
    assert json.loads((store.folder / "best.json").read_text()) == {"step": 3}


def test_damaged_checkpoints_do_not_count_as_kept(store):
    for step in (1, 2, 3):
        path = save(store, step)
    for path in store.folder.glob("step-0000000[23]"):
        (path / "manifest.json").write_text("{")
    save(store, 4)
    save(store, 5)
    assert {"step-00000001", "step-00000004", "step-00000005"} <= names(store)


def test_after_going_back_the_abandoned_checkpoints_are_put_aside(store):
    """Else the next resume would go on with the steps that the user went back from."""
    for step in (10, 20, 30):
        save(store, step, is_best=step == 30)
    save(store, 15)

    assert store.newest().name == "step-00000015"
    assert store.best() is None
    (aside,) = store.folder.glob("aside-step-00000030-*")
    assert same(read(aside), make_state(30))


def test_best_is_found_without_its_hint_and_passed_over_when_damaged(store, caplog):
    save(store, 1, is_best=True)
    newer = save(store, 2, is_best=True)
    (store.folder / "best.json").write_text("nonsense")
    assert store.best() == newer

    content = bytearray((newer / "state.pt").read_bytes())
    content[500] ^= 1
    (newer / "state.pt").write_bytes(content)
    assert store.best().name == "step-00000001"
    assert "step-00000002" in caplog.text


def test_sweep_removes_what_a_killed_process_left(store):
    save(store, 1)
    for name in (".tmp-00000002-ab", ".trash-1-step-00000000"):
        (store.folder / name).mkdir()
        (store.folder / name / "state.pt").touch()
    (store.folder / ".tmp-last.json").touch()
    store.sweep()
    assert {path.name for path in store.folder.iterdir()} == {"step-00000001", "last.json"}


# --- Before the first step -----------------------------------------------------------------------


def test_probe_makes_the_folder_and_leaves_nothing_in_it(store):
    store.probe()
    assert names(store) == set()


def test_probe_names_the_folder_that_is_missing_or_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="No such file"):
        CheckpointStore(tmp_path / "missing" / "checkpoints").probe()
    with pytest.raises(CheckpointError, match="Not a directory"):
        CheckpointStore(tmp_path / "file").probe()


def test_probe_refuses_a_folder_that_cannot_be_written(store, monkeypatch):
    def refuse(_):
        raise OSError(errno.EROFS, "Read-only file system")

    store.probe()
    Faults(monkeypatch, 1, refuse)
    with pytest.raises(CheckpointError, match=r"checkpoints: cannot write here: Read-only"):
        store.probe()


# --- Giving objects their state ------------------------------------------------------------------


class Refuses:
    """A callback that cannot take its state."""

    def state_dict(self) -> dict:
        return {"old": 1}

    def load_state_dict(self, state: dict) -> None:
        raise KeyError("new")


def make_parts(width: int = 4) -> dict:
    model = nn.Sequential(OrderedDict(stem=nn.Linear(3, width), head=nn.Linear(width, 2)))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


def states_of(parts: dict) -> dict:
    return copy.deepcopy({name: part.state_dict() for name, part in parts.items()})


def test_all_that_does_not_fit_is_listed_and_nothing_is_changed():
    parts = make_parts()
    before = states_of(parts)
    state = states_of(make_parts(width=5)) | {"critic": {}}
    del state["model"]["head.bias"]
    state["model"]["haed.bias"] = torch.zeros(2)
    state["optimizer"]["param_groups"].append({"params": [4]})

    with pytest.raises(CheckpointError) as info:
        restore({**parts, "generator": nn.Linear(1, 1)}, state)

    assert str(info.value).splitlines() == [
        "the checkpoint does not fit, nothing was changed:",
        "  generator: not in the checkpoint",
        "  critic: only in the checkpoint",
        "  model.head.bias: not in the checkpoint; did you mean 'haed.bias'?",
        "  model.haed.bias: only in the checkpoint; did you mean 'head.bias'?",
        "  model.stem.weight: shape (5, 3) in the checkpoint, shape (4, 3) here",
        "  model.stem.bias: shape (5,) in the checkpoint, shape (4,) here",
        "  model.head.weight: shape (2, 5) in the checkpoint, shape (2, 4) here",
        "  optimizer: parameters per group are [4, 1] in the checkpoint, [4] here",
    ]
    assert same(states_of(parts), before)


def test_an_object_that_refuses_its_state_leaves_the_model_unchanged():
    parts = make_parts()
    before = states_of(parts)
    state = states_of(make_parts()) | {"callback": {"old": 2}}
    state["model"]["stem.bias"].fill_(7)

    with pytest.raises(CheckpointError, match="callback: cannot take its state: KeyError"):
        restore({**parts, "callback": Refuses()}, state)
    assert same(states_of(parts), before)


def test_a_state_can_be_given_twice_since_training_does_not_reach_it():
    source, parts = make_parts(), make_parts()
    state = states_of(source)
    restore(parts, state)
    parts["model"](torch.ones(1, 3)).square().sum().backward()
    parts["optimizer"].step()
    assert same(state, states_of(source))


def test_extra_state_of_a_module_is_given_as_a_copy():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: dict = {}

        def get_extra_state(self) -> dict:
            return self.seen

        def set_extra_state(self, state: dict) -> None:
            self.seen = state

    module, state = Counts(), {"_extra_state": {"images": 5}}
    restore({"m": module}, {"m": state})
    module.seen["images"] += 1
    assert state == {"_extra_state": {"images": 5}}


def test_weights_must_fit_exactly():
    module = nn.Linear(3, 2)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(CheckpointError, match=r"(?s)bias: not in.*weight: shape \(4, 3\)"):
        load_weights(module, {"weight": torch.zeros(4, 3)})
    assert same(module.state_dict(), before)

    load_weights(module, nn.Linear(3, 2).state_dict())
    assert not same(module.state_dict(), before)


def test_a_thousand_checkpoints_are_listed_at_once(store):
    for step in (1, 2):
        path = save(store, step)
    for step in range(3, 1001):
        path.with_name(f"step-{step:08d}").symlink_to(path)
    started = time.process_time()
    assert store.newest().name == "step-00001000"
    assert store.best() is None
    assert time.process_time() - started < 1
