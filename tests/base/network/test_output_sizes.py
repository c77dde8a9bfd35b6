"""Sizes and paddings are those of torch's own layers, for every setting that torch allows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from base.network.output_sizes import (
    conv_output_size,
    conv_padding_for,
    conv_transpose_output_size,
    conv_transpose_padding_for,
    pool_output_size,
    pool_padding_for,
)

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))
KERNELS = st.tuples(st.integers(1, 5), st.integers(1, 5))
STEPS = st.tuples(st.integers(1, 4), st.integers(1, 4))
PADS = st.tuples(st.integers(0, 3), st.integers(0, 3))


def size_by(layer, size):
    """What torch gives, or None where it refuses."""
    try:
        return tuple(layer(torch.zeros(1, 1, *size)).shape[2:])
    except RuntimeError:
        return None


def size_of(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except ValueError:
        return None


@given(SIZES, KERNELS, STEPS, PADS, STEPS)
def test_the_size_that_a_convolution_gives(size, kernel, stride, padding, dilation):
    layer = nn.Conv2d(1, 1, kernel, stride, padding, dilation)
    assert size_of(conv_output_size, size, kernel, stride, padding, dilation) == size_by(
        layer, size
    )


@given(SIZES, KERNELS, STEPS, PADS, PADS, STEPS)
def test_the_size_that_a_transposed_convolution_gives(
    size, kernel, stride, padding, output_padding, dilation
):
    settings = {"stride": stride, "padding": padding, "output_padding": output_padding}
    layer = nn.ConvTranspose2d(1, 1, kernel, **settings, dilation=dilation)
    ours = size_of(conv_transpose_output_size, size, kernel, **settings, dilation=dilation)
    assert ours == size_by(layer, size)


@given(SIZES, KERNELS, st.none() | STEPS, PADS, STEPS, st.booleans())
def test_the_size_that_a_pool_gives(size, kernel, stride, padding, dilation, ceil_mode):
    layer = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil_mode)
    ours = size_of(pool_output_size, size, kernel, stride, padding, dilation, ceil_mode)
    assert ours == size_by(layer, size)
    layer = nn.AvgPool2d(kernel, stride, padding, ceil_mode)
    ours = size_of(pool_output_size, size, kernel, stride, padding, ceil_mode=ceil_mode)
    assert ours == size_by(layer, size)


@pytest.mark.parametrize("n", [1, 3])
@given(kernel=st.integers(1, 4), stride=st.integers(1, 3), padding=st.integers(0, 2))
def test_any_number_of_dimensions(n, kernel, stride, padding):
    size = (5, 9, 7)[:n]
    conv = getattr(nn, f"Conv{n}d")(1, 1, kernel, stride, padding)
    transposed = getattr(nn, f"ConvTranspose{n}d")(1, 1, kernel, stride, padding)
    pool = getattr(nn, f"MaxPool{n}d")(kernel, stride, padding)
    settings = (size, kernel, stride, padding)
    assert size_of(conv_output_size, *settings) == size_by(conv, size)
    assert size_of(conv_transpose_output_size, *settings) == size_by(transposed, size)
    assert size_of(pool_output_size, *settings) == size_by(pool, size)
    assert size_of(conv_output_size, 5, kernel, stride, padding) == size_by(conv, size)[0]


def test_the_last_window_of_ceil_mode_must_start_in_the_input_or_before():
    assert pool_output_size(4, kernel_size=2, stride=3, ceil_mode=True) == 2  # starts at 3 of 0..3
    assert pool_output_size(3, kernel_size=2, stride=3, padding=1, ceil_mode=True) == 2
    assert pool_output_size(3, kernel_size=2, stride=3, ceil_mode=True) == 1  # 3 would be behind


@given(SIZES, SIZES, KERNELS, STEPS, STEPS)
def test_the_padding_for_a_wished_size_of_a_convolution(size, wished, kernel, stride, dilation):
    try:
        (top, bottom), (left, right) = conv_padding_for(size, wished, kernel, stride, dilation)
    except ValueError:
        reached = [set(_reach_conv(*of)) for of in zip(size, kernel, stride, dilation, strict=True)]
        assert any(w not in sizes for w, sizes in zip(wished, reached, strict=True))
        return
    images = F.pad(torch.zeros(1, 1, *size), (left, right, top, bottom))
    layer = nn.Conv2d(1, 1, kernel, stride, dilation=dilation)
    assert tuple(layer(images).shape[2:]) == wished
    sides = ((top, bottom), (left, right))
    assert conv_output_size(size, kernel, stride, sides, dilation) == wished
    for (before, after), step in zip(sides, stride, strict=True):
        assert before == after or (step == 1 and after == before + 1)


def _reach_conv(size, kernel, stride, dilation):
    for total in range(100):
        if (padded := size + total) >= dilation * (kernel - 1) + 1:
            layer = nn.Conv1d(1, 1, kernel, stride, dilation=dilation, device="meta")
            yield layer(torch.zeros(1, 1, padded, device="meta")).shape[-1]


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
def test_a_transposed_convolution_reaches_all_that_some_padding_reaches(
    size, kernel, stride, dilation
):
    reached = set()
    for padding in range(12):
        for output_padding in range(max(stride, dilation)):
            settings = (stride, padding, output_padding)
            layer = nn.ConvTranspose1d(1, 1, kernel, *settings, dilation=dilation)
            reached.add((size_by(layer, (size,)) or (0,))[0])
    for wished in range(1, max(reached) + 3):
        found = size_of(conv_transpose_padding_for, size, wished, kernel, stride, dilation)
        assert (found is not None) == (wished in reached)
        if found:
            layer = nn.ConvTranspose1d(1, 1, kernel, stride, *found, dilation=dilation)
            assert size_by(layer, (size,)) == (wished,)


@given(*(st.integers(1, 9), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.booleans()))
def test_a_pool_reaches_all_that_some_padding_reaches(size, kernel, stride, dilation, ceil_mode):
    reached = set()
    for before in range(kernel // 2 + 1):
        symmetric = nn.MaxPool1d(kernel, stride, before, dilation, ceil_mode=ceil_mode)
        reached.add((size_by(symmetric, (size,)) or (0,))[0])
        bare = nn.MaxPool1d(kernel, stride, 0, dilation, ceil_mode=ceil_mode)
        if stride == 1 and before < kernel // 2:
            reached.add((size_by(bare, (size + 2 * before + 1,)) or (0,))[0])
    for wished in range(1, max(reached) + 3):
        found = size_of(pool_padding_for, size, wished, kernel, stride, dilation, ceil_mode)
        assert (found is not None) == (wished in reached)
        if found and found[0] == found[1]:
            layer = nn.MaxPool1d(kernel, stride, found[0], dilation, ceil_mode=ceil_mode)
            assert size_by(layer, (size,)) == (wished,)
        elif found:
            assert stride == 1
            layer = nn.MaxPool1d(kernel, stride, 0, dilation, ceil_mode=ceil_mode)
            assert size_by(layer, (size + sum(found),)) == (wished,)


@pytest.mark.parametrize(
    ("size", "wished", "settings", "expected"),
    [
        (28, 14, (3, 2), (1, 1)),  # what everybody writes
        (28, 28, (3, 1), (1, 1)),
        (28, 28, (4, 1), (1, 2)),  # an even kernel has no middle
        (28, 28, (3, 1, 2), (2, 2)),
        ((28, 20), (14, 20), ((3, 5), (2, 1)), ((1, 1), (2, 2))),
    ],
)
def test_paddings_that_are_known(size, wished, settings, expected):
    assert conv_padding_for(size, wished, *settings) == expected


def test_a_transposed_convolution_doubles_as_dcgan_does():
    assert conv_transpose_padding_for(8, 16, kernel_size=4, stride=2) == (1, 0)
    assert conv_transpose_padding_for((8, 7), (16, 14), 3, 2) == ((1, 1), (1, 1))


@pytest.mark.parametrize(
    ("function", "args", "text"),
    [
        (conv_output_size, (3, 5), "size 3 is too small, at least 5 is needed"),
        (conv_output_size, ((9, 3), 3, 1, 0, 3), "size 3 is too small, at least 7 is needed"),
        (pool_output_size, (3, 2, 2, 2), "padding=2 is more than half of kernel_size=2"),
        (pool_output_size, (1, 5, 3, 0, 1, True), "at least 3 is needed"),
        (conv_transpose_output_size, (1, 2, 1, 2), "at least 4 is needed"),
        (conv_transpose_output_size, (1, 2, 2, 0, 2), "output_padding=2 must be smaller than str"),
        (conv_output_size, ((3, 3), (3, 3, 3)), r"'kernel_size': \(3, 3, 3\)} do not all have 2"),
        (conv_output_size, (3, 3, 0), "at least 1"),
        (conv_padding_for, (28, 20, 3), "28 can become 26 and more, not 20"),
        (conv_padding_for, (2, 0, 5), "2 can become 1 and more, not 0"),
        (conv_transpose_padding_for, (8, 0, 4, 2), "8 can become 1 to 19, not 0"),
        (conv_transpose_padding_for, (8, 3, 1), "8 can become 2 to 8 in steps of 2, not 3"),
        (conv_transpose_padding_for, (8, 12, 2), "8 can become 1 to 9 in steps of 2, not 12"),
        (conv_transpose_padding_for, (8, 20, 4, 2), "8 can become 1 to 19, not 20"),
        (pool_padding_for, (8, 2, 2), r"8 can become one of \[4, 5\], not 2"),
    ],
)
def test_what_cannot_be_is_told_with_what_can(function, args, text):
    with pytest.raises(ValueError, match=text):
        function(*args)
