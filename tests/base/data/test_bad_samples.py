"""``on_bad_sample``: what is read in place of a sample that cannot be, counted, listed, resumed."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_images import CONFIG, DAMAGES, N, make_images
from digest import digest_of
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from toy import make, run, train_in

from base.base_data_loader import BaseDataLoader
from base.checkpoint.store import read
from base.config import load_config
from base.data.bad_samples import BadSamples, count_allowed
from base.data.reading import BadSample, Failure
from base.datasets.dataset_loader import DatasetLoader
from base.datasets.image_files import ImageFolderDataset
from base.datasets.pipeline import Pipeline, TransformedDataset
from base.datasets.shards.reader import ShardDataset
from base.datasets.transforms import RandomFlip
from base.errors import BatchError, ConfigError, DataError
from base.names.registry import DATA_LOADERS
from base.run.checks import check
from logger.csv_writer import CsvWriter

pytestmark = pytest.mark.fault("F14")
THREADS = ["data_loader.args.num_workers=2", "data_loader.args.workers=threads"]
PROCESSES = ["data_loader.args.num_workers=2", "data_loader.args.workers=processes"]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Sound images."""
    return make_images(tmp_path / "images")


@pytest.fixture
def text(paths: list[Path], tmp_path: Path) -> str:
    """A config of images of which each fifth is damaged, in one of the ways by turns."""
    for number, path in enumerate(paths[2::5]):
        list(DAMAGES.values())[number % 4](path)
    return CONFIG.format(root=tmp_path / "images")


BAD = list(range(2, N, 5))


def rows(folder: Path) -> list[tuple[str, str]]:
    with (folder / "bad_samples.csv").open(newline="") as file:
        return [(row["part"], row["index"]) for row in csv.DictReader(file)]


def state(folder: Path) -> str:
    return digest_of(read(folder))


# --- Stopping, the default ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "damage", "workers"),
    [*itertools.product((".jpg", ".png"), DAMAGES, [[]]), (".jpg", "bomb", PROCESSES)],
)
def test_by_default_a_bad_sample_stops_with_its_path_and_index(
    paths, tmp_path, kind, damage, workers
):
    index = next(i for i in range(20, N) if paths[i].suffix == kind)
    trainer = make(
        "trainer.on_bad_sample=stop", *workers, text=CONFIG.format(root=tmp_path / "images")
    )
    DAMAGES[damage](paths[index])
    with pytest.raises(DataError) as raised:
        [list(each.batches(0, len(each))) for each in (trainer.train_loader, trainer.valid_loader)]
    message = str(raised.value)
    assert str(paths[index]) in message
    assert f"[{index}]" in message
    assert damage in message
    assert message.endswith("; `trainer.on_bad_sample: skip` replaces it by another sample")
    assert "\n" not in message


def test_the_remedy_is_named_where_auto_normalization_reads_a_bad_image(paths, tmp_path):
    text = CONFIG.format(root=tmp_path / "images")
    trainer = make("trainer.on_bad_sample=stop", "data_loader.args.normalize=auto", text=text)
    bad = paths[int(trainer.train_loader.sample_indices()[0])]
    DAMAGES["truncated"](bad)
    remedy = "; `trainer.on_bad_sample: skip` replaces it by another sample$"
    with pytest.raises(DataError, match=remedy) as raised:
        check(trainer)
    assert str(bad) in str(raised.value)


