"""Options that trade precision, time and memory change nothing else: against the plain way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import CONFIG, CPU, assert_resumes, assert_same, batches, make, train_in, weights

from base.config import load_config
from base.errors import ConfigError
from base.names.registry import MODELS
from base.network.activations import checkpoint_activations
from base.network.layout import prepare_model
from base.run.build import make_repeatable
from base.training.nonfinite import FiniteWatch
from base.training.precision import Precision
from trainer.trainer import Trainer

MEMORY: dict[str, Any] = dict(load_config(None, text=CONFIG)["memory"])
CONVOLUTION = "model={type: DigitsNet, args: {width: 2, n_classes: 3, dropout: 0.5}}"
IMAGES = (
    "data_loader={type: SyntheticDataLoader, args: {n_samples: 24, shape: [1, 8, 8], "
    "n_classes: 3, batch_size: 4, validation_split: 4}}"
)


# --- Accumulation ---------------------------------------------------------------------------------


def gradients_at_steps(*overrides: str) -> list[list[Tensor]]:
    """Return the gradients that each step of the optimizer finds."""
    trainer = make("optimizer.args.lr=0.000001", *overrides)
    noted: list[list[Tensor]] = []
    trainer.optimizers["main"].register_step_pre_hook(
        lambda o, *_: noted.append([p.grad.clone() for p in o.param_groups[0]["params"]])
    )
    train_in(trainer)
    return noted


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
def test_gradients_of_a_window_are_the_mean_of_its_batches(k: int) -> None:
    """By hand: each window divided by its own size, the short last one too."""
    trainer = make("trainer.epochs=1")
    data = list(batches(trainer))
    parameters = list(trainer.model.parameters())
    expected = []
    for first in range(0, len(data), k):
        window = data[first : first + k]
        losses = [F.cross_entropy(trainer.model(inputs), target) for inputs, target in window]
        expected.append(torch.autograd.grad(sum(losses) / len(window), parameters))
    found = gradients_at_steps("trainer.epochs=1", f"memory.accumulate={k}")
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_small_batches_give_the_gradients_of_a_big_one() -> None:
    small = gradients_at_steps("memory.accumulate=5", "trainer.epochs=1")
    big = gradients_at_steps("data_loader.args.batch_size=20", "trainer.epochs=1")
    assert len(small) == len(big) == 1
    for one, other in zip(small[0], big[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("k", "steps"), [(1, 5), (2, 3), (3, 2), (5, 1), (6, 1)])
def test_steps_are_those_of_the_optimizer(k: int, steps: int) -> None:
    trainer = make(f"memory.accumulate={k}")
    assert trainer.experiment.steps_per_epoch == steps
    train_in(trainer)
    assert trainer.progress.step == 2 * steps
    assert trainer.progress.batches_total == 10
    assert trainer.progress.samples == 40


def test_a_length_in_steps_counts_windows() -> None:
    trainer = make("memory.accumulate=2", "trainer.epochs=null", "trainer.steps=4")
    train_in(trainer)
    assert trainer.progress.step == 4
    assert trainer.progress.batches_total == 7  # 5 in the first epoch, one window in the second


# --- Clipping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("norm", "value"), [(0.05, None), (None, 0.01), (0.05, 0.01), (1e6, None)])
def test_clipping_is_that_of_torch_by_hand(norm: float | None, value: float | None, k: int) -> None:
    clip = f"{{lr: 0.5}}, clip_norm: {norm or 'null'}, clip_value: {value or 'null'}"
    trainer = make(f"optimizer={{type: SGD, args: {clip}}}", f"memory.accumulate={k}")
    twin = make().model
    twin.load_state_dict(trainer.model.state_dict())
    by_hand = torch.optim.SGD(twin.parameters(), lr=0.5)
    data, norms = list(batches(trainer)), []
    for epoch in range(2):
        for first in range(0, 5, k):
            window = data[5 * epoch : 5 * epoch + 5][first : first + k]
            for inputs, target in window:
                (F.cross_entropy(twin(inputs), target) / len(window)).backward()
            if value is not None:
                nn.utils.clip_grad_value_(twin.parameters(), value)
            if norm is not None:
                norms.append(nn.utils.clip_grad_norm_(twin.parameters(), norm).item())
            by_hand.step()
            by_hand.zero_grad()
    values = train_in(trainer)
    for name, weight in twin.named_parameters():
        torch.testing.assert_close(weights(trainer)[name], weight.detach(), msg=name)
    if norm is not None:
        second = norms[len(norms) // 2 :]
        assert values["train/grad_norm"] == pytest.approx(sum(second) / len(second), rel=1e-4)


# --- Precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_that_of_a_loop_by_hand(precision: str) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    trainer = make(f"memory.precision={precision}", "optimizer.clip_norm=0.5")
    twin = make().model
    twin.load_state_dict(trainer.model.state_dict())
    by_hand = torch.optim.SGD(twin.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    for inputs, target in batches(trainer):
        with torch.autocast("cpu", dtype=dtype):
            outputs = twin(inputs)
            loss = F.cross_entropy(outputs, target)
        assert outputs.dtype == dtype
        by_hand.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(by_hand)
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        scaler.step(by_hand)
        scaler.update()
    train_in(trainer)
    assert_same(weights(trainer), {n: p.detach() for n, p in twin.named_parameters()})
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_weight_used_without_gradients_first_has_its_gradient_in_the_same_step(
    precision: str,
) -> None:
    layer, inputs = nn.Linear(1, 1), torch.full((1, 1), 2.0)
    with Precision(precision, CPU).autocast():
        with torch.no_grad():
            layer(inputs)
        layer(inputs).sum().backward()
    assert [p.grad.tolist() for p in layer.parameters()] == [[[2.0]], [1.0]]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_a_precision_resumes_to_the_same_bits(
    precision: str, accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    options = [f"memory={{precision: {precision}, accumulate: {accumulate}}}"]
    assert_resumes(tmp_path, *options, "optimizer.clip_norm=0.5")


def test_tf32_asks_torch_for_faster_products(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    make("memory.precision=tf32")
    assert asked == ["high"]
    assert isinstance(Precision("tf32", CPU).autocast(), type(Precision("fp32", CPU).autocast()))


def test_the_scale_of_fp16_is_saved(tmp_path: Path) -> None:
    trainer = make("memory.precision=fp16")
    tmp_path.mkdir(exist_ok=True)
    train_in(trainer, tmp_path)
    state = torch.load(next(tmp_path.glob("checkpoints/*10/state.pt")), weights_only=True)
    assert state["scaler.main"]["_growth_tracker"] == 10


class Overflowing(Trainer):
    """Its first gradients are too big for fp16: the scaler leaves that step out."""

    def compute_losses(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        factor = 1e30 if self.progress.step == 0 else 1.0
        loss = super().compute_losses(outputs, batch)["cross_entropy"]
        return {"loss": loss + factor * (outputs.float() - outputs.detach().float()).sum()}


@pytest.mark.fault("F17")
@pytest.mark.parametrize("clip", ["null", "1.0"])
def test_a_step_that_overflows_in_fp16_is_left_out(clip: str) -> None:
    trainer = make(
        "memory.precision=fp16",
        f"optimizer.clip_norm={clip}",
        "lr_scheduler={type: ExponentialLR, args: {gamma: 0.9}, every: step}",
        "trainer={epochs: null, steps: 1}",
        trainer=Overflowing,
    )
    start = weights(trainer)
    train_in(trainer)
    assert_same(weights(trainer), start)
    assert trainer.steppers["main"].scaler.get_scale() == 2.0**15


# --- Several forward passes in a step -------------------------------------------------------------


class TwoSteps(Trainer):
    """Steps, and looks at what the network gives right after it."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        loss = self.compute_losses(self.forward(batch), batch)["cross_entropy"]
        self.backward(loss)
        self.update()
        after = self.forward(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            assert torch.equal(after, self.model(batch[0])), "the old weights were used"
        return {"loss": loss}


def test_a_second_pass_in_bf16_sees_the_weights_of_after_the_step() -> None:
    train_in(make("memory.precision=bf16", trainer=TwoSteps))


def test_lbfgs_in_bf16_sees_its_own_steps() -> None:
    options = "optimizer={type: LBFGS, args: {lr: 0.5, max_iter: 5}}"
    trainer = make(options, "memory.precision=bf16", "trainer.epochs=1")
    losses: list[float] = []
    compute = trainer.compute_losses

    def noting(outputs: Any, batch: Any) -> Any:
        values = compute(outputs, batch)
        losses.append(values["cross_entropy"].item())
        return values

    trainer.compute_losses = noting
    trainer.train_step(next(batches(trainer)))
    assert len(losses) >= 4
    assert len(set(losses[1:])) > 1, "each call of the closure saw the same weights"


class MatrixProduct(torch.optim.SGD):
    """Notes the precision in which an optimizer computes."""

    dtypes: set[torch.dtype] = set()  # noqa: RUF012

    def step(self, closure: Any = None) -> Any:
        self.dtypes.add((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
        return super().step(closure)


def test_the_optimizer_computes_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    from base.names.registry import OPTIMIZERS

    monkeypatch.setitem(OPTIMIZERS.registered, "MatrixProduct", MatrixProduct)
    train_in(make("optimizer={type: MatrixProduct, args: {lr: 0.1}}", "memory.precision=bf16"))
    assert MatrixProduct.dtypes == {torch.float32}


# --- Activations ----------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.5))
        self.outer = nn.Linear(8, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.outer(self.inner(x.flatten(1)))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.second(x)


@pytest.fixture
def _stack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS.registered, "Stack", Stack)


@pytest.mark.parametrize("pattern", ["['first']", "['*']", "[{type: Block}]", "['*.inner']"])
@pytest.mark.usefixtures("_stack")
def test_recomputed_activations_give_equal_weights_with_dropout(pattern: str) -> None:
    plain = make("model={type: Stack}")
    train_in(plain)
    recomputed = make("model={type: Stack}", f"memory.checkpoint_activations={pattern}")
    train_in(recomputed)
    assert_same(recomputed.model.state_dict(), plain.model.state_dict())
    calls = {name: b.calls for name, b in recomputed.model.named_children()}
    # 10 batches, 5 of them twice; 1 validation batch in each of 2 epochs, which are not recomputed.
    is_whole = "inner" not in pattern
    expected = {"first": 22 if is_whole else 12, "second": 22 if is_whole else 12}
    if pattern == "['first']":
        expected["second"] = 12
    assert calls == expected


@pytest.mark.usefixtures("_stack")
def test_what_lies_inside_is_recomputed_once() -> None:
    trainer = make("model={type: Stack}", "memory.checkpoint_activations=['*']")
    calls: list[int] = []
    trainer.model.first.inner[0].register_forward_hook(lambda *_: calls.append(1))
    trainer.model.train()
    trainer.train_step(next(batches(trainer)))
    assert len(calls) == 2


@pytest.mark.usefixtures("_stack")
def test_recomputed_activations_in_bf16_resume(tmp_path: Path) -> None:
    options = "memory={checkpoint_activations: ['first'], precision: bf16, accumulate: 2}"
    assert_resumes(tmp_path, "model={type: Stack}", options)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("['stem']", "'stem' contains a BatchNorm"),
        ("['body.1']", "BatchNorm"),
        ("['stemm']", "did you mean 'stem'"),
    ],
)
def test_what_cannot_be_recomputed_is_told(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(CONVOLUTION, IMAGES, f"memory.checkpoint_activations={pattern}")
    assert "memory.checkpoint_activations" in str(caught.value)


def test_statistics_that_do_not_move_may_be_recomputed() -> None:
    still = nn.Sequential(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)))
    checkpoint_activations(still, ["0"])
    moving = nn.Sequential(nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True)))
    with pytest.raises(ConfigError, match="twice"):
        checkpoint_activations(moving, ["0"])


