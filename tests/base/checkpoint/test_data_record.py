"""What a run knows of its data: what is recorded, and what takes the place of training data."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset
from toy import CPU, make, run

from base.base_data_loader import BaseDataLoader, as_batches
from base.checkpoint.data_record import check_classes, record_of, use_record
from base.config import load_config
from base.datasets import images
from base.datasets.composed import ConcatenatedDataset, SubsetDataset
from base.datasets.dataset_loader import DatasetLoader
from base.datasets.in_memory import InMemoryDataset, SyntheticDataset
from base.errors import DataError
from base.names.registry import DATA_LOADERS
from base.prediction import image_loader, load_trained
from base.run.build import build_experiment, build_test_data
from base.run.data_changes import record_to_resume
from base.run.loaders import build_test_loader

PIXELS = torch.randint(0, 256, (60, 3, 8, 6), dtype=torch.uint8)
LABELS = torch.arange(60) % 3
NAMES = ["ant", "bee", "cat"]


class Encoded(InMemoryDataset):
    """Two columns of numbers whose codes are part of the record."""

    def __init__(self, codes, n_samples=12):
        super().__init__(torch.arange(2.0 * n_samples).view(-1, 2), torch.zeros(n_samples))
        self.codes = codes

    def record(self):
        return {"codes": self.codes}

    def use_record(self, record):
        self.codes = record["codes"]


def test_the_record_holds_statistics_of_the_training_part_classes_and_size():
    loader = DatasetLoader(InMemoryDataset(PIXELS, LABELS, NAMES), 16, split=0.25, normalize="auto")
    loader.set_seed(7)
    pixels = PIXELS[loader._indices].double() / 255
    record = record_of(loader)
    assert record["mean"] == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert record["std"] == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-6)
    assert (record["classes"], record["size"]) == (NAMES, [8, 6])


def test_another_loader_normalises_to_the_bit_by_the_record():
    trained = DatasetLoader(InMemoryDataset(PIXELS, LABELS), 16, split=0.25, normalize="auto")
    other = DatasetLoader(InMemoryDataset(PIXELS // 2, LABELS), 16, normalize="auto")
    use_record(other, json.loads(json.dumps(record_of(trained))))
    found = next(other.batches(0, 1))[0]
    expected = trained._pipelines[1].as_input(PIXELS // 2)[other._order(0)[:16]]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("normalize", [None, "imagenet", {"mean": [0.5] * 3, "std": [0.1] * 3}])
def test_a_record_leaves_alone_what_the_config_gives(normalize):
    trained = DatasetLoader(InMemoryDataset(PIXELS, LABELS), 16, normalize="auto")
    one, other = (
        DatasetLoader(InMemoryDataset(PIXELS, LABELS), 16, normalize=normalize) for _ in range(2)
    )
    use_record(other, record_of(trained))
    assert torch.equal(next(one.batches(0, 1))[0], next(other.batches(0, 1))[0])


@pytest.mark.parametrize("wrap", [
    lambda d: d,
    lambda d: Subset(d, [0, 2, 4, 6]),
    lambda d: SubsetDataset(d, first=4),
    lambda d: ConcatenatedDataset([d, Encoded({"a": 0}, 3)]),
])  # fmt: skip
@pytest.mark.parametrize("loader", [
    lambda d: BaseDataLoader(d, 2, True, 0, 0),
    lambda d: DatasetLoader(d, 2),
    lambda d: DatasetLoader(d, 2, split=0.5, cache="memory"),
])  # fmt: skip
def test_a_data_sets_own_record_passes_through_what_lies_around_it(wrap, loader):
    source = Encoded({"a": 0})
    around = loader(wrap(source))
    assert record_of(around)["codes"] == {"a": 0}
    use_record(around, {"codes": {"b": 1}})
    assert source.codes == {"b": 1}
    assert record_of(around)["codes"] == {"b": 1}


def test_joined_data_sets_must_be_encoded_alike():
    loader = DatasetLoader(ConcatenatedDataset([Encoded({"a": 0}), Encoded({"a": 1})]), 2)
    with pytest.raises(DataError, match="codes of data set 1 are not those of data set 0"):
        record_of(loader)


@pytest.mark.parametrize("classes", [["ant", "cat", "bee"], ["ant", "bee", "dog"]])
def test_data_with_other_classes_than_those_of_the_training_are_refused(classes):
    trained = DatasetLoader(InMemoryDataset(PIXELS, LABELS, NAMES), 16)
    other = DatasetLoader(InMemoryDataset(PIXELS, LABELS, classes), 16)
    with pytest.raises(DataError, match=r"training and .* data differ in their classes"):
        use_record(other, record_of(trained))


def test_classes_that_are_numbers_may_lack_the_highest():
    check_classes(["0", "1", "2"], ["0", "1"], "training", "test")
    check_classes(["0", "1"], ["0", "1", "2"], "training", "test")
    for other in (["0", "2"], ["1", "2"], ["0", "1", "b"]):
        with pytest.raises(DataError):
            check_classes(["0", "1", "2"], other, "training", "test")


def test_a_record_must_be_plain_data():
    for codes in (torch.ones(2), {"a": float("nan")}):
        with pytest.raises(DataError, match=r"Encoded.record\(\) must return a dict of plain data"):
            record_of(Encoded(codes))


def test_a_loader_of_ones_own_has_a_default_and_any_other_none():
    class Slow(Dataset):
        classes = ("x", "y")

        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise AssertionError("a record reads no sample one by one")

    assert record_of(BaseDataLoader(Slow(), 2, True, 0, 0)) == {"classes": ["x", "y"]}
    images = TensorDataset(torch.rand(6, 1, 5, 4), torch.zeros(6))
    assert record_of(BaseDataLoader(images, 2, True, 0, 0)) == {"size": [5, 4]}
    assert record_of(as_batches([1, 2, 3], 0)) == {}
    use_record(as_batches([1, 2, 3], 0), {"classes": ["x"]})


CONFIG = """
name: sections
seed: 4
model: {type: Sequential, args: {layers: [Flatten, {type: LazyLinear, args: {out_features: 3}}]}}
data_loader:
  type: DatasetLoader
  args:
    dataset: {type: SyntheticDataset, args: {n_samples: 40, shape: [2, 3, 3], n_classes: 3}}
    batch_size: 8
    normalize: auto
    shuffle: false
