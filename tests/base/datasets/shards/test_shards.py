"""Shards: what is written is read again, in an order that a plain shuffle buffer gives."""

import errno
import gzip
import io
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from base.base_data_loader import BaseDataLoader
from base.datasets.image_files import ImageFolderDataset
from base.datasets.images import use_decoder
from base.datasets.shards import index as shard_index
from base.datasets.shards import reader
from base.datasets.shards import writer as shard_writer
from base.datasets.shards.reader import ShardDataset, buffered_order
from base.errors import DataError, UsageError
from base.system.seeding import derive_generator

N_IMAGES = 48
DESCRIPTORS = Path("/proc/self/fd")
needs_proc = pytest.mark.skipif(not DESCRIPTORS.exists(), reason="looks at descriptors in /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of 48 images of three classes."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(N_IMAGES):
        name = f"{number:02d}.{'PNG' if number % 2 else 'jpg'}"
        path = root / ("cat", "dog", "emu")[number % 3] / name
        path.parent.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    """The same images in five shards: train-000000.tar to train-000004.tar."""
    out = tmp_path_factory.mktemp("shards")
    assert write(folder, out / "train", "--count", 10, "--shuffle") == 0
    return out


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(*arguments):
    return shard_writer.main(["write", *map(str, arguments)])


def check(*arguments):
    return shard_writer.main(["check", *map(str, arguments)])


def open_written(written, **options):
    return ShardDataset(str(written / "train-{000000..000004}.tar"), **options)


def make_tar(path, members):
    """Write a tar of (name, content) with tarfile alone."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png(value=7, size=(4, 3)):
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


def members_of(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def plain_order(n_samples, size, generator):
    """What a stream through a shuffle buffer gives, sample by sample."""
    size = min(size, n_samples)
    draws = torch.randint(max(size, 1), (n_samples - size,), generator=generator).tolist()
    buffer, given = list(range(size)), []
    for sample, slot in zip(range(size, n_samples), draws, strict=True):
        given.append(buffer[slot])
        buffer[slot] = sample
    return given + [buffer[slot] for slot in torch.randperm(size, generator=generator).tolist()]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# What is written is read again


def test_a_folder_comes_back_from_its_shards(folder, tmp_path):
    write(folder, tmp_path / "train", "--count", 10)
    images, read = ImageFolderDataset(str(folder)), ShardDataset(tmp_path / "train-*.tar")
    assert len(read) == N_IMAGES
    assert read.classes == images.classes == ["cat", "dog", "emu"]
    assert torch.equal(read.targets, images.targets)
    for index in range(N_IMAGES):
        (image, target), (expected, label) = read[index], images[index]
        assert torch.equal(image, expected)
        assert target == label
        assert read.image_shape(index) == expected.shape
        assert read.read(index) == images.encoded(index).read_bytes()


def test_samples_are_what_tarfile_finds_at_their_places(written):
    dataset = open_written(written)
    for index in range(len(dataset)):
        shard, name = dataset.place(index).split(": ")
        members = members_of(written / shard)
        assert dataset.ids[index] == name
        assert dataset.read(index) == members[name]
        assert dataset.targets[index] == int(members[f"{name.partition('.')[0]}.cls"])


def test_mode_and_resize_are_those_of_decoding(written):
    dataset = open_written(written, mode="grey", resize=[5, 6])
    assert dataset[3][0].shape == dataset.image_shape(3) == (1, 5, 6)
    assert dataset.fingerprint() != open_written(written).fingerprint()


def test_the_fingerprint_follows_the_decoder_if_there_are_jpeg_files(written, tmp_path):
    plain = make_tar(tmp_path / "x.tar", [("0.png", png()), ("0.cls", b"1")])
    found = []
    for decoder in ("PIL", "torchvision"):
        use_decoder(decoder)
        found.append((open_written(written).fingerprint(), ShardDataset(plain).fingerprint()))
    use_decoder(None)
    (jpegs, pngs), (other_jpegs, other_pngs) = found
    assert jpegs != other_jpegs
    assert pngs == other_pngs


def test_tars_in_webdataset_s_layout_are_read(tmp_path):
    members = [
        ("a/x.1.JPEG", png(1)),  # the key ends at the first dot: this image has no known suffix
        ("a/0.png", png(2)), ("a/0.json", b'{"of": 2}'), ("a/0.cls", b"4\n"), ("a/._0.png", b"-"),
        ("b/0.cls", b"1"), ("b/0.txt", b"words"), ("b/0.Png", png(3)),
    ]  # fmt: skip
    dataset = ShardDataset(make_tar(tmp_path / "x.tar", members[1:]))
    assert dataset.ids == ["a/0.png", "b/0.Png"]
    assert dataset.targets.tolist() == [4, 1]
    assert [int(dataset[i][0][0, 0, 0]) for i in range(2)] == [2, 3]
    assert [dataset.extra(i) for i in range(2)] == [{"of": 2}, None]
    assert not hasattr(dataset, "classes")
    (tmp_path / "classes.json").write_text(json.dumps(list("uvwxy")))
    assert ShardDataset(tmp_path / "x.tar").classes == list("uvwxy")
    with pytest.raises(DataError, match=r"y\.tar: a/x: expected one image, found \.1\.jpeg"):
        ShardDataset(make_tar(tmp_path / "y.tar", members))


def test_an_index_outside_is_an_index_error(written):
    dataset = open_written(written)
    assert torch.equal(dataset[-1][0], dataset[N_IMAGES - 1][0])
    for index in (N_IMAGES, -N_IMAGES - 1):
        with pytest.raises(IndexError):
            dataset[index]


# The order


@pytest.mark.parametrize(
    ("n_samples", "size"), [(0, 5), (1, 1), (1, 5), (9, 1), (20, 3), (1000, 64), (50, 50), (50, 80)]
)
def test_the_order_is_that_of_a_plain_shuffle_buffer(n_samples, size):
    expected = plain_order(n_samples, size, seeded())
    assert buffered_order(n_samples, size, seeded()).tolist() == expected


def test_no_sample_comes_earlier_than_the_buffer_allows():
    order = buffered_order(5000, 100, seeded())
    assert torch.equal(order.sort().values, torch.arange(5000))
    early = order - torch.arange(5000)
    assert early.max() == 99
    assert 80 < early.float().std() < 120  # a sample stays for as long as a die of 100 sides says


@pytest.mark.parametrize("kept", [range(N_IMAGES), range(1, N_IMAGES, 3), [47], [5, 12, 0, 46]])
def test_shards_come_in_random_order_through_the_buffer(written, kept):
    kept = list(kept)
    dataset = open_written(written, buffer=7)
    order = dataset.shuffled_order(torch.tensor(kept), seeded(3)).tolist()

    generator = seeded(3)
    sequence = []
    for shard in torch.randperm(5, generator=generator).tolist():
        sequence += [index for index in sorted(kept) if index // 10 == shard]
    expected = [sequence[place] for place in plain_order(len(kept), 7, generator)]
    assert order == expected


def test_the_order_depends_on_the_generator_alone(written):
    dataset = open_written(written, buffer=7)
    indices = torch.arange(N_IMAGES)
    first = dataset.shuffled_order(indices, seeded(1))
    assert not torch.equal(first, dataset.shuffled_order(indices, seeded(2)))
    assert torch.equal(first, dataset.shuffled_order(indices.flip(0), seeded(1)))


# Resume, workers, and what the disk sees


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_in_mid_epoch_gives_the_same_batches(written, workers):
    def loader(n_workers):
        dataset = open_written(written, buffer=7)
        return BaseDataLoader(dataset, 4, True, 0.2, n_workers, seed=5)

    whole = list(loader(0).batches(0, 20))
    resumed = loader(workers)
    for first in (0, 7, 13):
        for batch, expected in zip(resumed.batches(first, 20 - first), whole[first:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
    resumed.close()


@needs_proc
def test_a_resume_reads_nothing_that_came_before(written, monkeypatch):
    dataset = open_written(written, buffer=7)
    loader = BaseDataLoader(dataset, 4, True, 0, 0, seed=5)
    order = dataset.shuffled_order(torch.arange(N_IMAGES), derive_generator(5, "order", 1))
    read = []
    pread = os.pread

    def recorded(descriptor, size, offset):
        read.append((str(DESCRIPTORS.joinpath(str(descriptor)).readlink()), offset, size))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", recorded)
    list(loader.batches(12 + 5, 7))
    expected = []
    for index in order[20:].tolist():
        shard, name = dataset.place(index).split(": ")
        with tarfile.open(written / shard) as tar:
            member = tar.getmember(name)
        expected.append((str(written / shard), member.offset_data, member.size))
    assert read == expected


@pytest.fixture
def advised(monkeypatch):
    """What the system was told will be read: shard's descriptor -> (start, length)."""
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("this system takes no advice")
    monkeypatch.setattr(reader, "STRETCH", 2048)
    monkeypatch.setattr(reader, "PIECE", 700)
    found = {}

    def record(descriptor, start, length, advice):
        assert advice == os.POSIX_FADV_WILLNEED
        found.setdefault(os.fstat(descriptor).st_ino, []).append((start, start + length))

    monkeypatch.setattr(os, "posix_fadvise", record)
    return found


def test_each_file_is_announced_once_an_epoch_from_its_start_to_its_end(written, advised):
    dataset = open_written(written, buffer=7)
    loader = BaseDataLoader(dataset, 4, True, 0, 0, seed=5)
    for _ in range(2):
        list(loader)
        assert len(advised) == 5
        for path in dataset.shards:
            pieces = advised.pop(path.stat().st_ino)
            starts, ends = zip(*pieces, strict=True)
            assert starts[0] == 0
            assert starts[1:] == ends[:-1]
            assert ends[-1] >= shard_index.open_index(path).places[-1, :2].sum()


def test_a_resume_announces_little_of_what_came_before(written, advised):
    dataset = open_written(written, buffer=1)
    order = dataset.shuffled_order(torch.arange(N_IMAGES), seeded())
    shard, sample = dataset._locate(int(order[25]))
    assert sample > 3
    for index in order[25:].tolist():
        dataset.read(index)
    start = advised[dataset.shards[shard].stat().st_ino][0][0]
    assert start == dataset._indexes[shard].places[sample - 2, 0]


def test_a_shard_of_which_little_is_wanted_is_not_announced(written, advised):
    dataset = open_written(written)
    for index in range(0, N_IMAGES, 3):  # in fixed order: a validation split
        dataset.read(index)
    for index in dataset.shuffled_order(torch.arange(0, N_IMAGES, 3), seeded()).tolist():
        dataset.read(index)
    assert not advised


def test_a_data_set_can_be_sent_to_a_process(written):
    dataset = open_written(written)
    dataset.read(0)
    sent = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(sent[30][0], dataset[30][0])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_a_forked_process_opens_shards_of_its_own(written):
    dataset = open_written(written)
    content = dataset.read(0)
    opened = reader._open.cache_info().misses

    def report(connection):
        connection.send((dataset.read(0), reader._open.cache_info().misses))

    receiver, sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=report, args=(sender,))
    process.start()
    assert receiver.recv() == (content, opened + 1)
    process.join()