def test_a_fault_of_code_is_not_to_be_skipped():
    def broken(index):
        raise ValueError("a fault of the code")

    class Faulty(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return broken(index)

    loader = BaseDataLoader(Faulty(), 2, False, 0, 0)
    with pytest.raises(DataError, match="a fault of the code") as raised:
        list(loader.batches(0, 2))
    assert "on_bad_sample" not in str(raised.value)


# --- What is read instead -------------------------------------------------------------------------


def stand_in(pool: list[int], seed: int, epoch: int, index: int) -> int:
    """The rule, a second time: the first good one of the draws."""
    for attempt in range(1000):
        name = f"{seed}/stand-in/{epoch}/{index}/{attempt}".encode()
        draw = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1
        if pool[draw % len(pool)] not in BAD:
            return pool[draw % len(pool)]
    raise AssertionError


@pytest.mark.parametrize("workers", [[], THREADS, PROCESSES])
def test_each_bad_sample_has_the_drawn_one_in_its_place(text, tmp_path, workers):
    trainer = make(*workers, text=text)
    make_images(tmp_path / "sound")
    sound = TransformedDataset(
        ImageFolderDataset(str(tmp_path / "sound")), Pipeline([RandomFlip()])
    )
    loader = trainer.train_loader
    pool = loader._indices.tolist()
    assert set(pool) & set(BAD)
    held_out = set(loader.split_validation()._indices.tolist())
    for epoch in range(2):
        order = loader._order(epoch).tolist()
        expected = [i if i not in BAD else stand_in(pool, 3, epoch, i) for i in order]
        assert not held_out & set(expected)
        batches = list(loader.batches(epoch * len(loader), len(loader)))
        assert [len(y) for _, y in batches] == [8] * 6
        images, targets = sound.get_random_batch(torch.tensor(expected), 3, epoch)
        assert torch.equal(torch.cat([x for x, _ in batches]), images)
        assert torch.equal(torch.cat([y for _, y in batches]), targets)
    loader.close()


def test_a_sample_of_weight_0_stands_in_for_none(paths, tmp_path):
    weights = [0.0] * 20 + [1.0] * 40
    loader = DatasetLoader(ImageFolderDataset(str(tmp_path / "images")), 8, sampling=weights)
    for path in paths[20::4]:
        DAMAGES["an empty file"](path)
    loader.skip_bad_samples(lambda bad: None, 60, replace=True)
    targets = torch.cat([y for _, y in loader.batches(0, 20)])
    assert not (targets == 0).any()  # the 20 are class 0


class Fussy(Dataset[Any]):
    """Numbers that cannot be read at some places, by the batch where asked."""

    def __init__(self, bad: set[int], n: int = 40, error: Exception | None = None) -> None:
        self.bad, self.n, self.reads = bad, n, 0
        self.error = error or ValueError("fussy")

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        if index in self.bad:
            raise self.error
        return torch.tensor([float(index)])


class FussyBatches(Fussy):
    def get_batch(self, indices: Tensor) -> Tensor:
        return torch.stack([self[index] for index in indices.tolist()])


@pytest.mark.parametrize("kind", [Fussy, FussyBatches])
@pytest.mark.parametrize("n_workers", [0, 1])
@pytest.mark.parametrize("replace", [True, False])
def test_any_data_set_is_read_without_them(kind, n_workers, replace):
    loader = BaseDataLoader(kind({3, 8, 9, 10, 11, 30}), 4, False, 0, n_workers)
    found: list[BadSample] = []
    loader.skip_bad_samples(found.extend, 20, replace)
    batches = list(loader.batches(0, 10))
    given = [number for batch in batches for number in batch.flatten().int().tolist()]
    if replace:
        assert [len(batch) for batch in batches] == [4] * 10
        assert all(n == place for place, n in enumerate(given) if place not in loader.dataset.bad)
        assert not set(given) & loader.dataset.bad
    else:  # an empty batch is skipped
        assert given == [n for n in range(40) if n not in loader.dataset.bad]
        assert len(batches) == 9
    assert {each.sample for each in found} == loader.dataset.bad
    assert found[0].path == f"sample 3 of {kind.__name__}"
    assert "ValueError: fussy" in found[0].reason
    loader.close()


def test_nothing_is_read_twice_but_a_batch_with_a_fault_and_a_known_one_not_again():
    loader = BaseDataLoader(Fussy(set()), 4, False, 0, 0)
    loader.skip_bad_samples(lambda bad: None, 4, replace=False)
    assert len(list(loader.batches(0, 10))) == 10
    assert loader.dataset.reads == 40
    loader.dataset.bad.add(6)
    list(loader.batches(0, 10))
    assert loader.dataset.reads == 40 + 36 + (3 + 4 + 3)  # of batch 1: together, alone, without it
    before = loader.dataset.reads
    list(loader.batches(0, 10))
    assert loader.dataset.reads == before + 39


# --- What may not be skipped ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [MemoryError("no"), RuntimeError("can't allocate memory"), BatchError("channels")]
)
def test_a_fault_that_is_none_of_a_sample_stops(error):
    loader = BaseDataLoader(Fussy({5}, error=error), 4, False, 0, 0)
    loader.skip_bad_samples(lambda bad: pytest.fail("noted"), 20, replace=True)
    with pytest.raises(DataError, match=str(error)):
        list(loader.batches(0, 10))
    wrapped = DataError("a.jpg: cut short")
    wrapped.__cause__ = error
    assert Failure("", wrapped).may_be_skipped == isinstance(error, BatchError)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ("data_loader.args.normalize={mean: [0.5, 0.5], std: [1, 1]}", "normalize: 2 numbers"),
        ("name=other", "images of different shapes"),
    ],
)
def test_images_that_do_not_go_together_stop(paths, tmp_path, more, match):
    if "name" in more:
        Image.new("RGB", (9, 9)).save(paths[30])
    trainer = make(more, text=CONFIG.format(root=tmp_path / "images"))
    with pytest.raises(DataError, match=match):
        list(trainer.train_loader.batches(0, 6))
    assert not trainer.experiment.bad_samples.known


