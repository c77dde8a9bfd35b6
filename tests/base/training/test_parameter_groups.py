"""Which parameter is trained how: rules, no decay, layer decay, and groups through a resume."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import assert_resumes, assert_same, batches, make, run, train_in, weights

from base.checkpoint.state_dicts import load_state_dicts
from base.checkpoint.store import read
from base.errors import CheckpointError, ConfigError
from base.names.registry import MODELS, OPTIMIZERS, names
from base.training.parameter_groups import (
    build_optimizer,
    check_ownership,
    no_decay,
    parameter_groups,
)
from model.model import MLP


class TwoLayers(nn.Module):
    layer_order = ("stem.*", "norm.*", "head.*")

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)


def section(**changes: Any) -> dict[str, Any]:
    plain = {"type": "SGD", "args": {"lr": 0.1}, "params": "*"}
    return {**plain, "param_groups": [], "layer_decay": None, **changes}


def options_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the options that hold for each parameter, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    plain = [{k: v for k, v in g.items() if k[:5] != "param"} for g in optimizer.param_groups]
    return {
        names[id(parameter)]: options
        for group, options in zip(optimizer.param_groups, plain, strict=True)
        for parameter in group["params"]
    }


def one_option(key: str, model: nn.Module, **changes: Any) -> dict[str, Any]:
    """Return one option of each parameter, by its name."""
    found = options_of(build_optimizer(model, section(**changes)), model)
    return {name: found[name][key] for name, _ in model.named_parameters() if name in found}


# --- Rules ----------------------------------------------------------------------------------------


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
    rules = [{"match": "head.*", "lr": 0.01}, {"match": "*", "lr": 0.5}]
    assert {*one_option("lr", TwoLayers(), param_groups=rules).values()} == {0.5}


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
    groups = parameter_groups(model, section(param_groups=[{"match": "1.weight", "lr": 0.2}]))
    assert [[name for name, _ in group["params"]] for group in groups] == [
        ["0.weight"],
        ["0.bias", "1.bias"],
    ]


RULES = [
    {"match": "hidden.*", "lr": 0.02, "betas": [0.8, 0.9]},
    {"match": "*.bias", "weight_decay": 0},
]


def test_a_run_with_rules_makes_the_steps_of_groups_by_hand() -> None:
    trainer = make(
        "optimizer.type=AdamW",
        "optimizer.args={lr: 0.01, weight_decay: 0.3}",
        f"optimizer.param_groups={RULES}",
    )
    twin = make().model
    twin.load_state_dict(trainer.model.state_dict())
    layer, head = twin.hidden[0], twin.head
    groups = [
        {"params": [layer.weight], "lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.3},
        {"params": [layer.bias], "lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0},
        {"params": [head.weight], "weight_decay": 0.3},
        {"params": [head.bias], "weight_decay": 0},
    ]
    by_hand = torch.optim.AdamW(groups, lr=0.01, fused=True)
    for inputs, target in batches(trainer):
        by_hand.zero_grad()
        F.cross_entropy(twin(inputs), target).backward()
        by_hand.step()
    train_in(trainer)
    assert_same(trainer.model.state_dict(), twin.state_dict())


OTHER_VALUES = {"momentum_decay": 0.01, "ns_steps": 3, "nesterov": False, "d": 2.0}
GROUPED = [n for n in names("optimizer") if hasattr(torch.optim, n) and n != "LBFGS"]


@pytest.mark.parametrize("name", GROUPED)
def test_a_group_may_have_any_argument_of_its_own(name: str) -> None:
    """Each is set to another value than the default, and arrives as torch takes it itself."""
    cls = getattr(torch.optim, name)
    changed: dict[str, Any] = {}
    for key, parameter in inspect.signature(cls).parameters.items():
        default = parameter.default
        if key in OTHER_VALUES:
            changed[key] = OTHER_VALUES[key]
        elif isinstance(default, bool) and key not in ("fused", "capturable"):
            changed[key] = not default
        elif isinstance(default, float):
            changed[key] = default / 2
    assert "lr" in changed
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    rules = [{"match": "1.*", **changed}]
    ours = build_optimizer(model, section(type=name, args={}, param_groups=rules))
    theirs = cls([{"params": [model[0].weight]}, {"params": [model[1].weight], **changed}])
    for group, expected in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert {key: group[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"lr": -1.0}, "Invalid learning rate"),
        ({"weight_decay": -1.0}, "Invalid weight_decay"),
        ({"betas": [0.9, 2.0]}, "Invalid beta"),
        ({"foreach": True, "fused": True}, "together|cannot be True"),
    ],
)
def test_a_value_that_torch_refuses_in_args_is_refused_in_a_group(rule: Any, told: str) -> None:
    """Torch itself looks at the values of `args` only."""
    rules = [{"match": "head.*", **rule}]
    with pytest.raises(ConfigError, match=told) as caught:
        build_optimizer(TwoLayers(), section(type="AdamW", param_groups=rules))
    assert "optimizer.param_groups (head.weight, head.bias): AdamW cannot" in str(caught.value)


def test_an_argument_that_an_optimizer_of_the_project_has_for_all_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(torch.optim.SGD):
        def __init__(self, params: Any, lr: float = 0.1, rounds: int = 1) -> None:
            super().__init__(params, lr)

    monkeypatch.setitem(OPTIMIZERS.registered, "Own", Own)
    with pytest.raises(ConfigError, match="Own takes rounds only for all parameters, in `args`"):
        build_optimizer(
            TwoLayers(), section(type="Own", param_groups=[{"match": "head.*", "rounds": 2}])
        )


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


def test_all_rules_at_fault_are_told_together() -> None:
    rules = [{"match": "heaad.*"}, {"match": "head.*"}, {"match": "setm.*"}]
    with pytest.raises(ConfigError) as caught:
        build_optimizer(TwoLayers(), section(param_groups=rules))
    places = [problem.where for problem in caught.value.problems]
    assert places == ["optimizer.param_groups.0.match", "optimizer.param_groups.2.match"]


def test_a_rule_for_parameters_of_the_other_optimizer_is_an_error() -> None:
    """It would do nothing, silently."""
    rules = [{"match": "stem.*", "lr": 0.2}]
    with pytest.raises(ConfigError, match=r"param_groups\.0.*'stem\.\*' matches only parameters"):
        build_optimizer(TwoLayers(), section(params="head.*", param_groups=rules))


# --- No decay -------------------------------------------------------------------------------------


class OwnNorm(nn.Module):
    """Scales each place of an image; no class of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2, 3, 3))


