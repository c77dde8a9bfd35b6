"""A copy of a number from the GPU to the host that nothing waits for."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """Begins to copy a tensor of a GPU to the host; the copy holds nonsense until it is ready."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.detach().to("cpu", non_blocking=True)
        self._event = torch.cuda.Event()
        # Of the tensor's own device, which may not be the current one.
        self._event.record(torch.cuda.current_stream(tensor.device))

    def is_ready(self) -> bool:
        """Return, without waiting, whether the copy is complete."""
        return bool(self._event.query())

    def wait(self) -> None:
        """Wait until the copy is complete."""
        if not self._event.query():
            self._event.synchronize()

    @property
    def number(self) -> float:
        """The number, once the copy is ready."""
        return float(self._copy)
