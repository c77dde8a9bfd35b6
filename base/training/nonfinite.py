"""Finds NaN and infinite values, and keeps them out of checkpoints."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from base.distributed.shard import Rows, local_part
from base.errors import TrainingError
from base.training.host_copy import HostCopy


def refuse_bad_weights(model: nn.Module, step: int) -> None:
    """Check that the weights to be saved after a step are finite.

    Raises:
        TrainingError: a parameter holds NaN or infinite values.
    """
    name = first_nonfinite(model.named_parameters())
    if name is not None:
        raise TrainingError(_not_saved("weights", step, name))


def refuse_bad_optimizers(state: Mapping[str, Any]) -> None:
    """Check that the optimizer states to be saved are finite: otherwise Adam cannot recover.

    Raises:
        TrainingError: a tensor holds NaN or infinite values.
    """
    named = (
        (f"{key} of parameter {number} in {name}", rows)
        for name, part in state.items()
        if name.startswith("optimizer.") and isinstance(part.get("state"), dict)
        for number, kept in part["state"].items()
        for key, tensor in (kept.items() if isinstance(kept, dict) else ())
        if isinstance(rows := tensor.tensor if isinstance(tensor, Rows) else tensor, Tensor)
        and rows.is_floating_point()
    )
    name = first_nonfinite(named)
    if name is not None:
        raise TrainingError(_not_saved("states of an optimizer", state["progress"]["step"], name))


def _not_saved(what: str, step: int, name: str) -> str:
    return (
        f"the {what} are not finite after step {step} (first: {name}). They are not saved, and the "
        "last checkpoint is good: lower the learning rate, set clip_norm, or set "
        "trainer.on_nonfinite=skip"
    )


def first_nonfinite(
    named: Iterable[tuple[str, Tensor | None]], with_squares: bool = False
) -> str | None:
    """Return the name of the first tensor with NaN or infinite values, in the rows of this process.

    It synchronizes with the device once. The sum of squares, eight times as fast as the maximum on
    a CPU, is finite only for finite values; the maximum is computed only if the squares overflow.

    Args:
        with_squares: also return a tensor whose squares overflow, which Adam and norms compute.
    """
    local = ((name, local_part(tensor)) for name, tensor in named if tensor is not None)
    plain = {name: t for name, t in local if t.layout is torch.strided and t.numel()}
    if not plain:
        return None
    tensors = [tensor.detach() for tensor in plain.values()]
    for order in (2,) if with_squares else (2, math.inf):
        is_finite = _are_finite(torch._foreach_norm(tensors, order))
        if all(is_finite):
            return None
    return next(n for n, finite in zip(plain, is_finite, strict=True) if not finite)


def _are_finite(numbers: Sequence[Tensor]) -> list[bool]:
    """Return whether each number is finite, with one copy from each device."""
    by_device: dict[torch.device, dict[torch.dtype, list[int]]] = {}
    for place, number in enumerate(numbers):
        by_device.setdefault(number.device, {}).setdefault(number.dtype, []).append(place)
    found: dict[int, bool] = {}
    for kinds in by_device.values():
        flags = [torch.stack([numbers[place] for place in each]) for each in kinds.values()]
        read = torch.cat([flag.isfinite() for flag in flags]).tolist()
        found.update(zip(chain.from_iterable(kinds.values()), read, strict=True))
    return [found[place] for place in range(len(numbers))]


class FiniteWatch:
    """Detects non-finite losses with little synchronization.

    On the CPU the value is checked at once. On CUDA a flag is copied to the host after the forward
    pass, while the backward pass is already queued; reading it before the optimizer's step waits
    for the forward pass only.

    After `read_late` nothing waits: a flag on the GPU makes optimizers leave out each step from the
    first non-finite loss on, and the host reads it once it has arrived.
    """

    def __init__(self) -> None:
        self._pending: list[HostCopy] = []
        self._is_finite = True
        self.is_on = True  # off in trial steps
        self.reads_late = False
        self._flag: Tensor | None = None  # 1 after a non-finite loss; optimizers read it
        self._optimizers: list[Optimizer] = []  # that read it
        self._late: deque[tuple[HostCopy, Any]] = deque()

    def read_late(self, optimizers: Iterable[Optimizer], device: torch.device) -> None:
        """Read flags after the step if all optimizers can leave it out by a flag on the device."""
        optimizers = list(optimizers)
        if device.type != "cuda" or not all(map(can_leave_out_steps, optimizers)):
            return
        self.reads_late, self._flag = True, torch.zeros((), device=device)
        self._optimizers = optimizers
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._pass_flag)

    @property
    def must_wait(self) -> bool:
        """Whether flags are read late, but an optimizer can no longer leave out a step by them.

        A resumed run takes ``fused`` from its checkpoint, and a user may set it at any time.
        """
        return self.reads_late and not all(map(can_leave_out_steps, self._optimizers))

    def watch(self, loss: Tensor, facts: Callable[[], Any]) -> None:
        """Check a loss that is about to be minimised.

        Args:
            facts: returns what `first_late` is to return, not None, if the loss is not finite.
        """
        if self._flag is not None and self.reads_late:
            if self.is_on:
                self._watch_late(loss.detach(), self._flag, facts)
        elif loss.is_cuda:
            self._pending.append(HostCopy(torch.isfinite(loss)))
        elif not math.isfinite(loss.item()):  # no synchronization on the CPU
            self._is_finite = False

    def all_finite(self) -> bool:
        """Return whether all losses since the last call were finite, but those that are late."""
        if self._is_finite and not self._pending:
            return True
        is_finite = self.is_finite()
        self._pending.clear()
        self._is_finite = True
        return is_finite

    def is_finite(self) -> bool:
        """Return whether all losses since the last call of `all_finite` were finite."""
        is_finite = self._is_finite
        for copy in self._pending:
            copy.wait()
            is_finite = is_finite and bool(copy.number)
        return is_finite or not self.is_on

    def wait(self, is_due: Callable[[Any], bool]) -> None:
        """Wait once, for the last of the late flags whose facts are due."""
        due = [copy for copy, facts in self._late if is_due(facts)]
        if due:
            due[-1].wait()

    def first_late(self) -> Any:
        """Return the facts of the first non-finite loss among the flags that arrived, else None."""
        while self._late and self._late[0][0].is_ready():
            is_bad, facts = self._late.popleft()
            if is_bad.number:
                self._late.clear()
                if self._flag is not None:
                    self._flag.zero_()
                return facts
        return None

    def _watch_late(self, loss: Tensor, flag: Tensor, facts: Callable[[], Any]) -> None:
        is_bad = (loss - loss).ne(0)  # NaN for NaN and infinity; fewer kernels than isfinite
        is_bad = is_bad.reshape(()).to(flag.device, non_blocking=True)  # of shape (1,), elsewhere
        torch.maximum(flag, is_bad, out=flag)
        self._late.append((HostCopy(is_bad), facts()))

    def _pass_flag(self, optimizer: Any, *_: Any) -> None:
        """Set what a fused optimizer reads on the device: whether to leave out the step."""
        assert self._flag is not None  # see `read_late`
        # The loss scaler sets this attribute, and removes it after the step.
        found: Any = getattr(optimizer, "found_inf", None)
        is_own = found is None or found is self._flag
        if can_leave_out_steps(optimizer):
            optimizer.found_inf = self._flag if is_own else torch.maximum(found, self._flag)
        elif found is self._flag:
            del optimizer.found_inf  # else torch refuses to step


def can_leave_out_steps(optimizer: Optimizer) -> bool:
    """Return whether an optimizer can leave out a step by a flag on the device.

    The fused ones of torch can, for the loss scaler of fp16. A subclass with a step of its own may
    change weights outside of the kernel.
    """
    is_own = not type(optimizer).step.__module__.startswith("torch.optim.")
    is_fused = all(group.get("fused") for group in optimizer.param_groups)
    return is_fused and not is_own and getattr(optimizer, "_step_supports_amp_scaling", False)