def test_a_loader_of_another_make_is_refused(monkeypatch):
    plain = lambda: DataLoader(TensorDataset(torch.zeros(8, 5), torch.zeros(8).long()))  # noqa: E731
    monkeypatch.setitem(DATA_LOADERS.registered, "Plain", plain)
    with pytest.raises(ConfigError, match=r"on_bad_sample: skip is for a BaseDataLoader"):
        make("data_loader={type: Plain}", "trainer.on_bad_sample=skip")
    make("data_loader={type: Plain}")


# --- Exact resume ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"), [([], []), ([], THREADS), (THREADS, PROCESSES), (PROCESSES, [])]
)
def test_a_run_with_bad_samples_resumes_exactly(text, tmp_path, before, after):
    run(tmp_path / "whole", text=text)
    for stop_at in (2, 7):
        folder = tmp_path / f"cut{stop_at}"
        run(folder, *before, text=text, stop_at=stop_at)
        run(folder, *after, text=text, resume=True)
        assert state(folder) == state(tmp_path / "whole")
        assert sorted(rows(folder)) == sorted(rows(tmp_path / "whole"))
        assert len(rows(folder)) == len(BAD)
    known = read(tmp_path / "whole")["bad_samples"]
    assert sorted([*known["train"], *known["valid"]]) == BAD


@pytest.mark.parametrize("is_restored", [True, False])
def test_a_resumed_run_reaches_the_cap_at_the_same_step(text, tmp_path, is_restored, monkeypatch):
    def step_of_the_end(folder: Path, resume: bool) -> int:
        trainer = make("trainer.max_bad_samples=5", "trainer.save_every=1 steps", text=text)
        with pytest.raises(DataError, match="of 48 training samples"):
            train_in(trainer, folder, folder if resume else None)
        return trainer.progress.step

    (tmp_path / "whole").mkdir()
    last = step_of_the_end(tmp_path / "whole", resume=False)
    assert last > 1
    run(tmp_path / "cut", "trainer.max_bad_samples=5", text=text, stop_at=last - 1)
    if not is_restored:  # the oracle sees it
        monkeypatch.setattr(BadSamples, "load_state_dict", lambda self, state_dict: None)
    assert (step_of_the_end(tmp_path / "cut", resume=True) == last) is is_restored


