"""``memory.precision: fp32`` forbids TF32, ``tf32`` allows it, whatever was set before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.backends import cudnn

from base.system.tensor_float import allow_tf32
from tests.base.toy import make


def settings() -> dict[str, object]:
    """Return what torch's two interfaces say; they raise if they contradict each other."""
    return {
        "products": torch.backends.cuda.matmul.fp32_precision,
        "convolutions": cudnn.conv.fp32_precision,
        "recurrent": cudnn.rnn.fp32_precision,
        "older": (
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_tf32,
            cudnn.allow_tf32,
        ),
    }


FP32 = dict(products="ieee", convolutions="ieee", recurrent="ieee", older=("highest", False, False))
TF32 = dict(products="tf32", convolutions="tf32", recurrent="tf32", older=("high", True, True))
MIXED = dict(products="ieee", convolutions="tf32", recurrent="tf32", older=("highest", False, True))


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    torch.backends.fp32_precision = "none"
    allow_tf32(in_products=False, in_convolutions=True)  # torch's defaults


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("fp32", FP32), ("tf32", TF32), ("bf16", MIXED), ("fp16", MIXED)],
)
@pytest.mark.parametrize("before", ["", "fp32", "tf32", "bf16"])
def test_each_trainer_sets_its_own_precision(
    precision: str, expected: dict[str, object], before: str
) -> None:
    if before:
        make(f"memory.precision={before}")
    make(f"memory.precision={precision}")
    assert settings() == expected


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_settings_of_the_users_own_code_are_replaced(precision: str) -> None:
    torch.backends.fp32_precision = "tf32"  # of everything
    cudnn.conv.fp32_precision = "ieee"  # the older interface could not say this
    make(f"memory.precision={precision}")
    assert settings() == (FP32 if precision == "fp32" else TF32)


@pytest.mark.gpu
def test_products_and_convolutions_round_as_the_precision_says() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs TF32")
    fine = torch.full((512, 512), 1 + 2**-12, device="cuda")  # TF32 rounds it to 1
    one = torch.eye(512, device="cuda")
    images, weight = fine.view(1, 512, 32, 16), one.view(512, 512, 1, 1)
    allow_tf32(in_products=False, in_convolutions=False)
    assert torch.equal(fine @ one, fine)
    assert torch.equal(torch.conv2d(images, weight), images)
    allow_tf32(in_products=True, in_convolutions=True)
    assert torch.equal(fine @ one, torch.ones_like(fine))
