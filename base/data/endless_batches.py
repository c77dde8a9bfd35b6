"""An endless, resumable iterator over a second loader, for trainers that draw from two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from base.data.batch import to_device
from base.errors import DataError


class EndlessBatches(Iterator[Any]):
    """Iterates over a loader endlessly, with a new order in each pass::

        loader = self.build("data_loader", self.config["extra"]["unlabelled_loader"])
        self.unlabelled = EndlessBatches(loader, self.device)
        self.register("unlabelled", self.unlabelled)

    Once registered, it resumes at its position, which ``itertools.cycle`` cannot do.

    Args:
        loader: a loader, such as the result of ``self.build``, or ``self.train_loader``.
        device: the device of the batches.
    """

    def __init__(self, loader: Any, device: torch.device | str = "cpu") -> None:
        self.loader, self.device = loader, torch.device(device)
        self.position = 0
        """The number of batches yielded since the start of the run."""
        self._pass: Iterator[Any] | None = None

    def __next__(self) -> Any:
        batch = next(self._pass, None) if self._pass is not None else None
        if batch is None:
            self._pass = self._rest_of_pass()
            batch = next(self._pass, None)
        if batch is None:
            raise DataError(f"{type(self.loader).__name__} gives no batch: is its data set empty?")
        self.position += 1
        return to_device(batch, self.device)

    def _rest_of_pass(self) -> Iterator[Any]:
        n_batches = max(len(self.loader), 1)
        rest: Iterator[Any] = self.loader.batches(
            self.position, n_batches - self.position % n_batches
        )
        return rest

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["position"] != self.position:
            self.position, self._pass = state_dict["position"], None
