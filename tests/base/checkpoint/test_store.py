"""Checkpoints: what was saved comes back, and no fault met while saving or after loses it."""

import copy
import errno
import json
import os
import pickle
import shutil
import threading
import time
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from faults.disk import DiskCalls
from stores import forge, make_state, names, same, save, write_manifest
from torch import nn

from base.checkpoint import store as checkpoint
from base.checkpoint.state_dicts import load_state_dicts, load_weights
from base.checkpoint.store import CheckpointStore, read, read_manifest
from base.errors import CheckpointError, UsageError
from base.system.seeding import capture_random_state


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
    for value, text in (
        (odd, f"a {kind} tensor cannot be saved"),
        ({2**64: 1}, "the key 18446744073709"),
    ):
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
    load_state_dicts(resumed, read(save(store, 3, states(stopped))))
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


def test_newest_goes_by_number_not_by_date_or_hint(store):
    for step in (9, 10, 11):
        os.utime(save(store, step), (2_000_000_000 - step, 2_000_000_000 - step))
    (store.folder / "last.json").write_text('{"step": 9}')
    assert store.newest().name == "step-00000011"


def test_steps_beyond_eight_digits_are_still_ordered(store):
    save(store, 99_999_999)
    save(store, 100_000_000)
    assert store.newest().name == "step-100000000"


@pytest.mark.fault("F32")
def test_a_newer_format_is_refused_and_never_passed_over(store):
    save(store, 1)
    path = save(store, 2)
    write_manifest(path, format=checkpoint.FORMAT + 1)

    for attempt in (lambda: read(path), store.newest):
        with pytest.raises(CheckpointError, match="newer version: its format is 3"):
            attempt()
    save(store, 3)
    assert path.exists()


@pytest.mark.fault("F32")
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


class Calls:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.fault("F20")
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


@pytest.mark.fault("F20")
def test_a_small_file_cannot_ask_for_much_memory(store, tmp_path):
    torch.save({"a": Calls(bytearray, 10**12)}, tmp_path / "bomb")
    with pytest.raises(CheckpointError, match="refused: it names 'bytearray'"):
        read(forge(save(store, 1), (tmp_path / "bomb").read_bytes()))


@pytest.mark.fault("F20")
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


@pytest.mark.fault("F05")
def test_too_little_room_is_seen_before_writing(store, monkeypatch):
    save(store, 1)
    disk = SimpleNamespace(total=10**9, free=2**20 + 99)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    monkeypatch.setattr(checkpoint, "write_state", lambda *_: pytest.fail("wrote"))
    with pytest.raises(CheckpointError, match=r"No space left .* 172 bytes are needed, 1048675"):
        save(store, 2)


