"""Optimizers: each of torch's by name, as if written by hand."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toy import NETWORKS, assert_resumes, assert_same, batches, make, train_in, weights

from base.errors import ConfigError
from base.names.registry import DATASETS, names
from trainer.trainer import Trainer

TORCH = [name for name in names("optimizer") if hasattr(torch.optim, name)]
ARGS: dict[str, str] = {
    "Adafactor": "{lr: 0.05}",
    "Adadelta": "{lr: 1.0, rho: 0.8}",
    "LBFGS": "{lr: 0.5, max_iter: 3, history_size: 2}",
    "SGD": "{lr: 0.1, momentum: 0.9, nesterov: true}",
}
LOOKUP = "model={type: Embedding, args: {num_embeddings: 7, embedding_dim: 3, sparse: true}}"
ORDINARY = [name for name in TORCH if name not in ("LBFGS", "Muon", "SparseAdam")]


# --- Every optimizer ------------------------------------------------------------------------------


def test_all_of_torch_are_listed() -> None:
    classes = {n for n, c in vars(torch.optim).items() if isinstance(c, type) and n != "Optimizer"}
    assert classes == set(TORCH)


@pytest.mark.parametrize("name", ORDINARY)
def test_an_optimizer_makes_the_steps_of_a_loop_by_hand(name: str) -> None:
    trainer = make(f"optimizer={{type: {name}, args: {ARGS.get(name, '{lr: 0.02}')}}}")
    twin = make().model
    twin.load_state_dict(trainer.model.state_dict())
    args = trainer.config["optimizer"]["args"]
    kind = getattr(torch.optim, name)
    if "fused" in inspect.signature(kind).parameters:  # other last digits, and what `auto` takes
        args = {**args, "fused": True}
    by_hand = kind(twin.parameters(), **args)
    for inputs, target in batches(trainer):
        by_hand.zero_grad()
        F.cross_entropy(twin(inputs), target).backward()
        by_hand.step()
    train_in(trainer)
    assert_same(trainer.model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("name", [*ORDINARY, "LBFGS"])
def test_an_optimizer_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    assert_resumes(tmp_path, f"optimizer={{type: {name}, args: {ARGS.get(name, '{lr: 0.02}')}}}")


def test_lbfgs_lowers_the_loss_as_by_hand() -> None:
    args = {"lr": 0.5, "max_iter": 4, "line_search_fn": "strong_wolfe"}
    trainer = make(f"optimizer={{type: LBFGS, args: {args}}}", "trainer.epochs=1")
    twin = make().model
    twin.load_state_dict(trainer.model.state_dict())
    by_hand = torch.optim.LBFGS(twin.parameters(), **args)

    for inputs, target in batches(trainer):

        def closure(inputs: Any = inputs, target: Any = target) -> Any:
            by_hand.zero_grad()
            loss = F.cross_entropy(twin(inputs), target)
            loss.backward()
            return loss

        before = F.cross_entropy(twin(inputs), target).item()
        by_hand.step(closure)
        assert F.cross_entropy(twin(inputs), target).item() < before
    train_in(trainer)
    assert_same(trainer.model.state_dict(), twin.state_dict())


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ("memory.accumulate=2", "accumulate"),
        ("memory.precision=fp16", "fp16"),
        ("optimizer.clip_norm=1.0", "clip_norm"),
        ("optimizer.clip_value=1.0", "clip_value"),
    ],
)
def test_lbfgs_refuses_what_its_own_calls_of_the_loss_would_undo(more: str, word: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{word}.* cannot be combined with optimizer: LBFGS .*own gradients"
    ):
        make("optimizer={type: LBFGS, args: {lr: 0.5}}", more)


IMAGES = "{n_samples: 40, shape: [1, 28, 28], batch_size: 20}"
CONVOLUTION = (
    "model={type: LeNet}",
    f"data_loader={{type: SyntheticDataLoader, args: {IMAGES}}}",
)


def test_lbfgs_trains_convolutions_in_the_layout_that_it_can_read() -> None:
    options = (*CONVOLUTION, "optimizer={type: LBFGS, args: {lr: 0.1, max_iter: 2}}")
    trainer = make(*options, "trainer.epochs=1")
    start = weights(trainer)
    train_in(trainer)
    assert not any(weight.equal(start[name]) for name, weight in weights(trainer).items())
    with pytest.raises(
        ConfigError, match=r"channels_last: cannot be combined with optimizer: LBFGS"
    ):
        make(*options, "memory.channels_last=true")


def test_lbfgs_says_that_it_takes_one_group() -> None:
    groups = "[{match: '*.bias', lr: 0.1}]"
    with pytest.raises(ConfigError, match=r"optimizer: LBFGS cannot be built: .*parameter groups"):
        make(f"optimizer={{type: LBFGS, args: {{lr: 0.5}}, param_groups: {groups}}}")


@pytest.mark.parametrize("rules", ["args.betas=[0.9]", "param_groups=[{betas: [0.9]}]"])
def test_a_list_that_is_too_short_for_the_optimizer_is_told(rules: str) -> None:
    with pytest.raises(ConfigError, match=r"optimizer.*: AdamW cannot be built: IndexError: "):
        make("optimizer={type: AdamW, args: {lr: 0.1}}", f"optimizer.{rules}")


def test_muon_trains_the_matrices_beside_another_optimizer(tmp_path: Path) -> None:
    text = NETWORKS.replace(
        "{type: Pair}", "{type: MLP, args: {n_inputs: 2, n_outputs: 2, hidden: [4]}}"
    ).replace("name: networks", "name: muon\nloss: mse_loss")
    both = (
        "optimizers={matrices: {type: Muon, args: {lr: 0.05}, params: '*.weight'}, "
        "rest: {type: AdamW, args: {lr: 0.01}, params: '*.bias'}}"
    )
    trainer = make(both, text=text, trainer=TwoOptimizers)
    start = weights(trainer)
    train_in(trainer)
    moved = {name for name, weight in weights(trainer).items() if not weight.equal(start[name])}
    assert moved == set(start)
    assert_resumes(tmp_path, both, text=text, trainer=TwoOptimizers)


class TwoOptimizers(Trainer):
    """Trains one network by two optimizers."""

    def train_step(self, batch: Any) -> dict[str, Any]:
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        self.backward(loss, only="matrices", retain_graph=True)
        self.backward(loss, only="rest")
        self.update("matrices")
        self.update("rest")
        return {"loss": loss}


def test_muon_says_that_it_wants_matrices() -> None:
    with pytest.raises(ConfigError, match=r"optimizer: Muon cannot be built: .*2D"):
        make("optimizer={type: Muon, args: {lr: 0.05}}")


EMBEDDING = [
    LOOKUP,
    "data_loader={type: BaseDataLoader, args: {dataset: {type: Words}, batch_size: 4, "
    "shuffle: true, validation_split: 0, num_workers: 0}}",
]


@pytest.fixture
def _words(monkeypatch: pytest.MonkeyPatch) -> None:
    def words() -> Any:
        numbers = torch.arange(20)
        return torch.utils.data.TensorDataset(numbers % 7, numbers % 3)

    monkeypatch.setitem(DATASETS.registered, "Words", words)


@pytest.mark.usefixtures("_words")
def test_sparse_adam_takes_sparse_gradients_and_resumes(tmp_path: Path) -> None:
    trainer = make("optimizer={type: SparseAdam, args: {lr: 0.1}}", *EMBEDDING)
    start = F.cross_entropy(trainer.model(torch.arange(7)), torch.arange(7) % 3).item()
    train_in(trainer)
    assert F.cross_entropy(trainer.model(torch.arange(7)), torch.arange(7) % 3).item() != start
    assert trainer.optimizers["main"].state  # it was it that stepped
    assert_resumes(tmp_path, "optimizer={type: SparseAdam, args: {lr: 0.1}}", *EMBEDDING)


def test_sparse_adam_says_that_gradients_are_dense() -> None:
    trainer = make("optimizer={type: SparseAdam, args: {lr: 0.1}}")
    with pytest.raises(RuntimeError, match="does not support dense gradients"):
        train_in(trainer)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_an_implementation_can_be_asked_for(name: str, flag: str) -> None:
    plain, asked = (
        make(f"optimizer={{type: {name}, args: {{lr: 0.02, {flag}: {value}}}}}")
        for value in ("false", "true")
    )
    assert asked.optimizers["main"].defaults[flag] is True
    train_in(plain)
    train_in(asked)
    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(asked)[name], weight)


def test_capturable_reaches_the_optimizer() -> None:
    trainer = make("optimizer={type: Adam, args: {lr: 0.02, capturable: true}}")
    assert trainer.optimizers["main"].defaults["capturable"] is True


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("{lr: -1}", "expected a number of at least 0, found -1"),
        ("{lr: 0.1, betas: [0.9, 2]}", "expected a number from 0 to below 1"),
        ("{lr: 0.1, fused: true, foreach: true}", "together"),
        ("{lr: 0.1, lrr: 2}", "unknown argument for AdamW; did you mean 'lr'"),
        ("{lr: high}", "high"),
    ],
)
def test_arguments_that_torch_refuses_are_one_clear_error(args: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(f"optimizer={{type: AdamW, args: {args}}}")
    assert "optimizer" in str(caught.value)
    assert "\n" not in str(caught.value)
