"""``memory.compile``: which networks are compiled, how often, and what CUDA graphs reuse."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from base.base_trainer import BaseTrainer
from base.checkpoint.store import read
from base.errors import ConfigError, TrainingError
from base.names.registry import MODELS
from base.network.compilation import (
    MOST_SIZES,
    CompiledCall,
    called_networks,
    compile_networks,
    mark_steps,
    uses_cuda_graphs,
)
from base.network.gradients import gradient_of, gradient_penalty, saliency
from base.network.layers import Networks
from base.run.build import check_cuda_graphs
from base.run.checks import check
from base.system.torch_compat import call_to_compile
from base.training.recovery import SECOND_PASS
from tests.base.toy import CPU, assert_same, make, run, train_in
from tests.trainer.test_gan_trainers import GAN, KINDS, WGAN
from trainer.trainer import Trainer

COMPILED = "memory.compile=true"
GPU = torch.device("cuda")
pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own


class Graphs:
    """Counts the graphs that torch compiles, and runs them as they are."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.n += 1
        return graph.forward


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    found, compiled = Graphs(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, mode: compiled(call, backend=found))
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


# --- How often ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), 2),  # a graph of training, and one of evaluation: 5 batches of 4, and 1
        (("data_loader.args.batch_size=8",), 3),  # batches of 8, 8 and 4, and 1 of 4
        (("data_loader.args.batch_size=10",), 2),  # as with `drop_last`
        (("memory.micro_batch=auto",), 2),  # sizes that are tried are not compiled
        (("memory.micro_batch=2",), 2),  # parts of 2 in training, 4 in evaluation
        (("trainer.ema=0.9", "metrics=[accuracy]"), 2),
    ],
)
def test_each_size_of_a_batch_has_one_graph(
    options: tuple[str, ...], expected: int, graphs: Graphs
) -> None:
    trainer = make(COMPILED, *options)
    check(trainer)
    assert graphs.n == 0
    train_in(trainer)
    assert graphs.n == expected


def test_other_dimensions_get_one_graph_for_any_size(graphs: Graphs) -> None:
    """Such as the length of a text: torch notices at the second length."""
    model = nn.Linear(3, 2)
    compile_networks(model, True, CPU)
    for length in range(5, 25):
        model(torch.randn(4, length, 3))
    assert graphs.n == 2


def test_many_sizes_of_a_batch_share_a_graph(graphs: Graphs) -> None:
    model = nn.Linear(3, 2)
    compile_networks(model, True, CPU)
    for size in range(2, 40):
        model(torch.randn(size, 3))
    assert graphs.n <= MOST_SIZES + 2


class Packed(nn.Module):
    """Takes sequences of any length, one behind the other, besides the batch."""

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        return x.sum() + tokens.sum()


def test_an_argument_that_is_not_as_long_as_the_batch_takes_no_graphs_from_it(
    graphs: Graphs,
) -> None:
    model = Packed()
    compile_networks(model, True, CPU)
    for length in range(20, 40):
        model(torch.randn(4, 3), torch.randn(length))
    n_of_whole = graphs.n
    assert n_of_whole <= 5
    for n_more, size in enumerate((3, 2), start=1):  # of the last batch, and of a part of it
        model(torch.randn(size, 3), torch.randn(50))
        assert graphs.n == n_of_whole + n_more


# --- Which networks -------------------------------------------------------------------------------


class WithForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 2), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x.flatten(1)))


class WithoutForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = WithForward()
        self.others = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Sequential(nn.Linear(1, 1))})


def test_networks_of_a_container_are_compiled_one_by_one() -> None:
    assert list(called_networks(WithForward())) == [""]
    assert list(called_networks(WithoutForward())) == ["first", "others.a", "others.b"]
    pair = Networks(generator=nn.Linear(1, 1), critic=WithForward())
    assert list(called_networks(pair)) == ["generator", "critic"]