@needs_proc
def test_few_files_are_open_at_once(tmp_path):
    for number in range(80):
        make_tar(
            tmp_path / f"{number:02d}.tar", [(f"{number}.png", png()), (f"{number}.cls", b"0")]
        )
    reader._open.cache_clear()
    dataset = ShardDataset(tmp_path / "*.tar")
    n_before = len(list(DESCRIPTORS.iterdir()))
    for index in range(80):
        dataset.read(index)
    assert len(list(DESCRIPTORS.iterdir())) - n_before <= 64


# The index


def no_scan(monkeypatch):
    def fail(path):
        raise AssertionError(f"{path} is scanned")

    monkeypatch.setattr(shard_index, "scan", fail)


@pytest.fixture
def small(tmp_path):
    """One shard of two samples, without an index."""
    members = [("0.png", png(1)), ("0.cls", b"0"), ("1.png", png(2)), ("1.cls", b"1")]
    return make_tar(tmp_path / "small.tar", members)


def test_a_tar_is_scanned_once(small, monkeypatch):
    first = ShardDataset(small)
    assert small.with_name("small.tar.index").exists()
    no_scan(monkeypatch)
    assert torch.equal(ShardDataset(small)[1][0], first[1][0])
    assert not list(small.parent.glob(".tmp-*"))


