"""Plain values and small tensors as JSON, and back."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import assert_same

from base.names.object_references import NotPlainError, from_json, to_json

FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_data_come_back_equal_with_their_types(value):
    back = from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))
    assert repr(back) == repr(value)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
def test_tensors_too(dtype, shape):
    value = (torch.rand(shape) * 3).to(getattr(torch, dtype))
    assert_same(from_json(json.loads(json.dumps(to_json({"a": [value]})))), {"a": [value]})


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8", "bool"])
def test_and_arrays(dtype):
    value = np.arange(6).reshape(2, 3).astype(dtype)
    back = from_json(json.loads(json.dumps(to_json(value))))
    assert back.dtype == value.dtype
    assert np.array_equal(back, value)


@pytest.mark.parametrize(
    "value",
    [
        object(),
        math.nan,
        math.inf,
        torch.tensor([math.nan]),
        torch.zeros(10_001),
        torch.zeros(2, dtype=torch.complex64),
        np.array([object()]),
        np.array([1j]),
        {1, 2},
        [len],
        "x" * 100_001,
        {"a": torch.nn.Parameter(torch.zeros(1))},
    ],
)
def test_what_is_not_plain_or_large_is_refused(value):
    with pytest.raises(NotPlainError):
        to_json(value)