# --- Layout, in place, compile --------------------------------------------------------------------


def test_in_place_activations_give_equal_weights() -> None:
    plain = make(CONVOLUTION, IMAGES)
    train_in(plain)
    in_place = make(CONVOLUTION, IMAGES, "memory.inplace=true")
    train_in(in_place)
    assert in_place.experiment.memory_notes[-1] == "inplace: 3 of 4 activations"
    assert_same(in_place.model.state_dict(), plain.model.state_dict())


def test_channels_last_gives_equal_outputs() -> None:
    plain = make(CONVOLUTION, IMAGES).model.eval()
    other = make(CONVOLUTION, IMAGES, "memory.channels_last=true").model.eval()
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(other(images), plain(images))
    kernel = other.body[1].conv.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert (
        other.body[1].conv(torch.randn(2, 4, 4, 4)).is_contiguous(memory_format=torch.channels_last)
    )


def test_channels_last_resumes(tmp_path: Path) -> None:
    assert_resumes(tmp_path, CONVOLUTION, IMAGES, "memory.channels_last=true")


def test_names_of_parameters_stay_as_they_are() -> None:
    options = "memory={channels_last: true, inplace: true, checkpoint_activations: ['head']}"
    names = list(make(CONVOLUTION, IMAGES).model.state_dict())
    assert list(make(CONVOLUTION, IMAGES, options).model.state_dict()) == names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_gives_equal_outputs_and_names() -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    plain, compiled = make(), make("memory.compile=true")
    inputs = next(batches(plain))[0]
    torch.testing.assert_close(compiled.model(inputs), plain.model(inputs))
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())