def test_what_is_written_needs_no_scan(folder, tmp_path, monkeypatch):
    write(folder, tmp_path / "train", "--count", 10)
    no_scan(monkeypatch)
    assert len(ShardDataset(tmp_path / "train-*.tar")) == N_IMAGES


def test_an_index_of_another_tar_is_made_anew(small):
    ShardDataset(small)
    make_tar(small, [("longer.png", png(9, (40, 50))), ("longer.cls", b"0")])
    os.utime(small, (1, 1))
    assert ShardDataset(small).ids == ["longer.png"]


@pytest.mark.parametrize(
    "damage",
    [
        *(lambda content, n=n: content[:n] for n in (0, 1, 100, -1, -30, -400)),
        lambda content: content.replace(b"0.png", b"8.png", 1),  # a flipped bit
    ],
)
def test_a_damaged_index_is_made_anew(small, damage):
    ShardDataset(small)
    path = small.with_name("small.tar.index")
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert ShardDataset(small).ids == ["0.png", "1.png"]
    assert path.read_bytes() == content


def test_the_index_of_a_read_only_folder_lies_in_the_cache(small, cache_folder, monkeypatch):
    write_index = shard_index.write_index

    def refuse(path, index):
        if path.parent == small.parent:
            raise OSError(errno.EROFS, "read-only file system")
        write_index(path, index)

    monkeypatch.setattr(shard_index, "write_index", refuse)
    ShardDataset(small)
    assert len(list((cache_folder / "kindling" / "shards").iterdir())) == 1
    no_scan(monkeypatch)
    assert ShardDataset(small).ids == ["0.png", "1.png"]