def test_the_policy_may_be_switched_on_and_off_at_a_resume(text, tmp_path, paths):
    run(tmp_path, text=text, stop_at=5)
    for path in paths:
        Image.new("RGB", (6, 8)).save(path)
    run(tmp_path, "trainer.on_bad_sample=stop", text=text, resume=True, stop_at=7)
    assert "bad_samples" not in read(tmp_path)
    run(tmp_path, text=text, resume=True)
    assert read(tmp_path)["bad_samples"] == {}


# --- Validation -----------------------------------------------------------------------------------


def test_validation_is_that_of_the_samples_that_can_be_read(paths, tmp_path):
    valid = make_images(tmp_path / "valid", seed=1)
    more = ["data_loader.args.split=null", "data_loader.args.valid_dataset="]
    more[1] += f"{{type: ImageFolderDataset, args: {{root: '{tmp_path / 'valid'}'}}}}"
    bad = [*range(8, 16), 3, 40, 59]  # all of batch 1
    for index in bad:
        DAMAGES["an empty file"](valid[index])
    trainer = make(*more, text=CONFIG.format(root=tmp_path / "images"))
    values = trainer.evaluate(trainer.valid_loader, "valid")
    assert trainer.experiment.bad_samples.known["valid"] == set(bad)
    for index in bad:
        valid[index].unlink()
    trainer = make(
        *more, "trainer.on_bad_sample=stop", text=CONFIG.format(root=tmp_path / "images")
    )
    assert values == pytest.approx(trainer.evaluate(trainer.valid_loader, "valid"), rel=1e-6)


def test_auto_statistics_are_those_of_the_samples_that_can_be_read(text, tmp_path):
    def mean_of(folder: Path, batch_size: int) -> tuple[list[float], list[int]]:
        dataset, found = ImageFolderDataset(str(folder)), []
        loader = DatasetLoader(
            dataset, batch_size, normalize="auto", cache_dir=str(tmp_path / "kept"), num_workers=0
        )
        loader.skip_bad_samples(found.extend, 60, replace=True)
        next(loader.batches(0, 1))
        return loader._pipelines[0].mean.tolist(), [each.sample for each in found]

    mean, found = mean_of(tmp_path / "images", 1)
    assert found[: len(BAD)] == BAD
    names = ImageFolderDataset(str(tmp_path / "images")).ids
    for index in BAD:
        (tmp_path / "images" / names[index]).unlink()
    again, found = mean_of(tmp_path / "images", 1)
    assert mean == again
    assert found == []


# --- The cap and the list -------------------------------------------------------------------------


def test_beyond_the_cap_the_run_stops_and_the_last_checkpoint_stays(text, tmp_path, caplog):
    with pytest.raises(DataError) as raised:
        run(tmp_path, "trainer.max_bad_samples=4", "trainer.save_every=1 steps", text=text)
    message = str(raised.value)
    assert "5 of 48 training samples cannot be read" in message
    assert "trainer.max_bad_samples=4 allows 4" in message
    assert f"listed in {tmp_path / 'bad_samples.csv'}" in message
    assert len([part for part, _ in rows(tmp_path) if part == "train"]) == 5
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    (first,) = (each for each in warnings if "replaced by another sample" in each)
    _, index = rows(tmp_path)[0]
    assert f"sample {index} of the training data" in first
    assert ImageFolderDataset(str(tmp_path / "images")).ids[int(index)] in first
    known = read(tmp_path)["bad_samples"]["train"]
    assert len(known) <= 4
    run(tmp_path, text=text, resume=True)  # with a higher cap it goes on


def test_data_that_are_gone_stop_at_once(paths, tmp_path):
    trainer = make("trainer.max_bad_samples=10%", text=CONFIG.format(root=tmp_path / "images"))
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"8 of 48 training samples .*\n.*no such file"):
        next(trainer.train_loader.batches(0, 1))
    everything = make_images(tmp_path / "images")
    trainer = make("trainer.max_bad_samples=48", text=CONFIG.format(root=tmp_path / "images"))
    for path in everything:
        path.unlink()
    with pytest.raises(DataError, match="no such file"):  # it ends, though nothing stands in
        next(trainer.train_loader.batches(0, 1))


