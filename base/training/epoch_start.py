"""The start of an epoch: ``begin_epoch`` and ``on_epoch_start``, and their repetition on a resume.

Values that they set need not be saved (the weight of a loss, the level of a curriculum): they are
called again when a run resumes within an epoch, when a checkpoint is tested, and for trial steps
before training. Registered state is then restored, so that ``self.w *= 0.9`` applies once an
epoch.
"""

from __future__ import annotations

import copy
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from base.checkpoint.background import Snapshot
from base.checkpoint.state_dicts import load_state_dicts
from base.data.batch import tensors_in
from base.system.seeding import derive_seed, isolated_random_state
from base.training.losses import WeightedLoss
from base.training.progress import Stateful
from base.training.state import TrainingState, matches_name
from base.training.trials import keep_buffers

# State that is not recorded before the start of an epoch: it does not change, or is too large.
NOT_RECORDED = (
    "model", "optimizer.", "schedule.", "scaler.", "metric.", "ema", "monitor", "meters", "random",
    "progress", "bad_samples", "epoch_start",
)  # fmt: skip
SNAPSHOT_NAMES = ("model", "optimizer.", "ema")  # copied to CPU memory
MAX_BYTES = 256 << 20  # of the state of an object; a larger state is not recorded
_LIBRARIES = {"base", "logger", "torch", "torchvision", "numpy", *sys.stdlib_module_names}