def test_an_index_that_cannot_be_kept_is_only_a_warning(small, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert ShardDataset(small).ids == ["0.png", "1.png"]
    assert "small.tar: its index cannot be stored and is created" in caplog.text
    assert [path.name for path in small.parent.iterdir() if path.is_file()] == ["small.tar"]


# What is wrong is said, with its place

IMAGE, LABEL = ("0.png", png()), ("0.cls", b"1")
FAULTS = {
    r"bad.tar: 0.png: no label: 0.cls is missing": [IMAGE],
    r"bad.tar: 0: expected one image, found .cls": [LABEL],
    r"bad.tar: 0: expected one image, found .cls, .jpg, .png": [IMAGE, LABEL, ("0.jpg", png())],
    r"bad.tar: 0.cls: expected a class number, found 'cat'": [IMAGE, ("0.cls", b"cat")],
    r"bad.tar: 0.cls: expected a class number, found '-1'": [IMAGE, ("0.cls", b"-1")],
    r"bad.tar: 0.cls: expected a class number, found ''": [IMAGE, ("0.cls", b" ")],
    r"bad.tar: 0.cls: expected a class number, found '9999999999'": [IMAGE, ("0.cls", b"9" * 10)],
    r"bad.tar: 0.png: an empty file": [("0.png", b""), LABEL],
    r"bad.tar: 0.png: the name 0 occurs twice": [IMAGE, LABEL, IMAGE],
    r"bad.tar: 0.cls: the name 0 occurs twice": [IMAGE, ("1.png", png()), ("1.cls", b"0"), LABEL],
    r"bad.tar: 0.png: label 1 is not one of the folder's 1 classes": [IMAGE, LABEL],
    r"bad.tar: no sample in 1 shards": [],
}  # fmt: skip


@pytest.mark.parametrize("text", FAULTS)
def test_faults_name_shard_and_member(tmp_path, text):
    make_tar(tmp_path / "bad.tar", FAULTS[text])
    if "classes" in text:
        (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError) as caught:
        ShardDataset(tmp_path / "bad.tar")
    assert str(tmp_path / text) in str(caught.value)
    assert "\n" not in str(caught.value)


def damaged(content):
    return content[:2048] + b"\xff" * 512 + content[2560:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *((lambda content, n=n: content[:n],
           "(not a readable uncompressed tar|.*damaged or truncated)")
          for n in (5, 700, 1100, 1536, 2048, 2500, 4096)),
        (damaged, "0: damaged or truncated from here on"),
        (gzip.compress, "not a readable uncompressed tar file"),
    ],
)  # fmt: skip
def test_a_damaged_or_compressed_tar_is_an_error_and_not_taken_for_a_shorter_one(
    small, damage, message
):
    small.write_bytes(damage(small.read_bytes()))
    with pytest.raises(DataError, match=rf"small\.tar: {message}"):
        ShardDataset(small)
    assert check(small) == 1


