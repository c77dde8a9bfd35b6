"""Each memory option, alone and beside another, gives the weights of the plain way."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import CPU, assert_resumes, batches, make, train_in, weights

from base.errors import ConfigError
from base.names import exclusions as table
from base.names.registry import LOSSES, MODELS
from base.network.activations import OffloadedActivations
from base.run.header import header_entries, memory_options_in_use
from base.training.optimizer_memory import OffloadedState

IMAGES = (
    "data_loader={type: SyntheticDataLoader, args: {n_samples: 22, shape: [1, 8, 8], "
    "n_classes: 3, batch_size: 8, validation_split: 4}}"
)
PLAIN = ("memory={channels_last: false, fused: false}",)
ADAM = "optimizer={type: AdamW, args: {lr: 0.01}, param_groups: [{match: '*.bias', lr: 0.02}]}"
GROUPS = "[{match: '*bias', lr: 0.05}]"
SGD = f"optimizer={{type: SGD, args: {{lr: 0.1, momentum: 0.9}}, param_groups: {GROUPS}}}"
EXACT, CLOSE, HALF = 0.0, 1e-5, 3e-2


class Convolutions(nn.Module):
    """A residual net without BatchNorm: the numbers of a sample do not depend on its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GELU(), nn.ReLU())
        self.head = nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        return self.head((features + self.block(features)).mean(dim=(2, 3)))


TRANSFORMER = "{type: TransformerClassifier, args: {width: 8, depth: 2, n_heads: 2, n_classes: 3"
NETS = {
    "convolutions": ("model={type: Convolutions}", "['block']"),
    "transformer": (f"model={TRANSFORMER}, dropout: 0}}}}", "['layers.*']"),
}
OPTIONS: dict[str, tuple[str, float]] = {
    "precision": ("bf16", HALF),
    "micro_batch": ("3", CLOSE),
    "checkpoint_activations": ("", EXACT),
    "offload_activations": ("true", EXACT),
    "offload_optimizer": ("true", EXACT),
    "optimizer_in_backward": ("true", EXACT),
    "inplace": ("true", EXACT),
    "set_to_none": ("false", EXACT),
    "channels_last": ("true", CLOSE),
    "fused": ("true", CLOSE),
    "cudnn_benchmark": ("true", EXACT),
    "empty_cache": ("2 steps", EXACT),
}


