"""Arrays in files, and data sets in memory: what they give, and what they refuse."""

import gzip
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from base.data.reading import find_get_batch
from base.datasets.array_files import ArrayFileDataset, IdxDataset, read_array, read_idx, read_npz
from base.datasets.in_memory import InMemoryDataset, SyntheticDataset, in_memory, in_memory_arrays
from base.errors import DataError
from base.names.construction import build
from data_loader.data_loaders import SyntheticDataLoader

RANDOM = np.random.RandomState(0)
NHWC = RANDOM.randint(0, 256, (6, 4, 5, 3), dtype=np.uint8)
NCHW = torch.from_numpy(NHWC).movedim(-1, 1)
LABELS = np.array([0, 2, 1, 1, 0, 2])


def assert_batches_are_samples_collated(dataset):
    batch = find_get_batch(dataset)(torch.tensor([3, 0, 3]))
    expected = default_collate([dataset[3], dataset[0], dataset[3]])
    assert type(batch) is type(expected)
    for one, other in zip(batch, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("form", ["npy", "npz", "compressed"])
def test_arrays_are_read_from_files(tmp_path, monkeypatch, form):
    monkeypatch.chdir(tmp_path)
    args = {"inputs": "x.npy", "targets": "y.npy", "layout": "NHWC", "classes": ["a", "b", "c"]}
    if form == "npy":
        np.save("x.npy", NHWC)
        np.save("y.npy", LABELS)
    else:
        save = np.savez if form == "npz" else np.savez_compressed
        save("all.npz", x=NHWC, y=LABELS)
        args |= {"inputs": "x", "targets": "y", "file": "all.npz"}
    dataset = build("dataset", {"type": "ArrayFileDataset", "args": args})
    assert len(dataset) == 6
    assert dataset.classes == ["a", "b", "c"]
    assert torch.equal(dataset.targets, torch.from_numpy(LABELS))
    assert torch.equal(dataset.get_batch(torch.arange(6))[0], NCHW)
    assert dataset[1][0].dtype == torch.uint8
    assert_batches_are_samples_collated(dataset)
    dataset[0][0].zero_()
    dataset.get_batch(torch.arange(6))[0].zero_()
    assert torch.equal(dataset.get_batch(torch.arange(6))[0], NCHW)
    name = args["file"] if form != "npy" else "x.npy"
    assert dataset.place(4) == f"{name}: sample 4"


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f8", "<i8", ">i2", "<u2", "?"])
def test_what_is_not_compressed_is_mapped_and_equal(tmp_path, order, dtype):
    array = np.asarray(RANDOM.randint(0, 2, (5, 3)), dtype=dtype, order=order)
    np.savez(tmp_path / "a.npz", first=array[::-1], other=array)
    np.save(tmp_path / "a.npy", array)
    for name, file in (("other", str(tmp_path / "a.npz")), (str(tmp_path / "a.npy"), None)):
        read = read_array(name, file)
        assert isinstance(read, np.memmap)
        np.testing.assert_array_equal(read, array)
        args = {"inputs": name, "targets": name, "file": file}
        inputs = ArrayFileDataset(**args).get_batch(torch.arange(5))[0]
        np.testing.assert_array_equal(inputs.numpy(), array)
        kind = "uint8" if dtype == "u1" else "float32" if "f" in dtype else "int64"
        assert inputs.dtype == getattr(torch, kind)
        assert getattr(ArrayFileDataset(**args), "white", 255) == (255 if dtype == "u1" else 1)


def test_layouts_give_channel_height_width(tmp_path):
    np.save(tmp_path / "y.npy", LABELS)
    for layout, array in (("NCHW", NCHW.numpy()), ("NHWC", NHWC), ("NHW", NHWC[..., 0])):
        np.save(tmp_path / "x.npy", array)
        paths = [str(tmp_path / name) for name in ("x.npy", "y.npy")]
        dataset = ArrayFileDataset(*paths, layout=layout)
        expected = NCHW if layout != "NHW" else NCHW[:, :1]
        assert torch.equal(torch.stack([dataset[i][0] for i in range(6)]), expected)


@pytest.mark.parametrize(
    ("array", "layout", "message"),
    [
        (NHWC, None, r"x.npy: \(6, 4, 5, 3\) looks like images; say so with layout: NHWC"),
        (NHWC.repeat(9, 1), "NCHW", "is not that of images in layout NCHW"),
        (NHWC.astype(np.int32), "NHWC", "x.npy: sample 0: pixels of torch.int32; give uint8"),
        (NHWC.astype(np.float32), "NHWC", "x.npy: sample 0: floats from 5 to 251; divide by 255"),
        (np.full((6, 4, 4, 3), np.nan), "NHWC", "x.npy: sample 0: NaN or infinite pixels"),
        (NHWC[..., 0], "NHWC", "is not that of images in layout NHWC"),
        (NHWC, "NHW", "is not that of images in layout NHW"),
        (NHWC, "NWHC", "no layout 'NWHC'; did you mean 'NHWC'"),
        (NHWC[:3], "NHWC", "x.npy: 3 inputs, but 6 targets"),
        (np.array(["a"] * 6), None, "x.npy: an array .* of <U1; numbers are expected"),
        (np.zeros((0, 3)), None, "x.npy: an array .*, at least one"),
        (np.float32(3), None, "x.npy: an array"),
    ],
)
def test_arrays_that_do_not_fit_are_told(tmp_path, array, layout, message):
    np.save(tmp_path / "x.npy", array)
    np.save(tmp_path / "y.npy", LABELS)
    with pytest.raises(DataError, match=message):
        ArrayFileDataset(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), layout=layout)