def test_a_disk_that_cannot_be_read_is_an_error_of_the_shard(small, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tarfile.TarFile, "next", fail)
    with pytest.raises(
        DataError, match=r"small\.tar: not a readable uncompressed tar file: .*error"
    ):
        ShardDataset(small)


def test_a_name_that_is_no_utf8_is_shown_as_it_can_be(tmp_path, capsys):
    name = b"caf\xe9".decode(errors="surrogateescape")
    tar = make_tar(tmp_path / "x.tar", [(f"{name}.png", png()), (f"{name}.cls", b"0")])
    dataset = ShardDataset(tar)
    assert dataset.ids == ["caf\\xe9.png"]
    assert dataset[0][0].shape == (3, 3, 4)
    assert check(make_tar(tar, [(f"{name}.png", png())])) == 1
    assert "caf\\xe9.png: no label" in capsys.readouterr().out


def test_a_name_in_two_shards_is_refused(small, tmp_path):
    make_tar(
        tmp_path / "other.tar",
        [("2.png", png()), ("2.cls", b"0"), ("1.png", png()), ("1.cls", b"0")],
    )
    with pytest.raises(DataError, match=r"other\.tar: 1\.png: .*small\.tar contains this name"):
        ShardDataset([small, tmp_path / "other.tar"])


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("smal.tar", r"smal\.tar: no such shard; did you mean 'small\.tar'\?"),
        ("train-{00..02}.tar", r"train-00\.tar: no such shard; .* has 1 other tar files"),
        ("smell*.tar", r"smell\*\.tar: no such shard; did you mean 'small\.tar'\?"),
        ("none/*.tar", r"none has 0 other tar files"),
        (".", "this is a folder, not a file"),
    ],
)
def test_what_names_no_shard_is_an_error_with_the_nearest(small, pattern, text):
    with pytest.raises(DataError, match=text):
        ShardDataset(str(small.parent / pattern))


def test_shards_named_twice_or_not_at_all_are_errors(small):
    with pytest.raises(DataError, match="named twice"):
        ShardDataset([small, small])
    with pytest.raises(DataError, match="no shards:"):
        ShardDataset([])


@pytest.mark.parametrize("options", [{"buffer": 0}, {"mode": "RBG"}, {"resize": -1}])
def test_wrong_options_are_errors(small, options):
    with pytest.raises(DataError):
        ShardDataset(small, **options)


def test_braces_and_globs_name_shards_in_order(tmp_path):
    for name in ("a-08", "a-09", "a-10", "b[1]-08"):
        make_tar(tmp_path / f"{name}.tar", [])
    find = shard_index.find_shards
    names = [path.name for path in find(f"{tmp_path}/a-{{08..10}}.tar")]
    assert names == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert find(tmp_path / "a*.tar") == find(f"{tmp_path}/a-{{08..10}}.tar")
    assert find([tmp_path / "b[1]-08.tar"]) == [tmp_path / "b[1]-08.tar"]


@pytest.mark.parametrize("text", ['{"cat": 0}', "[1, 2]", "[", '"cat"'])
def test_classes_that_are_no_list_of_names_are_an_error(small, text):
    (small.parent / "classes.json").write_text(text)
    with pytest.raises(DataError, match=r"classes\.json"):
        ShardDataset(small)


def test_a_damaged_image_is_named(tmp_path):
    tar = make_tar(tmp_path / "x.tar", [("0.png", b"no image"), ("0.cls", b"0")])
    with pytest.raises(DataError, match=r"x\.tar: 0\.png"):
        ShardDataset(tar).image(0)


def test_a_shard_that_changes_or_goes_while_it_is_used_is_an_error(small):
    dataset = ShardDataset(small)
    os.utime(small, (1, 1))
    with pytest.raises(DataError, match=r"small\.tar: 0\.png: cannot be read: .* has changed"):
        dataset.read(0)
    small.unlink()
    with pytest.raises(DataError, match=r"small\.tar: 0\.png: cannot be read: .*No such file"):
        dataset.read(0)


def test_a_shard_cut_short_while_it_is_open_is_an_error(small):
    dataset = ShardDataset(small)
    dataset.read(0)
    with small.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=r"1\.png: .*small\.tar was truncated while it was read"):
        dataset.read(1)


# The writer


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".index"}