class EpochStart:
    """Calls ``begin_epoch`` and ``on_epoch_start`` once an epoch, and repeats them if needed.

    Its state holds the progress and the registered state from before the last call, as far as the
    call changed it. A repeated call therefore reads and sets the same values.

    Args:
        prepare: calls the trainer's ``begin_epoch`` and ``on_epoch_start`` of its callbacks.
        has_own: whether the trainer overrides ``begin_epoch``.
        seed: the seed of the run.
        owners: returns the objects other than the model whose attributes these calls may set.
    """

    def __init__(
        self,
        state: TrainingState,
        prepare: Callable[[], None],
        callbacks: Mapping[str, Any],
        has_own: bool,
        seed: int,
        owners: Callable[[], Iterable[object]],
    ) -> None:
        self.state, self._prepare, self._callbacks = state, prepare, callbacks
        self._has_own, self._seed, self._owners = has_own, seed, owners
        self._begun_epoch: int | None = None  # the epoch that has begun
        self._recorded: dict[str, Any] = {}
        self._since_kept: list[dict[str, Any]] = []  # the progress at each start, for a rollback
        self._modes: list[tuple[nn.Module, bool]] = []

    @property
    def is_used(self) -> bool:
        """Whether the trainer or a callback overrides one of the two methods."""
        return self._has_own or any(map(_prepares_epochs, self._callbacks.values()))

    def begin(self) -> None:
        """Set the model to training mode; begin the epoch unless it has begun."""
        progress = self.state.progress
        self.state.freezing.begin_epoch(progress.step)
        if not self.is_used:
            return
        if self._begun_epoch == progress.epoch:
            for module, is_training in self._modes:
                module.training = is_training
            return
        if progress.batch == 0:
            self._since_kept.append(progress.state_dict())
            self._call_and_record()
        else:
            self._call_again()
        self._begun_epoch = progress.epoch

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Begin an epoch for trial steps inside the block; restore everything after it."""
        if not self.is_used or self._begun_epoch == self.state.progress.epoch:
            yield
            return
        since_kept = list(self._since_kept)
        with self._kept_state():
            put_back = self._keep_changes(self.begin)
            try:
                yield
            finally:
                put_back()
                self._begun_epoch, self._since_kept, self._modes = None, since_kept, []

    @contextmanager
    def as_saved(self) -> Iterator[None]:
        """Begin the epoch of the restored state for an evaluation inside the block."""
        if not self.is_used:
            yield
            return
        put_back = self._keep_changes(self._call_again)
        try:
            yield
        finally:
            put_back()

    def begin_as_saved(self) -> None:
        """Begin the epoch of the restored state for all that follows."""
        if self.is_used:
            self._keep_changes(self._call_again)

    def note_kept(self) -> None:
        """Clear the list of starts: a state for rollbacks was saved."""
        self._since_kept = []

    def replay(self, unchanged: Collection[str]) -> None:
        """Repeat the epoch starts since the state that a rollback restored.

        Args:
            unchanged: names in ``stateful``, or prefixes, that a rollback does not restore.
        """
        if self._since_kept:
            stateful = self.state.stateful.items()
            with self._kept_state({n: one for n, one in stateful if matches_name(n, unchanged)}):
                for progress in self._since_kept:
                    self.state.progress.load_state_dict(progress)
                    self._call_and_record()

    def state_dict(self) -> dict[str, Any]:
        return self._recorded

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._recorded = state_dict

    def _call_and_record(self) -> None:
        """Begin a new epoch; record the state that the call changes."""
        stateful, progress = self.state.stateful, self.state.progress.state_dict()
        states = {
            n: one.state_dict() for n, one in stateful.items() if not matches_name(n, NOT_RECORDED)
        }
        before = {n: _copied(each) for n, each in states.items() if _is_small(each)}
        self._call()
        changed = {n: s for n, s in before.items() if not _is_same(s, stateful[n].state_dict())}
        self._recorded = {"progress": progress, "parts": changed}

    def _call_again(self) -> None:
        """Begin the epoch of the saved state again, without changing the saved state."""
        with self._kept_state():
            found = self._recorded_or_default()
            for name, state in found["parts"].items():
                if name in self.state.stateful:
                    self.state.stateful[name].load_state_dict(_copied(state))
            self.state.progress.load_state_dict(found["progress"])
            self._call()

    def _recorded_or_default(self) -> dict[str, Any]:
        """Return the record of the saved epoch's start, or else the number of the epoch alone."""
        progress = self.state.progress
        epoch = progress.epoch if progress.batch else max(progress.epoch - 1, 0)
        if self._recorded and self._recorded["progress"]["epoch"] == epoch:
            return self._recorded
        return {"progress": {**progress.state_dict(), "epoch": epoch, "batch": 0}, "parts": {}}

    def _call(self) -> None:
        modes = {module: module.training for module in self.state.model.modules()}
        seed = derive_seed(self._seed, "begin_epoch", self.state.progress.epoch)
        with isolated_random_state(seed):
            self._prepare()
        self._modes = [(m, m.training) for m, before in modes.items() if m.training != before]
        for loss in self.state.losses.values():
            loss.follow_weights()

    def _keep_changes(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call a function; return a function that restores the attributes it changed.

        It covers the owners and their parts, objects with state, and the modules of model and
        losses. Containers and tensors keep their identity.
        """
        state = self.state
        functions = [loss.function for loss in state.losses.values()]
        roots = [one for one in (state.model, *functions) if isinstance(one, nn.Module)]
        modules = [module for root in roots for module in root.modules()]
        losses = [getattr(function, "func", function) for function in functions]
        found = [*self._owners(), *state.stateful.values(), *losses, *modules]
        return keep_changes(call, found, modules, state.losses.values())

    @contextmanager
    def _kept_state(self, stateful: Mapping[str, Stateful] | None = None) -> Iterator[None]:
        """Restore all state after the block, or the given objects only."""
        kept = self.state.stateful if stateful is None else stateful
        states = {name: one.state_dict() for name, one in kept.items()}
        large = {
            n: s for n, s in states.items() if matches_name(n, SNAPSHOT_NAMES) or not _is_small(s)
        }
        # Other states stay on their device: a user's object may not accept another one.
        states = {name: _copied(s) for name, s in states.items() if name not in large}
        states |= Snapshot().take(large)
        try:
            yield
        finally:
            load_state_dicts(kept, states)


def _prepares_epochs(callback: Any) -> bool:
    method = getattr(type(callback), "on_epoch_start", None)
    place = f"{getattr(method, '__module__', '')}.{getattr(method, '__qualname__', '')}"
    return method is not None and place != "base.callbacks.Callback.on_epoch_start"


def keep_changes(
    call: Callable[[], None],
    owners: Iterable[object],
    modules: Iterable[nn.Module],
    losses: Iterable[WeightedLoss],
) -> Callable[[], None]:
    """Call a function; return a function that restores attributes, buffers and weights."""
    buffers_back = keep_buffers(modules)
    distinct = {id(one): one for one in owners if _has_attributes(one)}.values()
    recorded = [(one, dict(vars(one)), _contents(one)) for one in distinct]
    call()
    changed = []
    for one, former, contents in recorded:
        now = vars(one)
        names = [n for n in {**former, **now} if n not in now or former.get(n, now) is not now[n]]
        held = [each for each in contents if _differs(*each)]
        changed.append((one, former, _public(one, names), held))

    def put_back() -> None:
        for one, former, names, held in changed:
            for name in names:
                vars(one).pop(name, None)
                if name in former:
                    vars(one)[name] = former[name]
            for value, kept in held:
                _refill(value, kept)
        buffers_back()
        for loss in losses:
            loss.follow_weights()

    return put_back


def owners_of_attributes(
    owner: object, callbacks: Iterable[object], loaders: Iterable[object]
) -> list[Any]:
    """Return the objects that the start of an epoch may change, and their parts."""
    loaders = [each for each in loaders if each is not None]
    loaders += [vars(each)["loader"] for each in loaders if "loader" in vars(each)]  # replayed
    parts = ("dataset", "valid_dataset", "sampler", "batch_sampler")
    of_loaders = [vars(each).get(part) for each in loaders for part in parts]
    own = [each for each in vars(owner).values() if _is_own(each)]
    return [owner, *callbacks, *own, *loaders, *of_loaders]


def _has_attributes(one: object) -> bool:
    return hasattr(one, "__dict__") and not isinstance(one, type | EpochStart)


def _is_own(one: object) -> bool:
    """Return whether an object may have state that only the user's code sets."""
    module = type(one).__module__
    return module.startswith("base.datasets.") or module.partition(".")[0] not in _LIBRARIES


def _public(one: object, names: list[str]) -> list[str]:
    """Return the names to restore; private attributes of the engine's loaders are excluded."""
    module = type(one).__module__
    if not module.startswith("base.") or module.startswith("base.datasets."):
        return names
    return [name for name in names if not name.startswith("_")]


def _contents(one: object) -> list[tuple[Any, Any]]:
    """Return the containers and small tensors of an object, each with a copy."""
    values = vars(one).values()
    found: list[tuple[Any, Any]] = [(v, copy.copy(v)) for v in values if isinstance(v, _CONTAINERS)]
    tensors = (v for v in values if isinstance(v, Tensor) and _is_small(v))
    return found + [(value, value.detach().clone()) for value in tensors]


_CONTAINERS = (list, dict, set, deque)


def _differs(value: Any, former: Any) -> bool:
    if isinstance(value, Tensor):
        return not _is_same(value, former)
    if isinstance(value, dict):
        same = value.keys() == former.keys() and all(value[k] is former[k] for k in value)
    elif isinstance(value, list | deque):
        same = len(value) == len(former) and all(map(_is_identical, value, former))
    else:
        same = value == former
    return not same


def _is_identical(one: object, other: object) -> bool:
    return one is other


def _refill(value: Any, former: Any) -> None:
    if isinstance(value, Tensor):
        with torch.no_grad():
            value.copy_(former)
        return
    value.clear()
    (value.extend if isinstance(value, list | deque) else value.update)(former)


def _copied(state: Any) -> Any:
    """Copy plain data and tensors; detach the tensors."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        copied = copy.copy(state)
        copied.update((key, _copied(value)) for key, value in state.items())
        return copied
    return (
        type(state)(map(_copied, state)) if type(state) in (list, tuple) else copy.deepcopy(state)
    )


def _is_small(state: Any) -> bool:
    return sum(tensor.nbytes for tensor in tensors_in(state)) <= MAX_BYTES


def _is_same(one: Any, other: Any) -> bool:
    """Return whether plain data and tensors are equal; tensors may be on different devices."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(np.all(one == other))