optimizer: {type: SGD, args: {lr: 0.1}}
loss: cross_entropy
trainer: {epochs: 2, tensorboard: false, progress: false, verbosity: 0}
"""
VALID = """
valid_data_loader={type: DatasetLoader, args: {batch_size: 8, normalize: auto, shuffle: false,
dataset: {type: SyntheticDataset, args: {n_samples: 16, shape: [2, 3, 3], n_classes: 3, part: v}}}}
"""


@pytest.mark.parametrize("section", ["valid", "test"])
def test_a_section_of_its_own_is_normalised_by_the_training_data(section):
    trainer = make(VALID.replace("valid_", f"{section}_").replace("\n", " ").strip(), text=CONFIG)
    loader = trainer.valid_loader
    if section == "test":
        loader = build_test_loader(trainer.config, record_of(trainer.train_loader))
    images = SyntheticDataset(40, (2, 3, 3), 3).images.double() / 255
    mean = images.mean((0, 2, 3), keepdim=True)
    std = images.std((0, 2, 3), keepdim=True, correction=0)
    expected = (SyntheticDataset(16, (2, 3, 3), 3, part="v").images.double() / 255 - mean) / std
    found = torch.cat([images for images, _ in loader.batches(0, 2)])
    assert torch.allclose(found.double(), expected, atol=1e-5)


def test_a_section_of_its_own_must_number_classes_alike():
    words = VALID.replace("\n", " ").strip().replace("n_classes: 3, part", "n_classes: 4, part")
    make(words, text=CONFIG)  # numbers: "3" is one that the training data lack, at the end
    named = words.replace("type: DatasetLoader", "type: Named")
    with pytest.raises(DataError, match="training and Renamed data differ in their classes"):
        make(named, text=CONFIG)


class Renamed(SyntheticDataset):
    def __init__(self) -> None:
        super().__init__(16, (2, 3, 3), 3)
        self.classes = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def named(monkeypatch):
    """A loader whose data set has other names of classes."""

    def build(dataset, **more):
        return DatasetLoader(Renamed(), **more)

    monkeypatch.setitem(DATA_LOADERS.registered, "Named", build)


def test_a_resumed_run_keeps_its_statistics(tmp_path):
    folder = tmp_path / "run"
    run(folder, text=CONFIG, stop_at=3)
    (folder / "config.yaml").write_text(CONFIG)
    config = load_config(folder / "config.yaml")
    record = record_to_resume(config, folder)
    assert record["mean"] == record_of(make(text=CONFIG).train_loader)["mean"]
    other = {"mean": [0.1, 0.2], "std": [0.3, 0.4]}  # as if a file had been repaired since
    resumed = build_experiment(config, CPU, weights=False, record={**record, **other})
    found = record_of(resumed.train_loader)
    assert (found["mean"], found["std"]) == tuple(pytest.approx(x) for x in other.values())
    changed = load_config(folder / "config.yaml", ["data_loader.args.normalize=imagenet"])
    assert record_to_resume(changed, folder) == {}
    assert record_to_resume(config, None) == {}


@pytest.fixture
def jpegs(tmp_path, monkeypatch):
    """A run on JPEG files in ``folder``, of a time when PIL was the fastest decoder."""
    for number in range(8):
        path = tmp_path / "jpegs" / NAMES[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 3), (30 * number, 9, 9)).save(path)
    dataset = f"{{type: ImageFolderDataset, args: {{root: {tmp_path / 'jpegs'}}}}}"
    start, rest = CONFIG.split("dataset: ")
    text = f"{start}dataset: {dataset}\n{rest[rest.index('    batch_size') :]}"
    folder = tmp_path / "run"
    with monkeypatch.context() as earlier:
        earlier.setattr(images, "_fastest", lambda: "PIL")
        run(folder, text=text, stop_at=1)
    (folder / "config.yaml").write_text(text)
    monkeypatch.setattr(images, "_fastest", lambda: "torchvision")
    yield folder
    images.use_decoder(None)


@pytest.mark.parametrize(
    "change", [[], ["data_loader.args.num_workers=1"], ["data_loader.args.normalize=imagenet"]]
)
def test_a_resumed_run_keeps_its_decoder_whatever_else_changes(jpegs, change):
    config = load_config(jpegs / "config.yaml", change)
    record = record_to_resume(config, jpegs)
    assert ("mean" in record) == (not change), "other data have other statistics"
    resumed = build_experiment(config, CPU, weights=False, record=record)
    assert record_of(resumed.train_loader)["decoder"] == images.decoder_name() == "PIL"


def test_a_new_run_does_not_take_over_the_decoder_of_a_resumed_one(jpegs):
    """In one process, as in a notebook."""
    config = load_config(jpegs / "config.yaml")
    resumed = build_experiment(config, CPU, record=record_to_resume(config, jpegs))
    new = build_experiment(config, CPU)
    for made, name in ((new, "torchvision"), (resumed, "PIL"), (new, "torchvision")):
        next(iter(made.train_loader))
        assert images.decoder_name() == record_of(made.train_loader)["decoder"] == name


@pytest.mark.parametrize("name", ["PIL", "torchvision"])
def test_a_test_uses_the_decoder_of_the_tested_run(jpegs, name):
    section = json.dumps(load_config(jpegs / "config.yaml")["data_loader"])
    config = load_config(jpegs / "config.yaml", [f"test_data_loader={section}"])
    images.use_decoder("torchvision" if name == "PIL" else "PIL")  # by another run
    record = {"decoder": name, "mean": [0, 0, 0], "std": [1, 1, 1]}
    data = {"record": record, "n_batches": {"train": 1}, "batches_per_epoch": 1}
    next(iter(build_test_data(config, data, None).test_loader))
    assert images.decoder_name() == name


def test_predictions_use_the_decoder_of_their_run(jpegs):
    trained = load_trained(jpegs, CPU)
    (jpegs / "x.jpg").write_bytes((jpegs.parent / "jpegs" / NAMES[0] / "0.jpg").read_bytes())
    loader = image_loader(trained, [jpegs / "x.jpg"])
    images.use_decoder("torchvision")  # by another run
    next(iter(loader.batches(0, 1)))
    assert images.decoder_name() == "PIL"


def test_a_decoder_alone_is_no_record_for_a_data_set(monkeypatch):
    dataset = Encoded([1, 2], n_samples=40)
    monkeypatch.setitem(DATA_LOADERS.registered, "Own", lambda: DatasetLoader(dataset, 8))
    text = CONFIG[: CONFIG.index("data_loader:")] + "data_loader: {type: Own}\n"
    config = load_config(None, text=text + CONFIG[CONFIG.index("optimizer:") :])
    build_experiment(config, CPU, record={"decoder": "PIL"})
    assert dataset.codes == [1, 2]
    build_experiment(config, CPU, record={"decoder": "PIL", "codes": [3]})
    assert dataset.codes == [3]