def test_equal_input_gives_equal_bytes(folder, written, tmp_path):
    write(folder, tmp_path / "train", "--count", 10, "--shuffle")
    assert contents(tmp_path) == contents(written)
    write(folder, tmp_path / "train", "--count", 10, "--shuffle", "--seed", 1, "--overwrite")
    assert contents(tmp_path) != contents(written)


def test_a_shard_is_as_large_as_wished_at_most(folder, tmp_path):
    write(folder, tmp_path / "train", "--size", "30kB")
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.tar"))]
    assert max(sizes) <= 30_000
    assert min(sizes[:-1]) > 15_000


def test_an_image_larger_than_a_shard_has_one_of_its_own(folder, tmp_path):
    write(folder, tmp_path / "train", "--size", 1)
    assert len(list(tmp_path.glob("*.tar"))) == N_IMAGES


def test_a_list_is_written_with_its_labels(folder, tmp_path):
    lines = ["# image label", f'"{folder}/cat/00.jpg" dog', f"{folder}/dog/01.PNG ant"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    write(tmp_path / "list.txt", tmp_path / "out" / "train")
    dataset = ShardDataset(tmp_path / "out" / "train-000000.tar")
    assert dataset.ids == ["000000.jpg", "000001.png"]
    assert dataset.classes == ["ant", "dog"]
    assert dataset.targets.tolist() == [1, 0]


def test_shards_that_are_there_are_kept_unless_they_may_go(folder, tmp_path):
    write(folder, tmp_path / "train", "--count", 10)
    make_tar(tmp_path / "train-extra-000000.tar", [])
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"train-000000\.tar: 5 shards of this name exist"):
        write(folder, tmp_path / "train", "--count", 30)
    assert contents(tmp_path) == before
    write(folder, tmp_path / "train", "--count", 30, "--overwrite")
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    tars = ["train-000000.tar", "train-000001.tar"]
    indexes = [f"{name}.index" for name in tars]
    assert names == sorted(["classes.txt", "train-extra-000000.tar", *tars, *indexes])
    assert len(ShardDataset([tmp_path / name for name in tars])) == N_IMAGES


def test_sets_in_one_folder_share_their_classes(folder, tmp_path):
    for n_classes, name in ((3, "train"), (2, "valid")):
        lines = [f"{folder}/cat/00.jpg {label}" for label in range(n_classes)]
        lines = [line.replace("00", f"{3 * 2 * n:02d}") for n, line in enumerate(lines)]
        (tmp_path / "list.txt").write_text("\n".join(lines))
        write(tmp_path / "list.txt", tmp_path / "out" / name)
    assert (tmp_path / "out" / "classes.txt").read_text().split() == ["0", "1", "2"]
    with pytest.raises(UsageError, match="the shards there have other classes"):
        write(folder, tmp_path / "out" / "test")


@pytest.fixture
def fails(monkeypatch):
    """Let the writing of the third shard fail with an error."""

    def prepare(error):
        fsync, n_calls = os.fsync, []

        def failing(descriptor):
            n_calls.append(descriptor)
            if len(n_calls) == 6:
                raise error
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", failing)

    return prepare


