"""Stand-ins for wandb, trackio and mlflow: their signatures, and a store that outlives a process.

As of wandb 0.31, trackio 0.43 and mlflow 3.17. An argument that the real ones do not take fails.
"""

from __future__ import annotations

import types
from types import SimpleNamespace
from typing import Any

import numpy as np

Points = list[tuple[int, dict[str, Any]]]


class _Histogram:
    def __init__(self, sequence=None, np_histogram=None, num_bins=64):
        counts, limits = np_histogram
        assert len(limits) == len(counts) + 1 <= 513
        self.counts = list(counts)


class _Image:
    def __init__(self, value, caption=None):
        assert isinstance(value, np.ndarray)
        assert value.dtype == np.uint8
        assert value.shape[2] == 3
        self.shape = value.shape


class FakeWandb(types.ModuleType):
    """Takes rows of steps that grow; others are dropped with a warning, here an error."""

    Histogram, Image = _Histogram, _Image

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: dict[str, Points] = {}
        self.inits: list[dict[str, Any]] = []
        self.exit_codes: list[int | None] = []

    def init(  # noqa: PLR0913
        self, entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None,
        config=None, allow_val_change=None, group=None, mode=None, resume=None, settings=None,
    ):  # fmt: skip
        self.inits.append(dict(project=project, id=id, name=name, tags=tags, mode=mode))
        assert resume == "allow"
        assert type(config) is dict
        rows = [] if mode == "offline" else self.runs.setdefault(id, [])
        if mode == "offline":
            self.runs[f"{id}-{len(self.inits)}"] = rows

        def log(data, step=None, commit=None):
            assert commit is True
            assert all(step > former for former, _ in rows), f"step {step} was logged already"
            rows.append((step, data))

        return SimpleNamespace(
            log=log,
            step=rows[-1][0] + 1 if rows else 0,
            offline=mode == "offline",
            url="https://example.org/run",
            finish=lambda exit_code=None: self.exit_codes.append(exit_code),
        )

    def points(self) -> Points:
        return [row for rows in self.runs.values() for row in rows]


class FakeTrackio(types.ModuleType):
    Histogram, Image = _Histogram, _Image

    def __init__(self) -> None:
        super().__init__("trackio")
        self.runs: dict[str, Points] = {}
        self.inits: list[dict[str, Any]] = []

    def init(  # noqa: PLR0913
        self, project, name=None, group=None, space_id=None, server_url=None, dataset_id=None,
        config=None, resume="never", settings=None, private=None, embed=True,
    ):  # fmt: skip
        self.inits.append(dict(project=project, name=name))
        assert resume == "allow"
        assert embed is False
        rows = self.runs.setdefault(name, [])
        return SimpleNamespace(
            log=lambda metrics, step=None: rows.append((step, metrics)),
            _next_step=rows[-1][0] + 1 if rows else 0,
            finish=lambda: None,
        )

    def points(self) -> Points:
        return [row for rows in self.runs.values() for row in rows]


class FakeMlflow(types.ModuleType):
    """One store, whatever the client."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.metrics: list[Any] = []
        self.images: list[tuple[str, int]] = []
        self.params: dict[str, str] = {}
        self.status: list[str] = []
        self.runs: list[str] = []
        self.entities = SimpleNamespace(Metric=_Metric, Param=_Param)

    def MlflowClient(self, tracking_uri=None, registry_uri=None):  # noqa: N802
        return _Client(self)

    def points(self) -> Points:
        steps: dict[int, dict[str, Any]] = {}
        for each in self.metrics:
            tags = steps.setdefault(each.step, {})
            assert each.key not in tags, f"{each.key} is there twice at step {each.step}"
            tags[each.key] = each.value
        return sorted(steps.items())


class _Metric(SimpleNamespace):
    def __init__(self, key, value, timestamp, step):
        super().__init__(key=key, value=value, timestamp=timestamp, step=step)


class _Param(SimpleNamespace):
    def __init__(self, key, value):
        assert key
        super().__init__(key=key, value=value)


class _Client:
    def __init__(self, store: FakeMlflow) -> None:
        self.store = store

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id="7") if self.store.runs else None

    def create_experiment(self, name, artifact_location=None, tags=None):
        return "7"

    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        self.store.runs.append(run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    def update_run(self, run_id, status=None, name=None):
        self.store.status.append(status)

    def get_run(self, run_id):
        return SimpleNamespace(data=SimpleNamespace(metrics={m.key: 0 for m in self.store.metrics}))

    def get_metric_history(self, run_id, key):
        return [each for each in self.store.metrics if each.key == key]

    def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
        assert len(params) <= 100
        self.store.metrics += metrics
        self.store.params |= {each.key: each.value for each in params}

    def log_image(self, run_id, image, artifact_file=None, key=None, step=None, timestamp=None,
                  synchronous=None):  # fmt: skip
        self.store.images.append((key, step))

    def log_text(self, run_id, text, artifact_file):
        pass

    def set_terminated(self, run_id, status=None, end_time=None):
        self.store.status.append(status)


FAKES = {"wandb": FakeWandb, "trackio": FakeTrackio, "mlflow": FakeMlflow}
