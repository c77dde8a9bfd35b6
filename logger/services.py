"""Writers for experiment trackers: wandb, trackio and mlflow.

A package is imported when its writer is opened. Trackers keep the values they have received, so a
resumed run does not send the same steps again.
"""

from __future__ import annotations

import importlib
import json
import logging
import random
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logger.files import read_file, write_whole
from logger.writers import Histogram, Writer, trim

if TYPE_CHECKING:
    from torch import Tensor

KEPT = "writers.json"
"""The file in a run's folder that holds the run's name or id in each tracker."""


class Service(Writer):
    """Base class of the trackers.

    Args:
        folder: the run's folder, which keeps the tracker's name or id of the run.
        config: the run's config, which the tracker shows.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder, self.config = folder, config
        self.run_name = f"{config['name']}-{folder.name}"

    def open(self) -> None:
        """Start or resume the tracker's run, without changing Python's random state."""
        stream = random.getstate()
        try:
            self._open(_import(self.name))
        finally:
            random.setstate(stream)

    def _open(self, package: Any) -> None:
        raise NotImplementedError

    def _get_or_create_id(self, make: Callable[[], str]) -> tuple[str, bool]:
        """Return the tracker's name or id of this run, and whether the run had one before."""
        path = self.folder / KEPT
        kept = json.loads(read_file(path)) if path.exists() else {}
        is_known = self.name in kept
        if not is_known:
            kept[self.name] = make()
            write_whole(path, json.dumps(kept, indent=1).encode())
        return str(kept[self.name]), is_known


class RowService(Service):
    """Sends one row per step, complete or, if the process dies before, not at all."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__(folder, config)
        self._row: dict[str, Any] = {}
        self._step = self._next = 0

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        self._add(values, step)

    def add_images(self, tag: str, images: Tensor, step: int) -> None:
        self._add({tag: self._package.Image(side_by_side(images))}, step)

    def add_histograms(self, histograms: Mapping[str, Histogram], step: int) -> None:
        for tag, histogram in histograms.items():
            limits, counts = coarser(trim(histogram))
            self._add({tag: self._package.Histogram(np_histogram=(counts, limits))}, step)

    def flush(self) -> None:
        if self._row:
            step = max(self._step, self._next)
            self._next = step + 1
            row, self._row = self._row, {}
            self._log(row, step)

    def close(self) -> None:
        self.flush()
        self._run.finish()

    def _open(self, package: Any) -> None:
        self._package = package
        self._run = self._start(package)
        self._first = self._next = self._next_step()

    def _add(self, values: Mapping[str, Any], step: int) -> None:
        if step < self._first:
            return  # it was sent before the run was interrupted
        # A sent row cannot grow: a late value of its step goes into the next row.
        if step != self._step >= self._next:
            self.flush()
        self._step = step
        self._row.update(values)

    def _start(self, package: Any) -> Any:
        raise NotImplementedError

    def _next_step(self) -> int:
        """Return the step after the last one that the tracker has received."""
        raise NotImplementedError

    def _log(self, row: dict[str, Any], step: int) -> None:
        self._run.log(row, step=step)


class WandbWriter(RowService):
    """Weights & Biases; ``mode: offline`` only writes into the run's folder."""

    name = "wandb"

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        notes: str | None = None,
        mode: str | None = None,
    ) -> None:
        super().__init__(folder, config)
        tags = [tags] if isinstance(tags, str) else list(tags)
        self.args = {"project": project or config["name"], "entity": entity, "group": group}
        self.args |= {"tags": tags, "notes": notes, "mode": mode}

    def close(self) -> None:
        self.flush()
        self._run.finish(exit_code=int(_is_failing()))

    def _start(self, package: Any) -> Any:
        run_id, _ = self._get_or_create_id(lambda: secrets.token_hex(8))
        run = package.init(
            **self.args,
            id=run_id,
            resume="allow",
            name=self.run_name,
            dir=str(self.folder),
            config=dict(self.config),
            allow_val_change=True,
            # Kindling writes the console output to log.txt.
            settings={"console": "off", "silent": True},
        )
        if not run.offline:
            logging.getLogger("kindling").info("wandb: %s", run.url)
        return run

    def _next_step(self) -> int:
        # Offline, wandb does not know the steps of earlier starts of the run.
        kept = self.folder / "wandb" / "next_step"
        is_resumed = self._run.offline and kept.exists()
        return int(read_file(kept)) if is_resumed else int(self._run.step)

    def _log(self, row: dict[str, Any], step: int) -> None:
        self._run.log(row, step=step, commit=True)
        if self._run.offline:
            write_whole(self.folder / "wandb" / "next_step", str(step + 1).encode())


