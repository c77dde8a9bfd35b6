"""Muon for matrices with AdamW for the rest: against both of torch's optimizers by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import assert_resumes, assert_same, batches, make, train_in

from base.errors import ConfigError
from base.network.layers import Networks
from base.run.parameter_table import parameter_rows, short_table
from base.training.muon import MuonWithAdamW, hidden_weights
from model.model import MLP, SmallCNN
from model.transformer import TransformerClassifier

ARGS = "lr: 0.01, weight_decay: 0.2"
MUON = f"optimizer={{type: MuonWithAdamW, args: {{{ARGS}}}}}"
DEEP = "model.args.hidden=[6, 7]"
CNN = "model={type: SmallCNN, args: {in_channels: 1, n_classes: 3, width: 4}}"
IMAGES = "data_loader.args.shape=[1, 6, 5]"


def by_hand(model: nn.Module, names: list[str], **fused: Any) -> tuple[Any, Any]:
    named = dict(model.named_parameters())
    matrices = [named.pop(name) for name in names]
    for each in matrices:
        assert each.dim() == 2
    muon = torch.optim.Muon(matrices, 0.01, 0.2, adjust_lr_fn="match_rms_adamw")
    return muon, torch.optim.AdamW(named.values(), 0.01, weight_decay=0.2, **fused)


@pytest.mark.parametrize("fused", ["auto", "false"])
def test_steps_are_those_of_torchs_optimizers(fused: str) -> None:
    trainer = make(DEEP, MUON, f"memory.fused={fused}")
    twin = make(DEEP).model
    twin.load_state_dict(trainer.model.state_dict())
    more = {"fused": True} if fused == "auto" else {}
    optimizers = by_hand(twin, hidden_weights(twin), **more)
    for inputs, target in batches(trainer):
        for each in optimizers:
            each.zero_grad()
        F.cross_entropy(twin(inputs), target).backward()
        for each in optimizers:
            each.step()
    train_in(trainer)
    assert_same(trainer.model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_kernel_is_a_matrix_with_a_row_for_each_output_channel(layout: Any) -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 2, 3, 3).contiguous(memory_format=layout))
    flat = nn.Parameter(kernel.detach().flatten(1).clone())
    ours = MuonWithAdamW([{"params": [kernel], "use_muon": True}], lr=0.1)
    theirs = torch.optim.Muon([flat], lr=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(6, 2, 3, 3)
        kernel.grad, flat.grad = gradient, gradient.flatten(1)
        ours.step()
        theirs.step()
    if layout is torch.contiguous_format:
        assert torch.equal(kernel.flatten(1), flat)
    else:  # Muon computes in bf16, and sums in another order
        torch.testing.assert_close(kernel.flatten(1), flat, rtol=0.02, atol=0.01)
        assert kernel.is_contiguous(memory_format=layout)


def test_embeddings_vectors_and_the_head_go_to_adamw() -> None:
    model = nn.ModuleDict(
        {
            "words": nn.Embedding(5, 4),
            "body": nn.Linear(4, 4),
            "conv": nn.Conv1d(4, 3, 2),
            "gates": nn.GRU(4, 4),
            "norm": nn.LayerNorm(4),
            "head": nn.Linear(4, 2),
        }
    )
    expected = ["body.weight", "conv.weight", "gates.weight_ih_l0", "gates.weight_hh_l0"]
    assert hidden_weights(model) == expected
    model["head"].weight = model["words"].weight
    assert "words.weight" not in hidden_weights(model)
    several = Networks(one=MLP(2, [3, 3], 1), two=MLP(2, [3], 1))
    assert hidden_weights(several) == [
        "one.hidden.0.weight",
        "one.hidden.3.weight",
        "two.hidden.0.weight",
    ]


def test_the_rule_on_whole_models() -> None:
    assert "head.weight" not in hidden_weights(SmallCNN())
    transformer = TransformerClassifier(image_size=[8, 8], patch_size=[2, 4], width=8, n_heads=2)
    chosen = hidden_weights(transformer)
    assert any("in_proj_weight" in name for name in chosen)
    named = dict(transformer.named_parameters())
    assert all(named[name].dim() > 1 and "posit" not in name for name in chosen)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["optimizer.clip_norm=0.5"],
        ["memory.optimizer_in_backward=true"],
        ["memory.offload_optimizer=true"],
        ["lr_scheduler={type: OneCycleLR, args: {max_lr: 0.1}, every: step}"],
        ["memory.precision=fp16"],
        ["optimizer.layer_decay=0.5", "freeze=[{match: hidden.*, until: 4 steps}]"],
    ],
    ids=["plain", "clip", "in backward", "offload", "one cycle", "fp16", "thaw"],
)
@pytest.mark.parametrize("model", ["dense", "convolutions"])
def test_a_run_resumes_to_the_same_bits(model: str, more: list[str], tmp_path: Path) -> None:
    kind = [DEEP] if model == "dense" else [CNN, IMAGES]
    more = [each.replace("hidden.*", "stem.*") for each in more] if model != "dense" else more
    assert_resumes(tmp_path, *kind, MUON, *more)


def test_rules_change_the_choice_and_the_table_shows_it() -> None:
    rules = (
        "[{match: hidden.0.weight, use_muon: false}, {match: head.weight, use_muon: true, lr: 1}]"
    )
    optimizer = f"{{type: MuonWithAdamW, args: {{{ARGS}, adamw_lr: 0.003}}, param_groups: {rules}}}"
    trainer = make(DEEP, f"optimizer={optimizer}")
    rows = {row.name: row for row in parameter_rows(trainer.experiment)}
    chosen = {name: (row.group.split()[1], row.lr) for name, row in rows.items()}
    assert chosen == {
        "hidden.0.weight": ("AdamW", 0.003),
        "hidden.0.bias": ("AdamW", 0.003),
        "hidden.3.weight": ("Muon", 0.01),
        "hidden.3.bias": ("AdamW", 0.003),
        "head.weight": ("Muon", 1),
        "head.bias": ("AdamW", 0.003),
    }
    assert "main/0 AdamW" in short_table(rows.values())


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("param_groups: [{match: '*.bias', use_muon: true}]",
         "use_muon: Muon needs matrices, and hidden.0.bias has shape"),
        ("args: {adjust_lr_fn: rms}", "rms is not supported"),
        ("args: {momentun: 0.9}", "did you mean 'momentum'"),
        ("args: {lr: -1}", "expected a number of at least 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(more: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make(f"optimizer={{type: MuonWithAdamW, {more}}}")