def test_files_and_members_that_are_missing_are_told(tmp_path):
    np.savez(tmp_path / "a.npz", images=NHWC, labels=LABELS)
    file = str(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a.npz: no array 'image'; did you mean 'images'"):
        ArrayFileDataset("image", "labels", file)
    with pytest.raises(DataError, match=r"a.npz: no array 'zzz'; it has images, labels"):
        ArrayFileDataset("images", "zzz", file)
    with pytest.raises(DataError, match=r"none.npz: no such file; the current folder is"):
        ArrayFileDataset("images", "labels", str(tmp_path / "none.npz"))
    with pytest.raises(DataError, match=r"x.npy: no such file"):
        ArrayFileDataset(str(tmp_path / "x.npy"), "labels")


@pytest.mark.parametrize("length", [0, 5, 100, 300, 450])
def test_cut_files_are_told(tmp_path, length):
    np.savez(tmp_path / "a.npz", x=NHWC, y=LABELS)
    np.save(tmp_path / "a.npy", NHWC)
    for name, inputs in (("a.npz", "x"), ("a.npy", None)):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(DataError, match=f"{name}: not a readable {name[2:]} file"):
            read_array(inputs or str(tmp_path / name), inputs and str(tmp_path / name))


def test_objects_are_refused(tmp_path):
    objects = np.array([{}, 3], dtype=object)
    np.savez(tmp_path / "a.npz", x=objects)
    np.save(tmp_path / "a.npy", objects)
    for name, file in (("x", str(tmp_path / "a.npz")), (str(tmp_path / "a.npy"), None)):
        with pytest.raises(DataError, match=r"not a readable np. file"):
            read_array(name, file)


@pytest.mark.parametrize(
    ("targets", "classes", "message"),
    [
        ([0, 1, -1, -2], None, r"sample 2: target -1 is not a class: it is below 0 \(and 1 more\)"),
        ([0, 1, 2, 0], 2, "sample 2: target 2 is not a class: classes are 0 to 1$"),
        ([0.5, 1, np.nan, 0], None, "sample 2: target nan is not a number"),
        ([[0.5, 1], [np.inf, 0], [0, 0], [0, 0]], None, "sample 1: target inf is not a number"),
        ([0, 1, 2], None, "4 inputs, but 3 targets"),
    ],
)
def test_targets_are_checked(targets, classes, message):
    with pytest.raises(DataError, match=f"my.npz: {message}"):
        InMemoryDataset(torch.zeros(4, 2), torch.tensor(targets), classes, source="my.npz")


def test_targets_are_class_numbers_or_floats():
    inputs = torch.zeros(2, 3)
    for targets, dtype in (([0, 1], torch.int64), ([0.5, 1], torch.float32)):
        for given in (torch.tensor(targets), torch.tensor(targets).double()):
            expected = torch.float32 if given.is_floating_point() else dtype
            assert InMemoryDataset(inputs, given).targets.dtype == expected
    assert InMemoryDataset(inputs, torch.tensor([[True], [False]])).targets.tolist() == [[1], [0]]
    assert InMemoryDataset(inputs, torch.tensor([1, 0], dtype=torch.uint8)).targets.tolist() == [
        1,
        0,
    ]


IDX = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4)])
@pytest.mark.parametrize("kind", IDX)
def test_idx_files_of_every_type_are_read(tmp_path, kind, shape, suffix):
    array = RANDOM.randint(0, 127, shape).astype(IDX[kind])
    header = struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape)
    content, path = header + array.tobytes(), tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    tensor = read_idx(path)
    np.testing.assert_array_equal(tensor.numpy(), array)
    tensor.add_(1)  # it may be written to


def test_idx_files_make_a_data_set(tmp_path):
    labels = np.array([3, 1], np.uint8)
    content = struct.pack(">HBB3I", 0, 8, 3, 2, 4, 5) + NHWC[:2, ..., 0].tobytes()
    (tmp_path / "images").write_bytes(content)
    (tmp_path / "labels").write_bytes(struct.pack(">HBBI", 0, 8, 1, 2) + labels.tobytes())
    args = {"images": str(tmp_path / "images"), "labels": str(tmp_path / "labels")}
    dataset = build("dataset", {"type": "IdxDataset", "args": args})
    assert torch.equal(dataset.get_batch(torch.arange(2))[0], NCHW[:2, :1])
    assert dataset.targets.tolist() == [3, 1]
    with pytest.raises(DataError, match=r"images: sample 0: target 3 .*: classes are 0 to 2"):
        IdxDataset(**args, classes=3)
    with pytest.raises(DataError, match="none: no such file"):
        IdxDataset(str(tmp_path / "none"), args["labels"])