@pytest.mark.parametrize(
    ("cap", "n_samples", "allowed"),
    [
        ("0.1%", 1, 1),
        ("0.1%", 1000, 1),
        ("0.1%", 1001, 2),
        ("0.1%", 3000, 3),
        ("5%", 60, 3),
        (7, 3, 7),
    ],
)
def test_a_share_is_rounded_up(cap, n_samples, allowed):
    assert count_allowed(cap, n_samples) == allowed


@pytest.mark.parametrize("wrong", ["0.5", "0", "ten", "100 %", "-1", "1e-3%", "true"])
def test_a_cap_of_another_form_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"expected a share such as 0.1%, or a number of samples"):
        load_config(None, [f"trainer.max_bad_samples={wrong}"], text=CONFIG.format(root="."))


def test_each_is_listed_once_and_told_at_times(tmp_path, caplog):
    config = load_config(None, [], text=CONFIG.format(root="."))
    for start in range(2):  # of which the second finds a last line that was cut short
        bad_samples = BadSamples(config)
        bad_samples.note("valid", [BadSample(0, "early.png", "before there is a folder")])
        bad_samples.open(tmp_path)
        for index in range(25):
            each = BadSample(index, f"a/{index}\udcff.png", "cut\nshort")
            bad_samples.note("train", [each, each])
        assert len(rows(tmp_path)) == len(set(rows(tmp_path))) == 26
        content = (tmp_path / "bad_samples.csv").read_text()
        assert "train,24,a/24\\udcff.png,cut short\n" in content
        if not start:
            (tmp_path / "bad_samples.csv").write_text(content[:-7])
    told = [each for each in caplog.records if "cannot be read" in each.getMessage()]
    assert len(told) == 2 * 3  # the 1st, 11th and 21st


def test_a_list_that_cannot_be_written_costs_no_run(text, tmp_path, caplog, monkeypatch):
    add_row = CsvWriter.add_row

    def full(self: CsvWriter, row: Any) -> None:
        if self.path.name == "bad_samples.csv":
            raise OSError(28, "No space left on device")
        add_row(self, row)

    monkeypatch.setattr(CsvWriter, "add_row", full)
    trainer = run(tmp_path, text=text)
    assert caplog.text.count("bad_samples.csv: not written: [Errno 28]") == 1
    assert trainer.progress.step == 12


# --- Other places that read -----------------------------------------------------------------------


def test_a_cache_names_the_image_that_it_cannot_hold(text, tmp_path):
    with pytest.raises(DataError, match=r"class0/\d+\.\w+: .*; a cache holds every image"):
        make("data_loader.args.cache=memory", text=text)


def test_samples_of_a_shard_may_be_bad(paths, tmp_path):
    with tarfile.open(tmp_path / "part-000000.tar", "w") as tar:
        for index, path in enumerate(paths):
            content = path.read_bytes() if index % 7 else path.read_bytes()[:40]
            for name, data in ((f"{index:06}{path.suffix}", content), (f"{index:06}.cls", b"1")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    loader = DatasetLoader(ShardDataset(str(tmp_path / "part-*.tar")), 8, num_workers=2)
    found: list[BadSample] = []
    loader.skip_bad_samples(found.extend, 20, replace=True)
    whole = list(loader.batches(0, 16))
    assert {each.sample for each in found} == set(range(0, N, 7))
    assert "part-000000.tar: 000000" in min(found).path
    again = list(loader.batches(3, 13))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[3:], again, strict=True))


def test_the_check_before_a_run_goes_by_the_same_rules(text):
    trainer = make(text=text)
    check(trainer)
    assert trainer.experiment.bad_samples.known["valid"]
    with pytest.raises(DataError, match="max_bad_samples=1 allows 1"):
        check(make("trainer.max_bad_samples=1", text=text))