def test_an_interrupt_while_saving_leaves_no_rest(store, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    save(store, 1)
    with monkeypatch.context() as patch:
        DiskCalls(patch, 20, interrupt)
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


def test_a_save_does_not_wait_until_pruned_checkpoints_are_gone(store, monkeypatch):
    """A disk takes longer to remove a large file than to sync the names; the next save waits."""
    may_remove, rmtree = threading.Event(), shutil.rmtree

    def remove_late(path, ignore_errors=False):
        assert may_remove.wait(30)
        rmtree(path, ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", remove_late)
    for step in range(1, 5):
        save(store, step)
    (trash,) = store.folder.glob(".trash-*-step-00000001")
    assert (trash / "state.pt").exists()
    assert same(read(store.folder), make_state(4))

    following = threading.Thread(target=save, args=(store, 5))
    following.start()
    following.join(0.1)
    assert following.is_alive()
    may_remove.set()
    following.join(30)
    assert names(store) == {f"step-0000000{step}" for step in (3, 4, 5)}


def test_what_a_failed_removal_left_is_removed_with_the_next(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        for step in range(1, 5):
            save(store, step)
        assert len(list(store.folder.glob(".trash-*"))) == 1
    save(store, 5)
    assert names(store) == {f"step-0000000{step}" for step in (3, 4, 5)}


def test_a_folder_that_goes_during_the_removal_is_no_error_of_it(store, monkeypatch):
    save(store, 1)
    store.wait()

    def listed(folder, pattern):
        folder.rename(folder.with_name("elsewhere"))
        return iter(list(os.scandir(folder)))

    monkeypatch.setattr(Path, "glob", listed)
    store.removal.start(store._empty_trash)
    store.wait()  # raises nothing: the next save reports it
    assert not store.folder.exists()


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


def test_where_each_best_is_damaged_the_newest_is_taken_with_a_warning(store, caplog):
    best = save(store, 1, is_best=True)
    save(store, 2), save(store, 3)
    (best / "state.pt").write_bytes((best / "state.pt").read_bytes()[::-1])
    assert store.best().name == "step-00000003"
    assert "falling back to" in caplog.text


def test_sweep_removes_what_a_killed_process_left(store):
    save(store, 1)
    for name in (".tmp-00000002-ab", ".trash-1-step-00000000"):
        (store.folder / name).mkdir()
        (store.folder / name / "state.pt").touch()
    (store.folder / ".tmp-last.json").touch()
    store.remove_leftovers()
    assert {path.name for path in store.folder.iterdir()} == {"step-00000001", "last.json"}


# --- Before the first step -----------------------------------------------------------------------


def test_probe_makes_the_folder_and_leaves_nothing_in_it(store):
    store.check_writable()
    assert names(store) == set()


def test_probe_names_the_folder_that_is_missing_or_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="No such file"):
        CheckpointStore(tmp_path / "missing" / "checkpoints").check_writable()
    with pytest.raises(CheckpointError, match="Not a directory"):
        CheckpointStore(tmp_path / "file").check_writable()


def test_probe_refuses_a_folder_that_cannot_be_written(store, monkeypatch):
    def refuse(_):
        raise OSError(errno.EROFS, "Read-only file system")

    store.check_writable()
    DiskCalls(monkeypatch, 1, refuse)
    with pytest.raises(CheckpointError, match=r"cannot write here: Read-only"):
        store.check_writable()


# --- Giving objects their state ------------------------------------------------------------------


class Refuses:
    """A callback that cannot load its state."""

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


@pytest.mark.fault("F25")
def test_all_that_does_not_fit_is_listed_and_nothing_is_changed():
    parts = make_parts()
    before = states_of(parts)
    state = states_of(make_parts(width=5)) | {"critic": {}}
    del state["model"]["head.bias"]
    state["model"]["haed.bias"] = torch.zeros(2)
    state["optimizer"]["param_groups"].append({"params": [4]})

    with pytest.raises(CheckpointError) as info:
        load_state_dicts({**parts, "generator": nn.Linear(1, 1)}, state)

    assert str(info.value).splitlines() == [
        "the checkpoint does not match; nothing was changed:",
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


@pytest.mark.fault("F25")
def test_an_object_that_refuses_its_state_leaves_the_model_unchanged():
    parts = make_parts()
    before = states_of(parts)
    state = states_of(make_parts()) | {"callback": {"old": 2}}
    state["model"]["stem.bias"].fill_(7)

    with pytest.raises(CheckpointError, match="callback: cannot load its state: KeyError"):
        load_state_dicts({**parts, "callback": Refuses()}, state)
    assert same(states_of(parts), before)


def test_a_state_can_be_given_twice_since_training_does_not_reach_it():
    source, parts = make_parts(), make_parts()
    state = states_of(source)
    load_state_dicts(parts, state)
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
    load_state_dicts({"m": module}, {"m": state})
    module.seen["images"] += 1
    assert state == {"_extra_state": {"images": 5}}


@pytest.mark.fault("F25")
def test_weights_must_fit_exactly():
    module = nn.Linear(3, 2)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(CheckpointError, match=r"(?s)bias: not in.*weight: shape \(4, 3\)"):
        load_weights(module, {"weight": torch.zeros(4, 3)})
    assert same(module.state_dict(), before)

    load_weights(module, nn.Linear(3, 2).state_dict())
    assert not same(module.state_dict(), before)


@pytest.mark.fault("F30")
def test_a_thousand_checkpoints_are_listed_at_once(store):
    for step in (1, 2):
        path = save(store, step)
    for step in range(3, 1001):
        path.with_name(f"step-{step:08d}").symlink_to(path)
    started = time.process_time()
    assert store.newest().name == "step-00001000"
    assert store.best() is None
    assert time.process_time() - started < 1


def counted_manifests(monkeypatch) -> list[Path]:
    """Return a list that receives the folder of each manifest that is read."""
    reads: list[Path] = []
    whole = checkpoint.read_manifest

    def read_one(folder):
        reads.append(folder)
        return whole(folder)

    monkeypatch.setattr(checkpoint, "read_manifest", read_one)
    return reads


@pytest.mark.parametrize("keep", [3, 10_000])
def test_a_save_reads_as_many_manifests_however_many_checkpoints_are_kept(
    tmp_path, monkeypatch, keep
):
    store = CheckpointStore(tmp_path / "checkpoints", keep=keep)
    reads = counted_manifests(monkeypatch)
    n_reads = []
    for step in range(1, 61):
        reads.clear()
        save(store, step, is_best=step == 7)
        n_reads.append(len(reads))
    kept = {f"step-{step:08d}" for step in range(1, 61) if step > 60 - keep or step == 7}
    assert names(store) == kept
    assert max(n_reads) <= checkpoint.N_CHECKED + 2
    reads.clear()
    assert store.newest().name == "step-00000060"
    assert len(reads) <= 2


def test_the_best_is_found_without_reading_older_manifests(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path / "checkpoints", keep=100)
    for step in range(1, 31):
        save(store, step, is_best=step in (5, 28))
    reads = counted_manifests(monkeypatch)
    assert store.best().name == "step-00000028"
    assert len(reads) <= 5  # 30, 29, 28, and 28 again to verify its state


def test_many_kept_checkpoints_are_pruned_as_few_are(tmp_path):
    """The newest whole ones are kept, also those that a save does not read again."""
    store = CheckpointStore(tmp_path / "checkpoints", keep=15)
    for step in range(1, 31):
        path = save(store, step, is_best=step == 4)
        if step == 20:
            (path / "manifest.json").write_text("{")
    kept = {f"step-{step:08d}" for step in [4, *range(15, 31)]}
    assert names(store) == kept