@pytest.mark.parametrize("is_new", [True, False])
def test_a_full_disk_leaves_nothing_and_what_was_there(folder, tmp_path, fails, is_new):
    if not is_new:
        write(folder, tmp_path / "train", "--count", 7)
    before = contents(tmp_path)
    fails(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(DataError, match="train: not written: No space left on device"):
        write(folder, tmp_path / "train", "--count", 10, "--overwrite")
    assert contents(tmp_path) == before


def test_too_little_room_is_noticed_before_writing(folder, tmp_path, monkeypatch):
    usage = shard_writer.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shard_writer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="not written: No space left on device"):
        write(folder, tmp_path / "train")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_no_shard_and_can_be_repeated(
    folder, written, tmp_path, fails, monkeypatch
):
    fails(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(folder, tmp_path / "train", "--count", 10, "--shuffle")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / ".tmp-train").mkdir()  # as after kill -9
    (tmp_path / ".tmp-train" / "train-000000.tar").write_bytes(b"half")
    write(folder, tmp_path / "train", "--count", 10, "--shuffle")
    assert contents(tmp_path) == contents(written)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere", "out/train"], "nowhere: no such file"),
        (["empty", "out/train"], "empty: no class folders"),
        (["images", "empty"], r"empty is a folder; .* empty.train"),
        (["list.txt", "out/train"], r"list\.txt:1: no label"),
        (["images", "out/train", "--size", "5XB"], "'5XB' is not a size such as 500MB"),
        (["images", "out/train", "--size", "0"], "'0' is not a size"),
        (["images", "out/train", "--count", "-1"], "--count"),
        (["images", "out/train", "--count", "1", "--size", "1"], "not allowed with"),
        (["images", "out/train", "--shufle"], "did you mean '--shuffle'"),
        (["images"], "required: OUT"),
    ],
)
def test_slips_of_the_command_are_usage_errors(folder, tmp_path, monkeypatch, arguments, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").symlink_to(folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("images/cat/00.jpg\n")
    with pytest.raises(UsageError, match=text):
        write(*arguments)
    assert not (tmp_path / "out").exists()


def test_check_counts_and_finds_faults(written, tmp_path, capsys):
    assert check(written / "train-*.tar") == 0
    out = capsys.readouterr().out
    assert f"{written}/train-000004.tar: 8 samples\n" in out
    assert "class 2 emu: 16\n" in out
    assert "5 shards, 48 samples, no faults" in out
    bad = make_tar(tmp_path / "bad.tar", [IMAGE, LABEL, ("1.png", png()), ("2.png", b"")])
    assert check(bad) == 1
    out = capsys.readouterr().out
    assert "bad.tar: 1.png: no label" in out
    assert "bad.tar: 2.png: no label" in out
    assert "1 shards, 1 samples, 2 faults" in out
    with pytest.raises(UsageError, match="no such shard"):
        check(tmp_path / "bed.tar")


@pytest.mark.parametrize("damage", [b"", b"hello", None])
def test_a_damaged_image_is_not_written_and_is_found(folder, tmp_path, capsys, damage):
    folder = Path(shutil.copytree(folder, tmp_path / "images"))
    path = sorted((folder / "cat").iterdir())[2]
    whole = path.read_bytes()
    damaged = whole[: len(whole) // 2] if damage is None else damage
    path.write_bytes(damaged)
    with pytest.raises(UsageError, match=rf"cat/{path.name}: .*; nothing was written"):
        write(folder, tmp_path / "out" / "train")
    assert not (tmp_path / "out").exists()
    if damaged:
        bad = make_tar(tmp_path / "bad.tar", [("1.png", damaged), ("1.cls", b"0")])
        assert check(bad) == 1
        assert "bad.tar: 1.png: " in capsys.readouterr().out


def test_a_column_of_a_list_is_chosen(folder, tmp_path):
    names = sorted(folder.rglob("*.*"))[:3]
    rows = [f"{name} {number} {2 - number}" for number, name in enumerate(names)]
    (tmp_path / "list.txt").write_text("\n".join(rows))
    with pytest.raises(UsageError, match=r"list\.txt:1: 2 labels"):
        write(tmp_path / "list.txt", tmp_path / "train")
    write(tmp_path / "list.txt", tmp_path / "train", "--label", 2)
    shards = ShardDataset(str(tmp_path / "train-000000.tar"))
    assert shards.targets.tolist() == [2, 1, 0]


@pytest.mark.end_to_end
def test_the_module_is_a_command_without_tracebacks(project_root):
    command = [sys.executable, "-m", "base.shards", "check", "nowhere.tar"]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "nowhere.tar: no such shard; . has 0 other tar files\n"


@pytest.mark.end_to_end
def test_torchvision_is_not_loaded_with_shards(project_root):
    program = "import sys, base.datasets.shards; sys.exit('torchvision' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=project_root, check=False)
    assert done.returncode == 0


def test_images_of_every_suffix_and_of_none_are_written_and_read(tmp_path):
    image = Image.fromarray(np.full((8, 9, 3), 90, np.uint8))
    lines = []
    for name, form in {"a.JFIF": "JPEG", "b.avif": "AVIF", "c.jp2": "JPEG2000", "d": "PNG"}.items():
        image.save(tmp_path / name, format=form)
        lines.append(f"{name} 0\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    assert write(tmp_path / "list.txt", tmp_path / "out/train") == 0
    dataset = ShardDataset(tmp_path / "out/train-000000.tar")
    assert dataset.ids == ["000000.jfif", "000001.avif", "000002.jp2", "000003.png"]
    for index in range(4):
        assert (dataset[index][0].int() - 90).abs().max() <= 2