class TrackioWriter(RowService):
    """Trackio, with a local database or a Hugging Face Space."""

    name = "trackio"

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        project: str | None = None,
        group: str | None = None,
        space_id: str | None = None,
    ) -> None:
        super().__init__(folder, config)
        self.args = {"project": project or config["name"], "group": group, "space_id": space_id}

    def _start(self, package: Any) -> Any:
        name, _ = self._get_or_create_id(lambda: self.run_name)
        return package.init(
            **self.args, name=name, resume="allow", config=dict(self.config), embed=False
        )

    def _next_step(self) -> int:
        return int(self._run._next_step)  # undocumented; without it, this writer is disabled


class MlflowWriter(Service):
    """MLflow, with one request per call."""

    name = "mlflow"

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        experiment: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, config)
        self.experiment, self.tracking_uri = experiment or config["name"], tracking_uri
        self.tags = dict(tags or {})
        self._last: dict[str, int] = {}

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        named = {_valid_tag(tag): float(value) for tag, value in values.items()}
        now = int(time.time() * 1000)
        metrics = [
            self._package.entities.Metric(tag, value, now, step)
            for tag, value in named.items()
            if step > self._last.get(tag, -1)
        ]
        if metrics:
            self._client.log_batch(self._run_id, metrics=metrics)

    def add_images(self, tag: str, images: Tensor, step: int) -> None:
        self._client.log_image(self._run_id, side_by_side(images), key=_valid_tag(tag), step=step)

    def add_text(self, tag: str, text: str, step: int) -> None:
        self._client.log_text(self._run_id, text, f"{_valid_tag(tag)}/{step:08d}.txt")

    def close(self) -> None:
        self._client.set_terminated(self._run_id, "FAILED" if _is_failing() else "FINISHED")

    def _open(self, package: Any) -> None:
        self._package = package
        self._client = client = package.MlflowClient(self.tracking_uri)
        self._run_id, is_known = self._get_or_create_id(self._create)
        if is_known:
            client.update_run(self._run_id, status="RUNNING")
            for tag in client.get_run(self._run_id).data.metrics:
                history = client.get_metric_history(self._run_id, tag)
                self._last[tag] = max(point.step for point in history)
            return
        params = [
            package.entities.Param(key, text[:500]) for key, text in _flat_config(self.config)
        ]
        for first in range(0, len(params), 100):  # the limit of a request
            client.log_batch(self._run_id, params=params[first : first + 100])

    def _create(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        number = found.experiment_id if found else self._client.create_experiment(self.experiment)
        run = self._client.create_run(number, tags=self.tags, run_name=self.run_name)
        return str(run.info.run_id)


SERVICES: dict[str, type[Service]] = {
    kind.name: kind for kind in (WandbWriter, TrackioWriter, MlflowWriter)
}


def coarser(histogram: Histogram, n_buckets: int = 512) -> Histogram:
    """Join neighbouring buckets up to the limit of wandb and trackio."""
    limits, counts = histogram
    n_joined = -(-len(counts) // n_buckets)
    joined = [sum(counts[k : k + n_joined]) for k in range(0, len(counts), n_joined)]
    return Histogram([*limits[:-1:n_joined], limits[-1]], joined)


def side_by_side(images: Tensor) -> Any:
    """Return images  # (batch, 1 or 3, height, width), 0 to 1, as one RGB array of bytes."""
    colours = images.detach().float().clamp(0, 1).mul(255).round().byte().cpu()
    row = colours.expand(-1, 3, -1, -1).permute(2, 0, 3, 1)
    return row.reshape(row.shape[0], -1, 3).contiguous().numpy()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(f"{name} is not installed (pip install {name})") from error


def _is_failing() -> bool:
    """Return whether an error is ending the run; it is being raised while `close` runs."""
    return sys.exc_info()[0] is not None


def _valid_tag(tag: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", tag)


def _flat_config(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping | list) and value:
        for name, child in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _flat_config(child, f"{key}.{name}" if key else str(name))
    elif value is not None and value not in ([], {}):
        yield _valid_tag(key), str(value)
