"""Decoded images that are kept: equal to fresh ones, decoded once, never served in part."""

import errno
import functools
import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from base.datasets import images
from base.datasets.cache import decoded as cache
from base.datasets.cache import file as cache_file
from base.datasets.cache import pixels
from base.datasets.cache.decoded import CachedBatches, cached
from base.datasets.image_files import ImageFiles
from base.errors import ConfigError, DataError

RAGGED = [(4, 6), (5, 3), (4, 6), (7, 2), (1, 1), (3, 9), (2, 2), (8, 5)]  # height, width
UNIFORM = [(6, 5)] * 8
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
FORK = multiprocessing.get_context("fork")


class CountedImages(ImageFiles):
    """Writes the number of each image that it decodes into a file, which all processes share."""

    seconds = 0.0

    def image(self, index):
        with Path(self.root, "decoded").open("a") as file:
            file.write(f"{index}\n")
        time.sleep(self.seconds)
        return super().image(index)

    def decoded(self):
        file = Path(self.root, "decoded")
        return sorted(map(int, file.read_text().split())) if file.exists() else []


def make_images(folder, sizes=UNIFORM, seconds=0.0, **settings):
    random = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    ids = []
    for number, size in enumerate(sizes):
        ids.append(f"{number}.{'jpg' if number % 3 == 2 else 'png'}")
        values = np.resize(random.integers(0, 256, 997, dtype=np.uint8), (*size, 3))
        Image.fromarray(values).save(folder / ids[-1])
    dataset = CountedImages(folder, ids, torch.arange(len(sizes)) % 3, ["a", "b", "c"], **settings)
    dataset.seconds = seconds
    return dataset


def in_process(function, *arguments):
    process = FORK.Process(target=function, args=arguments)
    process.start()
    return process