class Zoo(nn.Module):
    """One of each kind of parameter that weight decay treats."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.5))
        self.kernel = nn.Parameter(torch.ones(3, 3))
        self.table = nn.Embedding(4, 2)
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.image_norm = nn.LayerNorm([2, 3, 3])
        self.own_norm = OwnNorm()
        self.slope = nn.PReLU(2)
        self.memory = nn.GRU(2, 2)
        self.attention = nn.MultiheadAttention(2, 1, add_bias_kv=True)
        self.pair = nn.Bilinear(2, 2, 2)


DECAYED = {
    *("kernel", "table.weight", "conv.weight", "memory.weight_ih_l0", "memory.weight_hh_l0"),
    *("attention.in_proj_weight", "attention.out_proj.weight", "pair.weight"),
}


def test_no_decay_spares_biases_norm_layers_and_vectors() -> None:
    model = Zoo()
    rules = [{"match": "*", "preset": "no_decay"}]
    found = one_option("weight_decay", model, type="AdamW", param_groups=rules)
    assert {name for name, value in found.items() if value != 0} == DECAYED
    assert {found[name] for name in DECAYED} == {0.01}, "AdamW's own"


NORMS = {
    "BatchNorm1d": (2,), "BatchNorm2d": (2,), "BatchNorm3d": (2,), "SyncBatchNorm": (2,),
    "GroupNorm": (1, 2), "LayerNorm": ([2, 2, 2],), "RMSNorm": ([2, 2],),
    "InstanceNorm1d": (2, 1e-5, 0.1, True), "InstanceNorm2d": (2, 1e-5, 0.1, True),
    "InstanceNorm3d": (2, 1e-5, 0.1, True),
}  # fmt: skip


def test_every_norm_layer_of_torch_is_spared() -> None:
    known = {n for n in vars(nn) if "Norm" in n and "Lazy" not in n and n != "LocalResponseNorm"}
    known -= {"CrossMapLRN2d"}
    assert known == set(NORMS)
    for name, args in NORMS.items():
        layer = getattr(nn, name)(*args)
        assert no_decay(layer) == [n for n, _ in layer.named_parameters()] != [], name


def test_match_limits_the_preset_and_other_keys_hold_for_all_that_match() -> None:
    model = Zoo()
    rules = [{"match": "conv.*", "preset": "no_decay", "lr": 0.5}]
    options = options_of(build_optimizer(model, section(type="AdamW", param_groups=rules)), model)
    assert [name for name in options if options[name]["weight_decay"] == 0] == ["conv.bias"]
    assert [name for name in options if options[name]["lr"] == 0.5] == ["conv.weight", "conv.bias"]


def test_a_later_rule_may_decay_after_all() -> None:
    rules = [{"match": "*", "preset": "no_decay"}, {"match": "norm.*", "weight_decay": 0.2}]
    found = one_option("weight_decay", TwoLayers(), type="AdamW", param_groups=rules)
    assert found["norm.weight"] == 0.2
    assert found["head.bias"] == 0


def test_the_word_alone_is_the_preset() -> None:
    trainer = make("optimizer={type: AdamW, args: {lr: 0.1}, param_groups: [no_decay]}")
    found = options_of(trainer.optimizers["main"], trainer.model)
    spared = {name for name in found if found[name]["weight_decay"] == 0}
    assert spared == {"hidden.0.bias", "head.bias"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"param_groups": [{"match": "*.weight", "preset": "no_decay"}], "params": "head.*"},
         r"param_groups\.0\.preset: no bias, norm layer or vector is among head\.weight"),
        ({"param_groups": [{"match": "*", "preset": "no_decay"}], "type": "SparseAdam"},
         r"param_groups \(stem.bias, .*SparseAdam cannot be built: .*weight_decay"),
    ],
)  # fmt: skip
def test_a_preset_that_would_do_nothing_is_an_error(changes: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build_optimizer(TwoLayers(), section(**changes))


# --- Layer decay ----------------------------------------------------------------------------------


def test_rates_fall_from_output_to_input_by_the_formula() -> None:
    order, decay = TwoLayers.layer_order, 0.75
    found = one_option("lr", TwoLayers(), layer_decay=decay)
    for name, rate in found.items():
        (layer,) = [i for i, pattern in enumerate(order) if name.startswith(pattern[:-1])]
        assert rate == pytest.approx(0.1 * decay ** (len(order) - 1 - layer), rel=1e-12), name


def test_a_rules_rate_is_what_layer_decay_multiplies() -> None:
    rules = [{"match": "*.bias", "lr": 0.4}, {"match": "stem.*", "weight_decay": 0.5}]
    model = TwoLayers()
    found = options_of(build_optimizer(model, section(param_groups=rules, layer_decay=0.5)), model)
    assert {name: option["lr"] for name, option in found.items()} == {
        "stem.weight": 0.1 * 0.25,
        "stem.bias": 0.4 * 0.25,
        "norm.weight": 0.1 * 0.5,
        "norm.bias": 0.4 * 0.5,
        "head.weight": 0.1,
        "head.bias": 0.4,
    }
    assert found["stem.bias"]["weight_decay"] == 0.5
    assert found["norm.bias"]["weight_decay"] == 0


class LayeredMLP(MLP):
    layer_order = ("hidden.*", "head.*")


def test_a_run_with_layer_decay_makes_the_steps_of_groups_by_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MODELS.registered, "LayeredMLP", LayeredMLP)
    layered = "model={type: LayeredMLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3}}"
    trainer = make(layered, "optimizer.layer_decay=0.25")
    twin = copy.deepcopy(trainer.model)
    groups = [{"params": twin.hidden.parameters(), "lr": 0.025}, {"params": twin.head.parameters()}]
    by_hand = torch.optim.SGD(groups, lr=0.1)
    for inputs, target in batches(trainer):
        by_hand.zero_grad()
        F.cross_entropy(twin(inputs), target).backward()
        by_hand.step()
    train_in(trainer)
    assert_same(trainer.model.state_dict(), twin.state_dict())


def test_what_is_frozen_needs_no_layer() -> None:
    model = TwoLayers()
    model.layer_order = ("stem.*", "head.*")
    model.norm.requires_grad_(False)
    assert set(one_option("lr", model, layer_decay=0.5).values()) == {0.05, 0.1}


@pytest.mark.parametrize(
    ("order", "changes", "told"),
    [
        (["stem.*", "head.*"], {}, r"layer_decay: TwoLayers.layer_order must have each parameter "
         r"in one layer, not norm\.weight in none, norm\.bias in none$"),
        (["stem.*", "*"], {}, r"not stem\.weight in \[0, 1\], stem\.bias in \[0, 1\]$"),
        (["stem.*", "nrom.*", "head.*"], {},
         r"layer_decay: TwoLayers\.layer_order\[1\]: no parameter matches 'nrom\.\*'; did"),
        (["*"], {"args": {}}, r"layer_decay: it multiplies the rate, and stem.weight has lr None"),
    ],
)  # fmt: skip
def test_layer_decay_without_clear_layers_is_an_error(order: Any, changes: Any, told: str) -> None:
    model = TwoLayers()
    model.layer_order = order
    with pytest.raises(ConfigError, match=told) as caught:
        build_optimizer(model, section(layer_decay=0.5, **changes))
    assert "\n" not in str(caught.value)


# --- Freezing, owners -----------------------------------------------------------------------------


def test_a_frozen_part_stays_as_it_was() -> None:
    rules = "optimizer.param_groups=[{match: 'hidden.*', freeze: true}]"
    trainer = make(rules, "optimizer.args={lr: 0.1, weight_decay: 0.1}")
    start = weights(trainer)
    train_in(trainer)
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
    train_in(by_section)
    train_in(by_rule)
    assert_same(by_section.model.state_dict(), by_rule.model.state_dict())


def test_what_is_trained_later_has_its_group_from_the_start() -> None:
    model = TwoLayers()
    model.stem.requires_grad_(False)
    rules = [{"match": "stem.*", "lr": 0.01}]
    later = ["stem.weight", "stem.bias"]
    optimizer = build_optimizer(model, section(param_groups=rules), later=later)
    assert options_of(optimizer, model)["stem.bias"]["lr"] == 0.01
    check_ownership(model, {"main": optimizer}, later)
    assert set(options_of(build_optimizer(model, section()), model)) == {
        *("norm.weight", "norm.bias", "head.weight", "head.bias")
    }


def test_what_is_trained_later_must_have_an_optimizer() -> None:
    model = TwoLayers()
    model.stem.requires_grad_(False)
    optimizer = build_optimizer(model, section(params=["norm.*", "head.*"]))
    check_ownership(model, {"main": optimizer})
    with pytest.raises(ConfigError, match=r"no optimizer trains stem\.bias"):
        check_ownership(model, {"main": optimizer}, ["stem.bias"])


def test_frozen_for_good_and_for_a_time_is_an_error() -> None:
    rules = [{"match": "stem.*", "freeze": True}]
    with pytest.raises(ConfigError, match=r"param_groups: stem\.bias: frozen permanently here and"):
        build_optimizer(TwoLayers(), section(param_groups=rules), later=["stem.bias"])


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
    assert "optimizers.two.params: what 'one' claims too: stem.bias" in lines[0]
    assert "no optimizer trains head.weight, head.bias" in lines[1]


def test_frozen_parameters_are_no_orphans() -> None:
    model = TwoLayers()
    model.head.requires_grad_(False)
    check_ownership(model, {"main": build_optimizer(model, section(params=["stem.*", "norm.*"]))})


# --- Through a resume -----------------------------------------------------------------------------


def test_groups_resume_with_their_rates(tmp_path: Path) -> None:
    groups = "optimizer.param_groups=[{match: '*.bias', lr: 0.01, momentum: 0.9}]"
    assert_resumes(tmp_path, groups)
    assert [g["lr"] for g in run(tmp_path / "x", groups).optimizers["main"].param_groups] == [
        0.1,
        0.01,
    ]


def test_a_changed_grouping_is_refused_with_a_table_and_changes_nothing(tmp_path: Path) -> None:
    momentum = "optimizer.args={lr: 0.1, momentum: 0.9}"
    run(tmp_path, momentum, "optimizer.param_groups=[{match: '*.bias', lr: 0.01}]", stop_at=3)
    state = read(tmp_path)
    other = make(
        momentum, "optimizer.param_groups=[{match: 'head.*', lr: 0.2}]", "freeze=[hidden.0.weight]"
    )
    before = copy.deepcopy({name: part.state_dict() for name, part in other.stateful.items()})
    with pytest.raises(CheckpointError) as caught:
        load_state_dicts(other.stateful, state)
    assert str(caught.value).splitlines() == [
        "the checkpoint does not match; nothing was changed:",
        "  optimizer.main: parameters per group are [2, 2] in the checkpoint, [1, 2] here",
        "    parameter        old group   new group",
        "    hidden.0.weight  0           -",
        "    head.weight      0           1",
        "    head.bias        1           1",
        "    hidden.0.bias    1           0",
        "    resume with the old groups, or start from the weights: omit -r and set "
        "`model: {weights: RUN}`, RUN being the run's folder",
    ]
    assert_same({name: part.state_dict() for name, part in other.stateful.items()}, before)


def test_other_names_in_groups_of_the_same_sizes_are_refused(tmp_path: Path) -> None:
    run(tmp_path, "optimizer.param_groups=[{match: '*.bias', lr: 0.01}]", stop_at=3)
    other = make("optimizer.param_groups=[{match: 'head.*', lr: 0.01}]")
    with pytest.raises(CheckpointError, match=r"\[2, 2\] in .*\[2, 2\] here\n(.*\n)+ *head.bias"):
        load_state_dicts(other.stateful, read(tmp_path))


class Turned(nn.Module):
    """Two vectors, made in one order or in the other."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.register_parameter(first, nn.Parameter(torch.zeros(3)))
        self.register_parameter(second, nn.Parameter(torch.ones(3)))