def test_synthetic_images_follow_from_their_seed():
    args = {"n_samples": 300, "shape": [1, 8, 8], "n_classes": 3, "noise": 0.3}
    one = build("dataset", {"type": "SyntheticDataset", "args": args})
    assert one.images.dtype == torch.uint8
    assert one.images.shape == (300, 1, 8, 8)
    assert len(one.classes) == 3
    assert_batches_are_samples_collated(one)
    assert torch.equal(one.images, SyntheticDataset(**args).images)
    other, test = SyntheticDataset(**args, data_seed=1), SyntheticDataset(**args, part="test")
    assert not torch.equal(one.images, other.images)
    assert not torch.equal(one.images, test.images)
    for number in range(3):  # classes look alike in both parts
        means = [each.images[each.targets == number].float().mean(0) for each in (one, test)]
        assert (means[0] - means[1]).abs().max() < 12
        assert means[0].std() > 20


@pytest.mark.parametrize("args", [{"n_samples": 0}, {"n_classes": 0}, {"shape": [3, 0, 4]}])
def test_synthetic_images_of_nothing_are_refused(args):
    with pytest.raises(DataError, match="must be at least 1"):
        SyntheticDataset(**args)


def test_the_synthetic_loader_has_the_same_images_as_floats():
    loader = SyntheticDataLoader(40, (1, 4, 4), 3, shuffle=False, validation_split=0)
    dataset = SyntheticDataset(40, (1, 4, 4), 3)
    images, labels = loader.dataset.get_batch(torch.arange(40))
    assert torch.equal(labels, dataset.targets)
    assert images.dtype == torch.float32
    pixels = (images * 255 / 8 + 127.5).clamp(0, 255)
    assert (pixels - dataset.images).abs().max() <= 0.51


@pytest.mark.parametrize(
    ("data", "targets", "expected"),
    [
        (torch.from_numpy(NHWC[..., 0]), torch.from_numpy(LABELS), NCHW[:, :1]),  # MNIST
        (NHWC, LABELS.tolist(), NCHW),  # CIFAR
        (NCHW.numpy(), None, NCHW),  # SVHN
    ],
)
def test_torchvisions_sets_in_memory_are_read_by_the_batch(data, targets, expected):
    facts = {"data": data, "transform": None}
    facts |= {"labels": LABELS} if targets is None else {"targets": targets}
    dataset = in_memory(SimpleNamespace(**facts))
    assert torch.equal(dataset.get_batch(torch.arange(6))[0], expected)
    assert torch.equal(dataset.targets, torch.from_numpy(LABELS))
    assert_batches_are_samples_collated(dataset)
    assert in_memory(SimpleNamespace(**facts | {"transform": abs})) is None
    assert in_memory_arrays(SimpleNamespace(**facts | {"transform": abs})) is not None


@pytest.mark.parametrize("data", [["a.jpg"], np.zeros((3, 4)), np.zeros((6, 4, 4)), None])
def test_other_sets_are_left_as_they_are(data):
    assert in_memory(SimpleNamespace(data=data, targets=LABELS)) is None
    assert in_memory(SimpleNamespace()) is None


def test_a_number_beyond_float32_is_an_error_and_not_infinite(tmp_path):
    values = np.array([[1.0], [1e39], [2.0]])
    np.savez(tmp_path / "t.npz", x=values, y=np.array([0, 1, 0]))
    dataset = ArrayFileDataset("x", "y", str(tmp_path / "t.npz"))
    assert dataset.get_batch(torch.tensor([0, 2]))[0].tolist() == [[1], [2]]
    for read in (lambda: dataset[1], lambda: dataset.get_batch(torch.arange(3))):
        with pytest.raises(DataError, match=r"t.npz: an input is 1e\+39, which overflows float32"):
            read()
    with pytest.raises(DataError, match="overflows float32"):
        dataset.placed_on(torch.device("cpu"))


WHOLE = struct.pack(">HBB2I", 0, 8, 2, 2, 3) + bytes(6)


NO_IDX = [WHOLE + b"x", b"PNG" + WHOLE, b"\0\0\x0d" + WHOLE[3:], b"\0\0\x08\0"]
NO_GZIP = [b"not gzip", gzip.compress(WHOLE, mtime=0)[:-9], gzip.compress(WHOLE, mtime=0)[:15], b""]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *(("x-ubyte", WHOLE[:length], "not a complete IDX file") for length in range(len(WHOLE))),
        *(("x-ubyte", content, "not a complete IDX file") for content in NO_IDX),
        *(("x-ubyte.gz", content, "") for content in NO_GZIP),
    ],
)
def test_what_is_no_whole_idx_file_is_reported(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {message}"):
        read_idx(tmp_path / name)


def test_objects_in_an_npz_file_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="not a readable npz file"):
        read_npz(tmp_path / "x.npz")
