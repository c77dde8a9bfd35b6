"""``memory.precision: auto`` takes bf16 where a device has units for it, and a run keeps it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from base.config import load_config
from base.run.header import header_entries
from base.training.precision import choose_precision
from tests.base.toy import CPU, make, run

AUTO = "memory.precision=auto"


def give_cpu(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_a_gpu_needs_compute_capability_8(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    name, reason = choose_precision(torch.device("cuda"))
    assert name == expected
    assert f"{capability[0]}.{capability[1]}" in reason


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")],
)
def test_a_cpu_needs_units_for_bf16(
    capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_cpu(monkeypatch, **capabilities)
    assert choose_precision(CPU)[0] == expected


def test_other_devices() -> None:
    assert choose_precision(torch.device("mps"))[0] == "fp32"
    device: Any = SimpleNamespace(type="privateuseone")
    assert choose_precision(device)[0] == "fp32"


def test_the_choice_and_its_reason_are_in_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    give_cpu(monkeypatch, amx_bf16=True)
    trainer = make(AUTO)
    assert trainer.precision.name == trainer.config["memory"]["precision"] == "bf16"
    entries = header_entries(trainer, None)
    assert "cpu, bf16" in entries["device"]
    assert "bf16 (auto: AMX-BF16)" in entries["memory"]


def test_the_default_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    give_cpu(monkeypatch, amx_bf16=True)
    assert make().precision.name == "fp32"


def test_a_run_keeps_its_precision_on_another_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from base.training.run_log import write_config

    give_cpu(monkeypatch)
    trainer = run(tmp_path, AUTO, stop_at=3)
    write_config(trainer.config, tmp_path)
    give_cpu(monkeypatch, amx_bf16=True)
    assert load_config(tmp_path / "config.yaml")["memory"]["precision"] == "fp32"