@pytest.mark.parametrize("kind", ["dcgan", "wgan"])
def test_a_compiled_gan_trains_as_another(kind: str, graphs: Graphs, tmp_path: Path) -> None:
    text, trainer = KINDS[kind]
    plain = run(tmp_path / "plain", text=text, trainer=trainer)
    assert graphs.n == 0
    compiled = run(tmp_path / "compiled", COMPILED, text=text, trainer=trainer)
    opponent = "discriminator" if kind == "dcgan" else "critic"
    assert compiled.experiment.memory_notes[-1] == f"compiled: generator, {opponent}"
    assert graphs.n >= 4  # each in training and in evaluation
    ours, theirs = read(tmp_path / "compiled"), read(tmp_path / "plain")
    assert_same(ours["model"], theirs["model"])
    assert_same(ours["optimizer.generator"], theirs["optimizer.generator"])
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())


class WithBuilt(Trainer):
    """Builds a network of its own, which adds to the outputs."""

    def __init__(self, experiment: Any) -> None:
        super().__init__(experiment)
        args = {"n_inputs": 5, "hidden": [2], "n_outputs": 3}
        self.more = self.build("model", {"type": "MLP", "args": args})

    def forward(self, batch: Any) -> Any:
        return super().forward(batch) + self.more(batch[0]).detach()


def test_a_network_that_the_trainer_builds_is_compiled(graphs: Graphs) -> None:
    plain = make(trainer=WithBuilt)
    train_in(plain)
    assert graphs.n == 0
    compiled = make(COMPILED, trainer=WithBuilt)
    compiled.more.load_state_dict(plain.more.state_dict())
    train_in(compiled)
    assert compiled.experiment.memory_notes[-1] == "compiled: MLP of the trainer"
    assert graphs.n == 4  # each of the two in training and in evaluation