def test_compile_is_asked_for_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[nn.Module, Any]] = []
    monkeypatch.setattr(torch, "compile", lambda call, mode: asked.append((call.__self__, mode)))
    model = nn.Linear(2, 2)
    for mode in (True, "max-autotune"):
        prepare_model(model, {**MEMORY, "compile": mode}, CPU)
    assert asked == [(model, None), (model, "max-autotune")]


# --- Non-finite losses, determinism ---------------------------------------------------------------


def test_a_watch_sees_each_value_that_is_not_finite() -> None:
    watch = FiniteWatch()
    assert watch.all_finite()
    for bad in (float("nan"), float("inf"), -float("inf")):
        for value in (1.0, bad, 2.0):
            watch.watch(torch.tensor(value), tuple)
        assert not watch.all_finite()
        assert watch.all_finite(), "it was told once"


@pytest.mark.gpu
def test_a_watch_on_the_gpu_does_not_wait() -> None:
    watch = FiniteWatch()
    values = torch.tensor([1.0, float("nan")], device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        watch.watch(values[1], tuple)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not watch.all_finite()


def test_deterministic_algorithms_follow_the_config() -> None:
    was = torch.are_deterministic_algorithms_enabled()
    try:
        make_repeatable(make("deterministic=true").config)
        assert torch.are_deterministic_algorithms_enabled()
        make_repeatable(make().config)
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(was)
