"""Optimizers and parameter groups: each of torch's by name, as if written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import NETWORKS, assert_resumes, assert_same, batches, make, run, weights

from base.errors import ConfigError
from base.optim import build_optimizer, check_ownership, parameter_groups
from base.registry import DATASETS, names
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


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)


def section(**changes: Any) -> dict[str, Any]:
    return {"type": "SGD", "args": {"lr": 0.1}, "param_groups": [], "params": "*", **changes}


def options_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the options that hold for each parameter, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    plain = [{k: v for k, v in g.items() if k[:5] != "param"} for g in optimizer.param_groups]
    return {
        names[id(parameter)]: options
        for group, options in zip(optimizer.param_groups, plain, strict=True)
        for parameter in group["params"]
    }


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
    by_hand = getattr(torch.optim, name)(twin.parameters(), **args)
    for inputs, target in batches(trainer):
        by_hand.zero_grad()
        F.cross_entropy(twin(inputs), target).backward()
        by_hand.step()
    trainer.train()
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
    trainer.train()
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
    with pytest.raises(ConfigError, match=rf"(?s)optimizer.*LBFGS.*{word}"):
        make("optimizer={type: LBFGS, args: {lr: 0.5}}", more)


def test_lbfgs_says_that_it_takes_one_group() -> None:
    groups = "[{match: '*.bias', lr: 0.1}]"
    with pytest.raises(ConfigError, match=r"optimizer: LBFGS cannot be built: .*parameter groups"):
        make(f"optimizer={{type: LBFGS, args: {{lr: 0.5}}, param_groups: {groups}}}")


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
    trainer.train()
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
    trainer.train()
    assert F.cross_entropy(trainer.model(torch.arange(7)), torch.arange(7) % 3).item() != start
    assert trainer.optimizers["main"].state  # it was it that stepped
    assert_resumes(tmp_path, "optimizer={type: SparseAdam, args: {lr: 0.1}}", *EMBEDDING)


def test_sparse_adam_says_that_gradients_are_dense() -> None:
    trainer = make("optimizer={type: SparseAdam, args: {lr: 0.1}}")
    with pytest.raises(RuntimeError, match="does not support dense gradients"):
        trainer.train()


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_an_implementation_can_be_asked_for(name: str, flag: str) -> None:
    plain, asked = (
        make(f"optimizer={{type: {name}, args: {{lr: 0.02, {flag}: {value}}}}}")
        for value in ("false", "true")
    )
    assert asked.optimizers["main"].defaults[flag] is True
    plain.train()
    asked.train()
    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(asked)[name], weight)


def test_capturable_reaches_the_optimizer() -> None:
    trainer = make("optimizer={type: Adam, args: {lr: 0.02, capturable: true}}")
    assert trainer.optimizers["main"].defaults["capturable"] is True


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("{lr: -1}", "Invalid learning rate"),
        ("{lr: 0.1, betas: [0.9, 2]}", "Invalid beta"),
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


# --- Parameter groups -----------------------------------------------------------------------------


def test_later_rules_win_key_by_key() -> None:
    model = TwoLayers()
    rules = [
        {"match": "*", "weight_decay": 0.1, "lr": 0.5},
        {"match": "head.*", "lr": 0.01},
        {"match": ["*.bias", "norm.*"], "weight_decay": 0.0},
    ]
    options = options_of(build_optimizer(model, section(param_groups=rules)), model)
    by_hand = {name: {"weight_decay": 0.1, "lr": 0.5} for name, _ in model.named_parameters()}
    for name in by_hand:
        if name.startswith("head."):
            by_hand[name]["lr"] = 0.01
        if name.endswith(".bias") or name.startswith("norm."):
            by_hand[name]["weight_decay"] = 0.0
    found = {name: {key: o[key] for key in ("weight_decay", "lr")} for name, o in options.items()}
    assert found == by_hand


def test_the_order_of_rules_is_what_decides() -> None:
    model = TwoLayers()
    rules = [{"match": "head.*", "lr": 0.01}, {"match": "*", "lr": 0.5}]
    options = options_of(build_optimizer(model, section(param_groups=rules)), model)
    assert {one["lr"] for one in options.values()} == {0.5}


def test_each_parameter_is_in_one_group_and_equal_options_share_it() -> None:
    model = TwoLayers()
    rules = [{"match": "stem.*", "lr": 0.2}, {"match": "head.*", "lr": 0.2}]
    groups = build_optimizer(model, section(param_groups=rules)).param_groups
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(map(id, model.parameters()))
    assert [len(group["params"]) for group in groups] == [4, 2]


def test_groups_carry_names_which_a_checkpoint_keeps() -> None:
    groups = build_optimizer(TwoLayers(), section()).param_groups
    assert groups[0]["param_names"] == [name for name, _ in TwoLayers().named_parameters()]


def test_a_tied_weight_is_trained_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    groups = parameter_groups(model, [{"match": "1.weight", "lr": 0.2}])
    assert [[name for name, _ in group["params"]] for group in groups] == [
        ["0.weight"],
        ["0.bias", "1.bias"],
    ]


def test_a_frozen_part_stays_as_it_was() -> None:
    rules = "optimizer.param_groups=[{match: 'hidden.*', freeze: true}]"
    trainer = make(rules, "optimizer.args={lr: 0.1, weight_decay: 0.1}")
    start = weights(trainer)
    trainer.train()
    moved = {name for name, weight in weights(trainer).items() if not weight.equal(start[name])}
    assert moved == {"head.weight", "head.bias"}
    assert all(p.grad is None for p in trainer.model.hidden.parameters())


def test_a_later_rule_may_thaw() -> None:
    model = TwoLayers()
    rules = [{"match": "*", "freeze": True}, {"match": "head.*", "freeze": False}]
    options = options_of(build_optimizer(model, section(param_groups=rules)), model)
    assert set(options) == {"head.weight", "head.bias"}
    assert [n for n, p in model.named_parameters() if p.requires_grad] == list(options)


def test_freeze_section_equals_the_rule() -> None:
    by_section = make("freeze=['hidden.*']")
    by_rule = make("optimizer.param_groups=[{match: 'hidden.*', freeze: true}]")
    by_section.train()
    by_rule.train()
    assert_same(by_section.model.state_dict(), by_rule.model.state_dict())


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"params": "heaad.*"}, "optimizer.params"),
        ({"param_groups": [{"match": "heaad.*"}]}, "optimizer.param_groups.0.match"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(changes: Any, where: str) -> None:
    with pytest.raises(ConfigError, match=where) as caught:
        build_optimizer(TwoLayers(), section(**changes))
    assert "stem.weight" in str(caught.value), "it shows what names look like"


def test_a_rule_for_parameters_of_the_other_optimizer_is_an_error() -> None:
    """It would do nothing, silently."""
    rules = [{"match": "stem.*", "lr": 0.2}]
    with pytest.raises(ConfigError, match=r"param_groups\.0"):
        build_optimizer(TwoLayers(), section(params="head.*", param_groups=rules))


def test_all_frozen_is_an_error() -> None:
    with pytest.raises(ConfigError, match="all are frozen"):
        build_optimizer(TwoLayers(), section(param_groups=[{"match": "*", "freeze": True}]))


def test_two_owners_and_orphans_are_told_together() -> None:
    model = TwoLayers()
    optimizers = {
        "one": build_optimizer(model, section(params="stem.*")),
        "two": build_optimizer(model, section(params=["stem.bias", "norm.*"])),
    }
    with pytest.raises(ConfigError) as caught:
        check_ownership(model, optimizers)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "optimizers.two.params: 'stem.bias' is also claimed by 'one'" in lines[0]
    assert "no optimizer trains head.weight, head.bias" in lines[1]


def test_frozen_parameters_are_no_orphans() -> None:
    model = TwoLayers()
    model.head.requires_grad_(False)
    check_ownership(model, {"main": build_optimizer(model, section(params=["stem.*", "norm.*"]))})


def test_groups_resume_with_their_rates(tmp_path: Path) -> None:
    groups = "optimizer.param_groups=[{match: '*.bias', lr: 0.01, momentum: 0.9}]"
    assert_resumes(tmp_path, groups)
    assert [g["lr"] for g in run(tmp_path / "x", groups).optimizers["main"].param_groups] == [
        0.1,
        0.01,
    ]