def wait_for(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def assert_same(kept, fresh):
    assert len(kept) == len(fresh)
    for index in range(len(fresh)):
        assert torch.equal(kept.image(index), ImageFiles.image(fresh, index))
        assert kept.image_shape(index) == fresh.image_shape(index) == kept.image(index).shape
        assert kept[index][1] == fresh.targets[index]
        assert kept.place(index) == fresh.place(index)
    assert torch.equal(kept.targets, fresh.targets)
    assert (kept.ids, kept.classes) == (fresh.ids, fresh.classes)
    assert kept.fingerprint() == fresh.fingerprint()


@pytest.fixture(params=["memory", "disk"])
def where(request):
    return request.param


@pytest.fixture
def kept_in(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("settings", [{}, {"mode": "grey"}, {"resize": [5, 4]}], ids=str)
@pytest.mark.parametrize("sizes", [RAGGED, UNIFORM], ids=["ragged", "uniform"])
def test_a_cached_data_set_gives_what_its_source_gives(tmp_path, where, sizes, settings):
    source = make_images(tmp_path / "images", sizes, **settings)
    assert_same(cached(source, where, tmp_path / "cache"), source)


@pytest.fixture
def inverting(monkeypatch):
    """A decoder whose pixels cannot be taken for those of another."""
    invert = lambda data, mode: 255 - images.DECODERS["PIL"]()(data, mode)  # noqa: E731
    monkeypatch.setitem(images.DECODERS, "inverting", lambda: invert)
    yield "inverting"
    images.use_decoder(None)
    images._installed.cache_clear()


def test_each_decoder_of_jpeg_files_has_its_own_cache(tmp_path, where, kept_in, inverting):
    source = make_images(tmp_path / "images")
    plain = [cached(source, where, kept_in).image(index) for index in range(8)]
    images.use_decoder(inverting)
    kept = cached(source, where, kept_in)
    for index, image in enumerate(plain):
        is_jpeg = index % 3 == 2
        assert torch.equal(kept.image(index), ImageFiles.image(source, index))
        assert torch.equal(kept.image(index), image) is not is_jpeg


def test_the_decoder_of_jpeg_files_changes_no_cache_of_other_formats(tmp_path, inverting):
    make_images(tmp_path)
    names = {"mixed": ["0.png", "2.jpg"], "other": ["0.png", "1.PNG"], "unknown": ["0"]}
    for name in ("1.PNG", "0"):
        (tmp_path / name).write_bytes((tmp_path / "0.png").read_bytes())
    found = {}
    for decoder in (None, inverting):
        images.use_decoder(decoder)
        for kind, ids in names.items():
            dataset = ImageFiles(tmp_path, ids, torch.zeros(len(ids)))
            found.setdefault(kind, set()).add(dataset.fingerprint())
    assert {kind: len(each) for kind, each in found.items()} == {
        "mixed": 2, "other": 1, "unknown": 2
    }  # fmt: skip


def test_images_of_one_shape_are_read_by_the_batch(tmp_path, where, kept_in):
    source = make_images(tmp_path / "images")
    kept = cached(source, where, kept_in)
    indices = torch.tensor([5, 0, 5, 7])
    images, targets = kept.get_batch(indices)
    assert torch.equal(images, torch.stack([source.image(i) for i in indices.tolist()]))
    assert torch.equal(targets, source.targets[indices])
    assert kept.images.shape == (8, 3, 6, 5)
    assert not hasattr(cached(make_images(tmp_path / "r", RAGGED), where, kept_in), "get_batch")


def test_an_image_is_a_view_and_a_loop_ends(tmp_path, where, kept_in):
    for sizes in (RAGGED, UNIFORM):
        kept = cached(make_images(tmp_path / "images", sizes), where, kept_in)
        assert kept.image(3).data_ptr() == kept.image(3).data_ptr()
        assert torch.equal(kept.image(-1), kept.image(7))
        assert len(list(kept)) == 8


@pytest.mark.parametrize("sizes", [RAGGED, UNIFORM], ids=["ragged", "uniform"])
def test_workers_decode_nothing(tmp_path, where, kept_in, sizes):
    source = make_images(tmp_path / "images", sizes)
    kept = cached(source, where, kept_in)
    loader = DataLoader(kept, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for _ in range(2):
        for index, (image, target) in enumerate(loader):
            assert torch.equal(image, ImageFiles.image(source, index))
            assert target == source.targets[index]
    assert source.decoded() == list(range(8))


def memory_of_its_own():
    """The bytes that belong to no file, and are not shared by their kind."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


def read_all(kept, answer):
    before = memory_of_its_own()
    parts = kept.pixels.values.split(1 << 16)  # a sum of bytes makes int64 of them first
    answer.put((sum(int(part.sum()) for part in parts), memory_of_its_own() - before))


def test_workers_share_the_pixels_without_a_copy(tmp_path, where, kept_in):
    source = make_images(tmp_path / "images", [(1000, 1000)] * 8)  # 24 MB
    kept = cached(source, where, kept_in)
    answer = FORK.SimpleQueue()
    process = in_process(read_all, kept, answer)
    total, n_bytes = answer.get()
    process.join()
    assert total == sum(int(source.image(index).sum()) for index in range(len(source)))
    assert n_bytes < 6e6


@pytest.mark.slow
def test_a_spawned_worker_has_the_same_pixels(tmp_path, where, kept_in):
    source = make_images(tmp_path / "images", RAGGED)
    kept = cached(source, where, kept_in)
    shutil.rmtree(kept_in, ignore_errors=True)  # it reads what was opened, not what is there now
    loader = DataLoader(kept, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    for index, (image, _) in enumerate(loader):
        assert torch.equal(image, ImageFiles.image(source, index))
    assert source.decoded() == list(range(8))


def test_pixels_are_not_pickled_to_nobody(tmp_path, where, kept_in):
    kept = cached(make_images(tmp_path / "images"), where, kept_in)
    with pytest.raises(DataError, match="only be passed to a process that is starting"):
        pickle.dumps(kept)


def test_a_transform_that_writes_spoils_nothing_for_others(tmp_path, where, kept_in):
    source = make_images(tmp_path / "images")
    kept = cached(source, where, kept_in)
    process = in_process(lambda: kept.images.fill_(7))
    process.join()
    assert process.exitcode == 0
    assert_same(kept, source)
    kept.images.fill_(7)
    assert_same(cached(source, "disk", kept_in), source)


def test_an_unknown_kind_of_cache_is_an_error_of_the_config(tmp_path):
    with pytest.raises(ConfigError, match="cache: 'ram' is not one of none, memory, disk"):
        cached(make_images(tmp_path), "ram")


def test_a_data_set_without_files_is_refused_by_name(where):
    with pytest.raises(DataError, match=r"list cannot be cached: it has no .*image_shape"):
        cached([], where)


def test_too_little_memory_is_told_before_anything_is_decoded(tmp_path, monkeypatch):
    source = make_images(tmp_path, [(1000, 1000)] * 4)
    monkeypatch.setattr(cache, "free_memory", lambda: 13_000_000)
    with pytest.raises(DataError, match=r"images need 12 MB decoded, 13 MB are free.*: disk"):
        cached(source, "memory")
    assert source.decoded() == []
    monkeypatch.setattr(cache, "free_memory", lambda: 14_000_000)
    assert len(cached(source, "memory")) == 4


def test_a_second_run_decodes_nothing(tmp_path, kept_in):
    source = make_images(tmp_path / "images", RAGGED)
    cached(source, "disk", kept_in)
    assert_same(cached(source, "disk", kept_in), source)
    assert source.decoded() == list(range(8))
    assert [path.suffix for path in kept_in.iterdir()] == [".pixels"]


def test_a_killed_filling_goes_on_where_it_stopped(tmp_path, kept_in, caplog):
    source = make_images(tmp_path / "images", RAGGED * 2, seconds=0.05)
    process = in_process(cached, source, "disk", kept_in, 1)
    wait_for(lambda: len(source.decoded()) >= 6)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert [path.suffix for path in kept_in.iterdir()] == [".partial"]
    started = len(source.decoded())
    assert 6 <= started < 12
    source.seconds = 0.0
    caplog.set_level(logging.INFO, "kindling")
    assert_same(cached(source, "disk", kept_in), source)
    assert len(source.decoded()) <= 16 + 2  # the image at hand may have been lost, and its write
    assert set(source.decoded()) == set(range(16))
    assert "of 16 images are there" in caplog.text
    assert [path.suffix for path in kept_in.iterdir()] == [".pixels"]


def half_filled(source, kept_in, monkeypatch):
    """Leave a partial file with five images."""
    with monkeypatch.context() as patch:
        patch.setattr(
            CountedImages, "image", functools.partialmethod(raise_from, 5, KeyboardInterrupt())
        )
        with pytest.raises(KeyboardInterrupt):
            cached(source, "disk", kept_in, 1)
    (partial,) = kept_in.iterdir()
    assert partial.suffix == ".partial"
    return partial


def raise_from(self, first, error, index):
    if index >= first:
        raise error
    return ImageFiles.image(self, index)


@pytest.mark.parametrize(
    ("lost", "decoded"),
    [(None, [5, 6, 7]), ((4096 + 3 * 90, 90), [3, 4, 5, 6, 7]), ((0, 64), [*range(8)])],
    ids=["nothing", "image number 3", "the header"],
)
def test_a_stopped_filling_keeps_what_was_decoded_and_not_lost_since(
    tmp_path, kept_in, monkeypatch, lost, decoded
):
    source = make_images(tmp_path / "images")
    partial = half_filled(source, kept_in, monkeypatch)
    assert source.decoded() == []
    if lost:
        with partial.open("r+b") as file:
            file.seek(lost[0])
            file.write(bytes(lost[1]))
    assert_same(cached(source, "disk", kept_in), source)
    assert source.decoded() == decoded


def test_processes_at_once_decode_each_image_once(tmp_path, kept_in):
    source = make_images(tmp_path / "images", RAGGED, seconds=0.02)
    start = FORK.Event()

    def fill():
        start.wait()
        assert_same(cached(source, "disk", kept_in), source)

    processes = [in_process(fill) for _ in range(4)]
    start.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert source.decoded() == list(range(8))
    assert [path.suffix for path in kept_in.iterdir()] == [".pixels"]


def test_who_waits_says_so_and_takes_over_from_a_killed_process(tmp_path, kept_in, caplog):
    source = make_images(tmp_path / "images", RAGGED, seconds=0.2)
    process = in_process(cached, source, "disk", kept_in, 1)
    wait_for(lambda: len(source.decoded()) >= 3)
    timer = threading.Timer(0.1, os.kill, (process.pid, signal.SIGKILL))
    timer.start()
    source.seconds = 0.0
    caplog.set_level(logging.INFO, "kindling")
    assert_same(cached(source, "disk", kept_in), source)
    timer.join()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert caplog.text.count("waiting for the process that fills") == 1
    assert len(source.decoded()) < 12


def test_a_changed_image_is_not_served_from_the_old_cache(tmp_path, kept_in, caplog):
    source = make_images(tmp_path / "images", UNIFORM)
    cached(source, "disk", kept_in)
    (old,) = kept_in.iterdir()
    Image.new("RGB", (5, 6), (1, 2, 3)).save(tmp_path / "images/1.png")
    caplog.set_level(logging.INFO, "kindling")
    kept = cached(source, "disk", kept_in)
    assert_same(kept, source)
    assert kept.image(1).flatten(1)[:, 0].tolist() == [1, 2, 3]
    assert f"rm {old}" in caplog.text
    assert len(list(kept_in.iterdir())) == 2


def test_an_image_that_changes_while_the_cache_fills_stops_it(tmp_path, kept_in, monkeypatch):
    source = make_images(tmp_path / "images", UNIFORM)
    decode = source.image

    def change(index):
        if index == 4:
            os.utime(tmp_path / "images/1.png", ns=(1, 1))
        return decode(index)

    monkeypatch.setattr(source, "image", change)
    with pytest.raises(DataError, match="images changed while they were cached"):
        cached(source, "disk", kept_in)
    assert list(kept_in.iterdir()) == []


def cut(path, to=None):
    os.truncate(path, path.stat().st_size - 1 if to is None else to)


def turn(path):
    content = bytearray(path.read_bytes())
    content[68:76] = content[72:76] + content[68:72]  # height and width of the first image
    path.write_bytes(content)


def other_format(path):
    content = bytearray(path.read_bytes())
    content[16] = 99
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, turn, other_format, lambda path: path.write_bytes(b"")])
def test_a_damaged_cache_is_made_anew_and_told_once(tmp_path, kept_in, caplog, damage):
    source = make_images(tmp_path / "images", RAGGED)
    cached(source, "disk", kept_in)
    (path,) = kept_in.iterdir()
    damage(path)
    assert_same(cached(source, "disk", kept_in), source)
    assert caplog.text.count("not a complete cache of this data set; it is created again") == 1
    assert source.decoded() == sorted([*range(8)] * 2)
    assert list(kept_in.iterdir()) == [path]


def test_a_disk_too_small_is_told_before_anything_is_decoded(tmp_path, kept_in, monkeypatch):
    source = make_images(tmp_path / "images", [(1000, 1000)] * 4)
    usage = shutil._ntuple_diskusage(10**9, 0, 12_000_000)
    monkeypatch.setattr(cache_file.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"the cache needs 12\.0 MB, 12\.0 MB are free"):
        cached(source, "disk", kept_in)
    assert source.decoded() == []
    assert list(kept_in.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, kept_in, monkeypatch):
    source = make_images(tmp_path / "images", [(1000, 1000)] * 4)
    write, written = os.pwrite, []

    def full(descriptor, data, place):
        if sum(written) + len(data) > 7_000_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(write(descriptor, data[:2_000_000], place))  # a system may write a part
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr(pixels.os, "pwrite", full)
        with pytest.raises(DataError, match=r"No space left on device: the cache needs 12\.0 MB"):
            cached(source, "disk", kept_in, 1)
    assert len(source.decoded()) > 0
    assert list(kept_in.iterdir()) == []
    assert_same(cached(source, "disk", kept_in), source)


def test_a_limit_on_the_size_of_files_is_a_clear_error(tmp_path, where, kept_in):
    source = make_images(tmp_path / "images", [(1000, 1000)] * 4)
    messages = {
        "disk": r"File too large: the cache needs 12\.0 MB",
        "memory": "memory: 12 MB cannot be allocated: File too large",
    }

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        with pytest.raises(DataError, match=messages[where]):
            cached(source, where, kept_in)

    process = in_process(fill)
    process.join()
    assert process.exitcode == 0
    assert not list(kept_in.glob("*"))


def test_too_little_room_for_addresses_is_a_clear_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    source = make_images(tmp_path / "images", UNIFORM)
    monkeypatch.setattr("base.datasets.cache.pixels.mmap.mmap", refuse)
    with pytest.raises(DataError, match=r"cannot be mapped .*: Cannot allocate memory; raise"):
        cached(source, "memory", tmp_path / "cache")


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    source = make_images(tmp_path / "images")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"no cache there: .*name another folder"):
        cached(source, "disk", tmp_path / "file" / "cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_whole_cache_is_read_from_a_read_only_folder(tmp_path, kept_in):
    source = make_images(tmp_path / "images")
    cached(source, "disk", kept_in)
    kept_in.chmod(0o500)
    assert_same(cached(source, "disk", kept_in), source)
    kept_in.chmod(0o700)


@pytest.mark.parametrize("damage", [lambda path: cut(path, path.stat().st_size // 2), Path.unlink])
def test_an_unreadable_image_is_named_and_nothing_is_left(tmp_path, kept_in, damage):
    source = make_images(tmp_path / "images", [(60, 50)] * 8)
    whole = (tmp_path / "images/6.png").read_bytes()
    damage(tmp_path / "images/6.png")
    with pytest.raises(DataError, match=r"6\.png"):
        cached(source, "disk", kept_in)
    assert not list(kept_in.glob("*"))
    (tmp_path / "images/6.png").write_bytes(whole)
    assert_same(cached(source, "disk", kept_in), source)


def test_an_error_of_a_users_own_reader_is_told_with_the_place(tmp_path, where, monkeypatch):
    source = make_images(tmp_path / "images", RAGGED)
    error = RuntimeError("a reader's own error")
    monkeypatch.setattr(CountedImages, "image", functools.partialmethod(raise_from, 5, error))
    with pytest.raises(DataError, match=r"5\.jpg: cannot be read: a reader's own error"):
        cached(source, where, tmp_path / "cache")


def test_an_image_that_is_not_as_its_header_says_is_refused(tmp_path, where, monkeypatch):
    source = make_images(tmp_path / "images", UNIFORM)
    monkeypatch.setattr(source, "image", lambda _: torch.zeros(3, 6, 5))
    with pytest.raises(DataError, match=r"0\.png: decodes to .*float32 \(3, 6, 5\), not uint8"):
        cached(source, where, tmp_path / "cache")


def test_an_interrupt_stops_the_filling_at_once(tmp_path, where, kept_in):
    source = make_images(tmp_path / "images", UNIFORM * 10, seconds=0.05)

    def fill():
        logging.getLogger("kindling").addHandler(logging.FileHandler(tmp_path / "said"))
        try:
            cached(source, where, kept_in, 2)
        except KeyboardInterrupt:
            while len(threading.enumerate()) > 1:
                time.sleep(0.01)
            os._exit(7)

    process = in_process(fill)
    wait_for(lambda: len(source.decoded()) >= 6)
    os.kill(process.pid, signal.SIGINT)
    start = time.monotonic()
    process.join()
    assert time.monotonic() - start < 1  # all 80 images take 2 s
    assert process.exitcode == 7
    assert len(source.decoded()) < 40
    said = (tmp_path / "said").read_text()
    assert ("the next run continues" in said) == (where == "disk")


def test_nothing_is_left_open(tmp_path, where, kept_in):
    source = make_images(tmp_path / "images")
    before = psutil.Process().num_fds()
    for _ in range(3):
        cached(source, where, kept_in)
    assert psutil.Process().num_fds() <= before
    assert isinstance(cached(source, where, kept_in), CachedBatches)


def test_a_cache_in_memory_is_told_once_in_a_unit_that_fits(tmp_path, caplog):
    source = make_images(tmp_path / "images")
    n_bytes = sum(source.image(index).nbytes for index in range(len(source)))
    with caplog.at_level(logging.INFO, "kindling"):
        cached(source, "memory")
    told = f"cache: 8 images of {tmp_path / 'images'} in memory ({n_bytes / 1e3:.0f} kB)"
    assert caplog.messages == [told]
