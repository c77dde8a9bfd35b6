"""Writers: what they keep can be read back, and none can stop a run."""

import importlib.machinery
import logging
import re
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

import pytest
import torch

from logger.writers import Histogram, TensorBoardWriter, Writer, Writers, tag_of

KINDS = ("scalars", "images", "histograms")


def read_back(folder: Path):
    """Return what TensorBoard's own reader sees."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    accumulator = EventAccumulator(str(folder), size_guidance=dict.fromkeys(KINDS, 0))
    return accumulator.Reload()


class Remembering(Writer):
    name = "memory"

    def __init__(self) -> None:
        self.seen = []

    def add_scalars(self, values, step):
        self.seen.append((step, dict(values)))

    def add_row(self, row):
        self.seen.append(dict(row))


class Failing(Writer):
    name = "disk"

    def __init__(self, method: str, error: Exception) -> None:
        def fail(*_):
            raise error

        setattr(self, method, fail)


def use(writers: Writers) -> None:
    for step in range(3):
        writers.add_scalars({"loss": 0.5}, step)
        writers.add_images("samples", torch.zeros(2, 3, 4, 4), step)
        writers.add_histograms({"weights": Histogram([0.0, 1.0], [3])}, step)
        writers.add_text("notes", "text", step)
        writers.add_row({"step": step})
        writers.flush()
    writers.close()


@pytest.mark.parametrize(
    "method",
    [
        *("open", "add_scalars", "add_row", "add_images", "add_histograms", "add_text"),
        *("flush", "close"),
    ],
)
def test_a_failing_writer_warns_once_and_the_others_go_on(method, caplog):
    memory = Remembering()
    error = OSError(28, "No space left on device\nand more of it")
    use(Writers([Failing(method, error), memory]))
    assert len(memory.seen) == 6
    assert [r.getMessage() for r in caplog.records] == [
        "disk is off, training continues without it: [Errno 28] No space left on device"
    ]


def test_an_error_without_a_text_is_named_by_its_kind(caplog):
    use(Writers([Failing("add_row", KeyError())]))
    assert caplog.messages == ["disk is off, training continues without it: KeyError"]


def test_a_users_interrupt_is_no_failure_of_a_writer():
    with pytest.raises(KeyboardInterrupt):
        use(Writers([Failing("add_row", KeyboardInterrupt())]))


def test_without_tensorboard_one_line_says_what_to_install(monkeypatch, caplog, tmp_path):
    for name in [n for n in sys.modules if n.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    memory = Remembering()
    use(Writers([TensorBoardWriter(tmp_path), memory]))
    assert len(memory.seen) == 6
    (message,) = caplog.messages
    assert "TensorBoard is off" in message
    assert "pip install tensorboard" in message
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_and_torch_that_disagree_warn_once(monkeypatch, caplog, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    use(Writers([TensorBoardWriter(tmp_path), Remembering()]))
    (message,) = caplog.messages
    assert "TensorBoard is off" in message


def test_a_disk_that_fails_under_tensorboard_warns_once_in_one_line(caplog, tmp_path):
    writers = Writers([TensorBoardWriter(tmp_path / "file" / "run")])
    (tmp_path / "file").write_text("a file where the folder should be")
    use(writers)
    assert len(caplog.messages) == 1
    assert writers.writers == []


def test_tensorboard_reads_back_each_scalar_text_and_image(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    values = {step: {"train/loss": 1 / step, "lr": 0.1 * step} for step in (50, 100, 150)}
    for step, point in values.items():
        writer.add_scalars(point, step)
    image = torch.linspace(-1, 2, 2 * 3 * 8 * 8, requires_grad=True).reshape(2, 3, 8, 8)
    writer.add_images("samples", image, 150)
    writer.add_text("config", "name: digits", 150)

    events = read_back(tmp_path)  # before close: what was written is on disk
    for name, tag in {"train/loss": "train/loss", "lr": "watch/lr"}.items():
        read = {e.step: e.value for e in events.Scalars(tag)}
        assert read == pytest.approx({step: point[name] for step, point in values.items()})
    (picture,) = events.Images("visuals/samples")
    assert (picture.height, picture.width) == (8, 16)
    (text,) = events.Tensors("config/text_summary")
    assert text.tensor_proto.string_val == [b"name: digits"]
    writer.close()


def test_tensorboard_reads_back_each_bucket_between_the_empty_ends(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    limits = [-3.0, -1.0, 0.0, 0.5, 2.0, 9.0]
    histograms = {
        "weights": Histogram(limits, [0, 4, 0, 6, 0]),
        "all": Histogram(limits, [1, 2, 3, 4, 5]),
        "nothing": Histogram(limits, [0, 0, 0, 0, 0]),
    }
    writer.add_histograms(histograms, 7)
    events = read_back(tmp_path)
    (event,) = events.Histograms("weights")
    value = event.histogram_value
    assert (event.step, value.min, value.max, value.num) == (7, -1, 2, 10)
    # A bucket reaches from the limit before it, the first one from the least value.
    assert (value.bucket_limit, value.bucket) == ([0, 0.5, 2], [4, 0, 6])
    value = events.Histograms("all")[0].histogram_value
    assert (value.min, value.max, value.num) == (-3, 9, 15)
    assert (value.bucket_limit, value.bucket) == (limits[1:], [1, 2, 3, 4, 5])
    assert events.Histograms("nothing")[0].histogram_value.num == 0
    writer.close()


def groups_in_order(tags):
    """Return the groups of the Time Series page in its order; the first two are open.

    As `compareTagNames` and `groupCardIdWithMetdata` of TensorBoard's page do it: by character,
    numbers by value, and "/" and digits before all others.
    """

    def place(tag):
        parts = re.findall(r"\d+|\D", tag)
        return [
            (0, float(p), "") if p.isdigit() else (0, -1.0, "") if p == "/" else (1, 0.0, p)
            for p in parts
        ]

    return list(dict.fromkeys(tag.split("/")[0] for tag in sorted(tags, key=place)))


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (
            ["step/loss", "lr/0", "lr/1", "train/loss", "valid/accuracy", "seconds", "wait",
             "samples_per_second", "memory_mb", "time/data", "time/compute", "train/grad_norm",
             "capture/stem/activation/mean", "train/critic_grad_norm", "step/grad_cosine/a/b",
             "inputs", "samples"],
            ["train", "valid", "visuals", "watch"],
        ),
        (["lr", "step/loss", "train/loss", "samples"], ["train", "visuals", "watch"]),
        (["mine/a", "lr", "valid/learning_rate", "timely"], ["mine", "timely", "valid", "watch"]),
    ],
)  # fmt: skip
def test_the_first_screen_of_tensorboard_shows_losses_and_metrics(names, groups):
    tags = [tag_of(name) for name in names]
    assert groups_in_order(tags) == groups
    assert len(set(tags)) == len(tags)
    assert not [tag for tag in tags if "grad_" in tag and not tag.startswith("watch/")]


@pytest.fixture
def hparams_page():
    """Return the table of TensorBoard's HParams page for a folder of runs: its settings, its rows.

    A row is a run: its settings, and its metrics by tag.
    """

    def read(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from tensorboard.backend.event_processing import data_provider
            from tensorboard.backend.event_processing.plugin_event_multiplexer import (
                EventMultiplexer,
            )
            from tensorboard.context import RequestContext
            from tensorboard.plugins.base_plugin import TBContext
            from tensorboard.plugins.hparams import api_pb2
            from tensorboard.plugins.hparams.backend_context import Context
            from tensorboard.plugins.hparams.list_session_groups import Handler

            multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
            multiplexer.Reload()
            provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
            context = Context(TBContext(data_provider=provider))
            request = RequestContext()
            metadata = context.hparams_metadata(request, "")
            experiment = context.experiment_from_metadata(
                request, "", True, metadata, context.hparams_from_data_provider(request, "", 0)
            )
            statuses = [api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING, api_pb2.STATUS_SUCCESS]
            asked = api_pb2.ListSessionGroupsRequest(
                start_index=0, slice_size=100, allowed_statuses=statuses, include_metrics=True
            )
            found = Handler(request, context, "", asked).run().session_groups
        rows = {}
        for group in found:
            (session,) = group.sessions
            values = {name: value for name, value in group.hparams.items()}
            values = {
                name: value.number_value if value.HasField("number_value") else value.string_value
                for name, value in values.items()
            }
            metrics = {each.name.tag: each.value for each in session.metric_values}
            rows[session.name] = (values, metrics)
        return {info.name for info in experiment.hparam_infos}, rows

    return read


@pytest.mark.filterwarnings("ignore")
def test_hparams_shows_the_changed_settings_and_the_last_values(tmp_path, hparams_page):
    changed = {
        "a": {"optimizer.args.lr": 0.001, "model.type": "ResNet", "lr_scheduler": None},
        "b": {"optimizer.args.lr": 1, "memory.inplace": True, "args.betas": [0.5, 1]},
        "c": {},
    }
    for number, (name, settings) in enumerate(changed.items()):
        for start in range(2):  # the second one is a resume
            writer = TensorBoardWriter(tmp_path / name, start * 2 or None, settings)
            for step in (1, 2):
                writer.add_scalars({"valid/loss": 10.0 * number + step, "lr": 0.5}, step + start)
            writer.close()
    names, rows = hparams_page(tmp_path)
    assert names == {name for settings in changed.values() for name in settings}
    assert rows["a"][0] == {"optimizer.args.lr": 0.001, "model.type": "ResNet",
                            "lr_scheduler": "null"}  # fmt: skip
    assert rows["b"][0] == {"optimizer.args.lr": 1, "memory.inplace": "true",
                            "args.betas": "[0.5, 1]"}  # fmt: skip
    assert rows["c"][0] == {}
    assert [rows[name][1]["valid/loss"] for name in "abc"] == [2, 12, 22]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]  # no run beside them


@pytest.mark.parametrize("cut", [0, 3, 5, 10])
def test_after_a_resume_no_step_is_there_twice(cut, tmp_path):
    first = TensorBoardWriter(tmp_path)
    for step in range(1, 11):
        first.add_scalars({"loss": float(step)}, step)
    # Killed here: no close. The run goes on from the checkpoint of step `cut`.
    resumed = TensorBoardWriter(tmp_path, purge_step=cut + 1)
    for step in range(cut + 1, 13):
        resumed.add_scalars({"loss": -float(step)}, step)
    resumed.close()
    first.close()
    read = [(e.step, e.value) for e in read_back(tmp_path).Scalars("loss")]
    kept = [(step, float(step)) for step in range(1, cut + 1)]
    assert read == kept + [(step, -float(step)) for step in range(cut + 1, 13)]


def test_event_files_sort_in_the_order_of_the_runs_whatever_the_clock_says(tmp_path):
    (tmp_path / "events.out.tfevents.9000000000.other.1").touch()
    for k in range(3):
        writer = TensorBoardWriter(tmp_path)
        writer.add_scalars({"loss": float(k)}, k)
        writer.close()
    assert [e.value for e in read_back(tmp_path).Scalars("loss")] == [0, 1, 2]
    stamps = sorted(path.name.split(".")[3] for path in tmp_path.iterdir())
    assert stamps == [f"900000000{k}" for k in range(4)]


def test_nothing_is_imported_written_or_started_before_the_first_value(project_root, tmp_path):
    code = (
        "import sys, pathlib; from logger.writers import *\n"
        "writers = Writers([TensorBoardWriter(pathlib.Path(sys.argv[1]))])\n"
        "writers.flush(); writers.close()\n"
        "assert not {'torch', 'tensorboard', 'numpy', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, cwd=project_root)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_tensorflow_is_left_alone_and_no_import_speaks(project_root, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from logger.writers import *\n"
        "writers = Writers([TensorBoardWriter(pathlib.Path(sys.argv[1]) / 'run')])\n"
        "writers.add_scalars({'loss': 1.0}, 1); assert writers.writers; writers.close()\n"
    )
    command = [sys.executable, "-W", "always", "-c", code, tmp_path]
    run = subprocess.run(command, check=True, cwd=project_root, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("", "")


def test_no_thread_stands_beside_the_workers(tmp_path):
    before = threading.active_count()
    writer = TensorBoardWriter(tmp_path)
    writer.add_scalars({"loss": 1.0}, 1)
    assert threading.active_count() == before
    writer.close()


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 8, 3), (1, 2, 3, 4, 5)])
def test_images_of_another_shape_are_the_callers_error(shape, tmp_path):
    with pytest.raises(ValueError, match=r"samples: expected \(batch, 1 or 3, height, width\)"):
        Writers([TensorBoardWriter(tmp_path)]).add_images("samples", torch.zeros(shape), 1)


def test_where_torchs_tools_refuse_tensorboardx_writes_the_events(monkeypatch, tmp_path, caplog):
    """tensorboardX need not be installed: its names are given to tensorboard's own things."""
    from tensorboard.compat.proto.event_pb2 import Event
    from torch.utils.tensorboard import RecordWriter, summary

    names = ("tensorboardX", "tensorboardX.proto", "tensorboardX.proto.event_pb2")
    modules = {name: types.ModuleType(name) for name in names}
    for name in ("tensorboardX.record_writer", "tensorboardX.summary"):
        modules[name] = types.ModuleType(name)
    modules["tensorboardX"].__spec__ = importlib.machinery.ModuleSpec("tensorboardX", None)
    modules["tensorboardX.proto.event_pb2"].Event = Event
    opened = []

    def records(path):
        assert isinstance(path, str)
        opened.append(path)
        return RecordWriter(Path(path).open("xb"))

    modules["tensorboardX.record_writer"].RecordWriter = records
    modules["tensorboardX.summary"].image = summary.image
    modules["tensorboardX.summary"].text = summary.text
    modules["tensorboardX.summary"].hparams = summary.hparams
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    writers = Writers([TensorBoardWriter(tmp_path)])
    use(writers)
    assert caplog.messages == []
    assert len(opened) == 1
    assert [e.value for e in read_back(tmp_path).Scalars("loss")] == [0.5, 0.5, 0.5]
    assert read_back(tmp_path).Images("visuals/samples")