def test_another_order_in_a_group_is_refused_since_torch_goes_by_places() -> None:
    there, here = (build_optimizer(Turned(*names), section()) for names in ("ab", "ba"))
    with pytest.raises(
        CheckpointError, match=r"\n *each group has the same parameters in another order"
    ):
        load_state_dicts({"main": here}, {"main": there.state_dict()})


def test_a_long_table_is_cut_short() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(10)])
    here, there = (
        build_optimizer(model, section(param_groups=rules))
        for rules in ([], [{"match": ["[1-9].*"], "lr": 0.2}])
    )
    with pytest.raises(CheckpointError) as caught:
        load_state_dicts({"main": here}, {"main": there.state_dict()})
    lines = str(caught.value).splitlines()
    assert len(lines) == 2 + 1 + 12 + 1 + 1
    assert lines[-2] == "    and 8 more"


def test_what_has_moved_comes_before_what_was_left() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(10)])
    there, here = (
        build_optimizer(model, section(param_groups=rules))
        for rules in ([], [{"match": "7.bias", "lr": 0.2}])
    )
    with pytest.raises(CheckpointError, match=r"new group\n *7\.bias +0 +1\n *0\.weight +0 +0\n"):
        load_state_dicts({"main": here}, {"main": there.state_dict()})


def test_a_group_that_only_has_another_number_now_is_not_in_the_table() -> None:
    model = TwoLayers()
    rules = [{"match": f"{name}.*", "lr": lr} for name, lr in (("norm", 0.2), ("head", 0.3))]
    there, here = (
        build_optimizer(model, section(param_groups=some))
        for some in (rules, [*rules, {"match": "stem.bias", "lr": 0.4}])
    )
    with pytest.raises(CheckpointError) as caught:
        load_state_dicts({"main": here}, {"main": there.state_dict()})
    assert [line.split() for line in str(caught.value).splitlines()[3:-1]] == [
        ["stem.weight", "0", "0"],
        ["stem.bias", "0", "1"],
    ]


def test_without_names_only_the_sizes_are_compared() -> None:
    model = TwoLayers()
    plain = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
    load_state_dicts({"main": build_optimizer(model, section())}, {"main": plain})
    other = build_optimizer(model, section(param_groups=[{"match": "head.*", "lr": 0.2}]))
    with pytest.raises(CheckpointError, match=r"group are \[6\] in the checkpoint, \[4, 2\] here$"):
        load_state_dicts({"main": other}, {"main": plain})


def test_layer_decay_takes_the_order_of_one_of_several_networks() -> None:
    class Small(TwoLayers):
        layer_order = ("stem.*", "norm.*", "head.*")

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Small(), TwoLayers()

    groups = parameter_groups(Both(), section(params="one.*", layer_decay=0.5))
    rates = {name: group["lr"] for group in groups for name, _ in group["params"]}
    expected = {"one.stem": 0.25, "one.norm": 0.5, "one.head": 1.0}
    base = rates["one.head.weight"]
    assert {name: rate / base for name, rate in rates.items()} == {
        name: share for name in rates for part, share in expected.items() if name.startswith(part)
    }