@pytest.fixture(autouse=True)
def _other_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let CPU memory be both sides of what is moved, so that the moving itself is tested."""
    monkeypatch.setitem(MODELS.registered, "Convolutions", Convolutions)
    monkeypatch.setattr("base.run.build.offload_state", lambda optimizer, _: Boundary(optimizer))
    here = {True: partial(OffloadedActivations, CPU), False: nullcontext}
    monkeypatch.setattr("base.base_trainer.offload_activations", lambda wanted, _: here[wanted])


class Boundary(OffloadedState):
    """Moves the state to and fro; what was left behind on the other side is spoilt."""

    def __init__(self, optimizer: Any, part_bytes: int = 100) -> None:
        self.sent = self.brought = 0
        super().__init__(optimizer, self.send, self.bring, part_bytes)

    def send(self, value: Tensor, host: Tensor | None) -> Tensor:
        self.sent += 1
        host = torch.empty_like(value) if host is None else host
        assert host is not value, "it is there already"
        host.copy_(value)
        value.fill_(float("nan"))
        return host

    def bring(self, host: Tensor, like: Tensor) -> Tensor:
        self.brought += 1
        assert like.device == host.device
        value = host.clone()
        host.fill_(float("nan"))
        return value


def trained(net: str, *options: str, **how: Any) -> Any:
    """Train three steps on 18 images in batches of 8, 8 and 2."""
    model, pattern = NETS[net]
    written = [option.replace("checkpoint_activations=", f"checkpoint_activations={pattern}")
               for option in options]  # fmt: skip
    trainer = make(model, IMAGES, SGD, *PLAIN, "trainer.epochs=1", *written, **how)
    train_in(trainer)
    return trainer


@cache
def plain_weights(net: str) -> dict[str, Tensor]:
    return weights(trained(net))


def assert_as_plain(net: str, names: tuple[str, ...], tolerance: float) -> None:
    found = trained(net, *(f"memory.{name}={OPTIONS[name][0]}" for name in names))
    plain = plain_weights(net)
    for name, weight in weights(found).items():
        if tolerance == EXACT:
            assert torch.equal(weight, plain[name]), name
        else:
            torch.testing.assert_close(weight, plain[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_gives_the_weights_of_the_plain_way(name: str, net: str) -> None:
    assert_as_plain(net, (name,), OPTIONS[name][1])


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("pair", list(combinations(OPTIONS, 2)), ids="+".join)
def test_two_options_give_the_weights_of_the_plain_way(pair: tuple[str, str], net: str) -> None:
    if "optimizer_in_backward" in pair and {"micro_batch", "set_to_none"} & set(pair):
        with pytest.raises(ConfigError, match="optimizer_in_backward: cannot be combined with"):
            assert_as_plain(net, pair, EXACT)
        return
    assert_as_plain(net, pair, max(OPTIONS[name][1] for name in pair))


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "precision"])
def test_an_option_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    model, pattern = NETS["convolutions"]
    memory = f"memory.{name}={OPTIONS[name][0] or pattern}"
    assert_resumes(tmp_path, model, IMAGES, ADAM, memory, stop_at=2)


# --- Which go together ----------------------------------------------------------------------------

SET = {
    "several optimizers": "optimizers={a: {type: SGD, params: 'a.*'}, b: {type: SGD, params: '*'}}",
    "optimizer: LBFGS": "optimizer={type: LBFGS, args: {lr: 0.5}}",
    "optimizer.clip_norm": "optimizer.clip_norm=1",
    "optimizer.clip_value": "optimizer.clip_value=1.0",
    "optimizer.every": "optimizers={a: {type: SGD, params: '*', every: 2 steps}}",
    "memory.accumulate": "memory.accumulate=2",
    "memory.micro_batch": "memory.micro_batch=1",
    "memory.set_to_none: false": "memory.set_to_none=false",
    "trainer.loss_gradients": "trainer.loss_gradients=5 steps",
    "capture of parameters": "capture=[{match: '*.weight', of: parameters}]",
}  # fmt: skip


def option_text(option: str) -> str:
    return SET.get(option) or option.replace(": ", "=") + ("" if ": " in option else "=true")


@pytest.mark.parametrize("row", table.EXCLUDED, ids=lambda row: f"{row[0]} with {row[1]}")
def test_what_excludes_each_other_is_told_with_the_reason(row: tuple[str, str, str]) -> None:
    option, other, why = row
    texts = [option_text(other), option_text(option)]
    if "optimizers=" in texts[0]:
        texts.append("optimizer=null")
    with pytest.raises(ConfigError) as caught:
        make("model={type: Convolutions}", IMAGES, *texts)
    problem = next(str(p) for p in caught.value.problems if other in str(p))
    assert why in problem
    assert option.partition(":")[0].rpartition(".")[2] in problem


def test_all_contradictions_are_told_together() -> None:
    options = ["memory={optimizer_in_backward: true, accumulate: 2, precision: fp16}"]
    options += ["optimizer.clip_norm=1.0", "deterministic=true", "memory.cudnn_benchmark=true"]
    with pytest.raises(ConfigError) as caught:
        make(*options)
    assert len(caught.value.problems) == 4


def test_an_excluded_option_that_is_off_is_no_contradiction() -> None:
    off = "accumulate: 1, micro_batch: null, precision: bf16, compile: false, set_to_none: true"
    make(f"memory={{optimizer_in_backward: true, {off}}}", "trainer.backward=sum")


# --- Fused, channels_last, the header -------------------------------------------------------------

FUSED = ["SGD", "Adam", "AdamW", "Adagrad"]


@pytest.mark.parametrize("name", [*FUSED, "RMSprop", "NAdam"])
def test_auto_takes_the_fused_form_where_torch_has_one(name: str) -> None:
    trainer = make(f"optimizer={{type: {name}, args: {{lr: 0.1}}}}")
    is_fused = name in FUSED
    assert bool(trainer.optimizers["main"].param_groups[0].get("fused")) == is_fused
    told = [f"fused {name} (auto)"] if is_fused else []
    assert memory_options_in_use(trainer) == told
    assert header_entries(trainer, None)["memory"] == (told[0] if told else None)


@pytest.mark.parametrize("own", ["fused: false", "foreach: true", "differentiable: false"])
def test_what_the_optimizer_s_own_arguments_say_stands(own: str) -> None:
    trainer = make(f"optimizer={{type: Adam, args: {{lr: 0.1, {own}}}}}")
    assert not trainer.optimizers["main"].param_groups[0]["fused"]


def test_a_fused_form_that_is_not_there_is_told() -> None:
    with pytest.raises(
        ConfigError, match=r"RMSprop has no fused implementation; write .memory: .fused: auto"
    ):
        make("optimizer={type: RMSprop, args: {lr: 0.1}}", "memory.fused=true")


def test_sparse_gradients_are_not_for_a_fused_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3, sparse=True)

    monkeypatch.setitem(MODELS.registered, "Sparse", Sparse)
    trainer = make("model={type: Sparse}", "optimizer={type: SGD, args: {lr: 0.1}}")
    assert not trainer.optimizers["main"].param_groups[0]["fused"]


def test_a_number_format_without_a_kernel_is_left_to_the_plain_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, dtype=torch.complex64))

    monkeypatch.setitem(MODELS.registered, "Complex", Complex)
    trainer = make("model={type: Complex}", "optimizer={type: Adam, args: {lr: 0.1}}")
    assert not trainer.optimizers["main"].param_groups[0]["fused"]


@pytest.mark.parametrize(("wish", "is_last"), [("auto", True), ("true", True), ("false", False)])
def test_convolutions_are_laid_out_as_asked(wish: str, is_last: bool) -> None:
    """One channel too: there the strides alone tell, and all that follows goes by them."""
    images = "data_loader.args.shape=[1, 28, 28]"
    trainer = make("model={type: LeNet}", f"memory.channels_last={wish}", images)
    first, second = trainer.model.features[0], trainer.model.features[3]
    seen = first(torch.randn(2, 1, 28, 28))
    for tensor in (second.weight, seen, second(seen)):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == is_last
    told = {"auto": ["channels_last (auto)"], "true": ["channels_last"], "false": []}
    assert trainer.experiment.memory_notes == told[wish]


def test_without_convolutions_nothing_is_laid_out() -> None:
    assert make("memory.channels_last=true").experiment.memory_notes == []


def test_on_the_cpu_there_is_nothing_to_offload() -> None:
    trainer = make("memory={offload_activations: true, offload_optimizer: true}")
    (note,) = trainer.experiment.memory_notes
    assert note == "offload_activations and offload_optimizer: no effect on a CPU"


# --- Precision, gradients, caches -----------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_loss_of_one_s_own_is_computed_in_float32(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum of squares of 300 overflows fp16; a product of matrices would be one of halves."""
    seen: list[Any] = []

    def squares(output: Tensor, target: Tensor) -> Tensor:
        seen.append((output.dtype, (output.T @ output).dtype))
        return (output + 300).square().sum()

    monkeypatch.setitem(LOSSES.registered, "squares", squares)
    trainer = make("loss=squares", f"memory.precision={precision}")
    inputs, target = next(batches(trainer))
    with trainer.precision.autocast():
        outputs = trainer.forward((inputs, target))
        (loss,) = trainer.compute_losses(outputs, (inputs, target)).values()
    assert outputs.dtype != torch.float32
    assert seen == [(torch.float32, torch.float32)]
    assert loss.item() == (outputs.float() + 300).square().sum().item()


@pytest.mark.parametrize("keep", [False, True])
def test_gradients_are_freed_or_kept_as_zeros(keep: bool) -> None:
    trainer = make(f"memory.set_to_none={not keep}".lower(), "trainer.epochs=1")
    train_in(trainer)
    gradients = [parameter.grad for parameter in trainer.model.parameters()]
    assert all((g is not None and not g.any()) if keep else g is None for g in gradients)


def test_the_cache_is_emptied_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    trainer = make("memory.empty_cache=3 steps")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.accelerator, "empty_cache", lambda: steps.append(trainer.progress.step)
    )
    train_in(trainer)
    assert steps == [3, 6, 9]


@pytest.mark.parametrize("value", ["0", "-1", "true", "automatic", "1.5"])
def test_a_micro_batch_is_a_number_or_auto(value: str) -> None:
    with pytest.raises(ConfigError, match=r"memory.micro_batch: expected a number of samples"):
        make(f"memory.micro_batch={value}")


@pytest.mark.parametrize("value", ["fast", "max-autotun", "1"])
def test_a_mode_of_the_compiler_is_one_of_torch_s(value: str) -> None:
    with pytest.raises(ConfigError, match=r"memory.compile: expected one of true, false, default"):
        make(f"memory.compile={value}")