@pytest.mark.parametrize("kind", ["dcgan", "wgan"])
def test_autograd_of_compiled_graphs_serves_a_gan(kind: str, monkeypatch: Any) -> None:
    """Compiled graphs have no second derivatives, which the penalty needs: it runs without."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, mode: compiled(call, backend="aot_eager"))
    text, trainer = KINDS[kind]
    made = make(COMPILED, text=text, trainer=trainer)
    check(made)
    train_in(made)
    assert made.progress.step == 10


def test_gradient_tools_run_without_compiled_graphs(monkeypatch: Any) -> None:
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda call, mode: compiled(call, backend="aot_eager"))
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh()), torch.randn(2, 1, 2, 2)

    def found() -> list[Tensor]:
        torch.manual_seed(1)
        penalty = gradient_penalty(model, images, images + 1)
        of_layer = gradient_of(model, "1", lambda: model(images).sum())
        return [penalty.detach(), saliency(model, images), of_layer]

    expected = found()
    compile_networks(model, True, CPU)
    model(images).sum().backward()
    assert_same(found(), expected)


class Twice(nn.Module):
    """Fails as a compiled network does in a second backward pass."""

    text = ""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError(self.text)
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    "text",
    [
        "This backward function was compiled with non-empty donated buffers which requires "
        "create_graph=False and retain_graph=False. Please keep backward(create_graph=False",
        "torch.compile with aot_autograd does not currently support double backward",
    ],
)
def test_a_second_backward_pass_of_a_compiled_network_is_explained(
    text: str, monkeypatch: Any
) -> None:
    monkeypatch.setitem(MODELS.registered, "Twice", Twice)
    monkeypatch.setattr(Twice, "text", text)
    with pytest.raises(TrainingError, match=r"one backward pass.*memory\.compile=false"):
        train_in(make("model={type: Twice}"))


def test_these_are_torchs_own_words() -> None:
    """Of the second derivative; the other text comes from the compiler for a GPU or C++."""
    model = nn.Linear(3, 1)
    model._compiled_call_impl = torch.compile(call_to_compile(model), backend="aot_eager")
    inputs = torch.randn(2, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(model(inputs).square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError) as found:
        slope.sum().backward()
    assert any(words in str(found.value) for words in SECOND_PASS)


class PartsTrainer(BaseTrainer):
    """Calls parts of a model that has a forward of its own."""

    def forward(self, batch: Any) -> Any:
        return self.model.decoder(self.model.encoder(batch[0].flatten(1)))


@pytest.mark.parametrize(("trainer", "is_told"), [(PartsTrainer, True), (BaseTrainer, False)])
def test_a_compiled_model_that_nobody_calls_is_told(
    trainer: Any, is_told: bool, graphs: Graphs, caplog: Any, monkeypatch: Any
) -> None:
    monkeypatch.setitem(MODELS.registered, "WithForward", WithForward)
    check(make(COMPILED, "model={type: WithForward}", trainer=trainer))
    assert ("memory.compile has no effect: WithForward is compiled as" in caplog.text) is is_told


# --- CUDA graphs ----------------------------------------------------------------------------------


def test_only_two_modes_on_a_gpu_use_them() -> None:
    modes = [True, False, "default", "reduce-overhead", "max-autotune"]
    assert [uses_cuda_graphs(mode, GPU) for mode in modes] == [False, False, False, True, True]
    assert not uses_cuda_graphs("max-autotune-no-cudagraphs", GPU)
    assert not any(uses_cuda_graphs(mode, CPU) for mode in modes)


@pytest.mark.parametrize(
    "option",
    [
        "memory.accumulate=2", "memory.micro_batch=2", "memory.micro_batch=auto",
        "memory.set_to_none=false", "trainer.on_oom=halve",
    ],
)  # fmt: skip
def test_gradients_that_are_kept_are_refused(option: str) -> None:
    key = option.partition("=")[0]
    config = make(option, "memory.compile=reduce-overhead").config
    with pytest.raises(ConfigError, match=rf"{key}: cannot be combined with memory\.compile"):
        check_cuda_graphs(config, GPU)
    check_cuda_graphs(config, CPU)
    check_cuda_graphs(make(option, COMPILED).config, GPU)
    check_cuda_graphs(make("memory.compile=max-autotune").config, GPU)


def reusing(weight: Tensor) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return a call whose outputs are views of one memory, as those of a CUDA graph are."""
    memory = torch.zeros(2)

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Tensor, factor: Tensor) -> Tensor:
            return memory.copy_(x * factor).view(2)

        @staticmethod
        def backward(_: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
            return gradient, gradient.sum()

    return lambda x: {"scores": Call.apply(x, weight)}  # type: ignore[no-untyped-call]


def test_outputs_stay_when_the_graph_runs_again() -> None:
    weight = torch.ones((), requires_grad=True)
    call = CompiledCall(reusing(weight), has_reused_outputs=True)
    first = call(torch.tensor([1.0, 2.0]))["scores"]
    second = call(torch.tensor([3.0, 4.0]))["scores"]
    assert (first.tolist(), second.tolist()) == ([1, 2], [3, 4])
    second.sum().backward()
    assert weight.grad == 2
    bare = CompiledCall(reusing(weight), has_reused_outputs=False)
    kept = bare(torch.tensor([1.0, 2.0]))["scores"]
    bare(torch.tensor([3.0, 4.0]))
    assert kept.tolist() == [3, 4], "what the copy is for"


def test_each_batch_begins_a_step(monkeypatch: Any) -> None:
    marks: list[None] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(None))
    assert list(mark_steps(iter("abc"))) == list("abc")
    assert len(marks) == 3
    monkeypatch.setattr("base.base_trainer.uses_cuda_graphs", lambda mode, device: True)
    train_in(make(trainer=KINDS["dcgan"][1], text=GAN))
    assert len(marks) == 3 + 2 * (5 + 1)  # epochs of 5 batches and 1 of validation


# --- On a GPU -------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("text", [GAN, WGAN])
def test_a_gan_with_cuda_graphs_trains_as_without(text: str) -> None:
    from base.config import load_config
    from base.names.check import check_names
    from base.run.build import build_experiment

    found = []
    for mode in ("false", "reduce-overhead"):
        config = load_config(None, [f"memory.compile={mode}", "memory.precision=fp32"], text=text)
        check_names(config)
        torch.manual_seed(0)
        kind = KINDS["dcgan" if text == GAN else "wgan"][1]
        trainer = kind(build_experiment(config, GPU))
        check(trainer)
        train_in(trainer)
        found.append({name: p.detach().cpu() for name, p in trainer.model.named_parameters()})
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dcgan", "wgan"])
def test_the_compiler_itself_compiles_both_networks(kind: str) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    text, trainer = KINDS[kind]
    made = make(COMPILED, "trainer.epochs=1", text=text, trainer=trainer)
    train_in(made)
    assert made.progress.step == 5
