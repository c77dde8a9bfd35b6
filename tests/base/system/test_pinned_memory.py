"""Pinned memory that is held for a run has the size that is asked for."""

from __future__ import annotations

import pytest
import torch

from base.system.pinned_memory import NO_LIMIT, ROUNDED_UP_TO, exact_pinned_memory

USER = "max_split_size_mb:64"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What torch is asked for, one after the other; the first is the environment's."""
    asked = [USER]
    monkeypatch.setattr(
        torch._C, "_accelerator_getAllocatorSettings", lambda: asked[-1], raising=False
    )
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", asked.append, raising=False)
    return asked


def test_pinned_memory_is_not_rounded_up_inside_and_is_after_it(settings: list[str]) -> None:
    with exact_pinned_memory():
        assert settings[-1] == f"{USER},{ROUNDED_UP_TO}:0"
    assert settings[-2:] == [f"{USER},{ROUNDED_UP_TO}:{NO_LIMIT}", USER]


def test_a_setting_of_the_environment_takes_precedence(settings: list[str]) -> None:
    settings.append(f"{ROUNDED_UP_TO}:128")
    with exact_pinned_memory():
        assert len(settings) == 2
    assert len(settings) == 2


def test_a_torch_without_the_setting_rounds_up(
    settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(text: str) -> None:
        if ROUNDED_UP_TO in text:
            raise ValueError(f"Unrecognized key {ROUNDED_UP_TO!r}")
        settings.append(text)

    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", refuse)
    with exact_pinned_memory():
        assert settings[-1] == USER
    monkeypatch.delattr(torch._C, "_accelerator_setAllocatorSettings")
    with exact_pinned_memory():
        assert settings[-1] == USER


def test_this_torch_takes_the_settings() -> None:
    """Whether it knows the key or not, what it held is what it holds."""
    read = getattr(torch._C, "_accelerator_getAllocatorSettings", str)
    before = read()
    with exact_pinned_memory():
        pass
    assert read() == before


@pytest.mark.gpu
def test_a_block_on_a_gpu_has_the_size_that_is_asked_for() -> None:
    n_bytes = (64 << 20) + 1
    before = torch.cuda.host_memory_stats()["allocated_bytes.current"]
    with exact_pinned_memory():
        block = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)
    assert torch.cuda.host_memory_stats()["allocated_bytes.current"] - before < 1.1 * n_bytes
    assert block.is_pinned()
