"""Weights of a file go into a model whole, or as far as they are asked for, or not at all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import NETWORKS, make, run, weights

from base.checkpoint.state_dicts import load_weights
from base.checkpoint.store import CheckpointStore
from base.checkpoint.weights import load_pretrained, read_weights
from base.errors import CheckpointError, ConfigError
from base.network.patterns import NoMatch
from base.run.parameter_table import parameter_rows


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def section(path: Path, **more: Any) -> dict[str, Any]:
    return {"file": str(path), **more}


def saved(path: Path) -> dict[str, Tensor]:
    torch.manual_seed(1)
    state = small().state_dict()
    torch.save(state, path)
    return state


def test_all_of_a_file_is_loaded_and_told(tmp_path: Path) -> None:
    state, model = saved(tmp_path / "a.pth"), small()
    loaded = load_pretrained(model, section(tmp_path / "a.pth"))
    assert all(model.state_dict()[name].equal(value) for name, value in state.items())
    assert (loaded.loaded, loaded.file) == (list(state), "a.pth")


@pytest.mark.parametrize("wrapped", ["state_dict", "model"])
def test_weights_beside_other_things_are_found(tmp_path: Path, wrapped: str) -> None:
    state = small().state_dict()
    torch.save({wrapped: state, "epoch": 3}, tmp_path / "b.pt")
    assert list(read_weights(tmp_path / "b.pt")) == list(state)


def test_what_is_skipped_stays_and_may_have_another_shape(tmp_path: Path) -> None:
    state = saved(tmp_path / "a.pth")
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
    head = model[2].weight.clone()
    loaded = load_pretrained(model, section(tmp_path / "a.pth", skip=["2.*"]))
    assert model[2].weight.equal(head)
    assert model[0].weight.equal(state["0.weight"])
    assert model[1].running_var.equal(state["1.running_var"])
    assert not any(name.startswith("2.") for name in loaded.loaded)
    assert (loaded.left_out, loaded.mismatched) == (["2.weight", "2.bias"], {})
    assert "left out        2  2.weight, 2.bias" in loaded.table()


def test_only_what_is_asked_for_is_loaded(tmp_path: Path) -> None:
    state, model = saved(tmp_path / "a.pth"), small()
    before = model[2].weight.clone()
    assert load_pretrained(model, section(tmp_path / "a.pth", only=["0.*"])).loaded == [
        "0.weight",
        "0.bias",
    ]
    assert model[0].weight.equal(state["0.weight"])
    assert model[2].weight.equal(before)


@pytest.mark.fault("F25")
def test_what_does_not_fit_is_told_whole_and_nothing_changes(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 10))
    before = weights_of(model)
    with pytest.raises(CheckpointError) as raised:
        load_pretrained(model, section(tmp_path / "a.pth"))
    text = str(raised.value)
    for part in ("a.pth", "2.weight", "(2, 4)", "(10, 4)", "1.running_mean", "`skip`"):
        assert part in text
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_run_and_a_checkpoint_give_their_weights(tmp_path: Path) -> None:
    trained = weights(run(tmp_path / "run"))
    (newest,) = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1:]
    for path in (newest, tmp_path / "run"):
        fresh = make(f"model.weights={path}")
        (found,) = fresh.experiment.loaded.values()
        assert (found.loaded, found.file) == (list(trained), path.name)
    assert all(weights(make(f"model.weights={newest}"))[n].equal(v) for n, v in trained.items())


def test_a_resume_keeps_the_table_of_what_was_loaded(tmp_path: Path) -> None:
    run(tmp_path / "first")
    words = f"model.weights={tmp_path / 'first'}"
    run(tmp_path / "second", words, stop_at=3)
    table = (tmp_path / "second" / "parameters.csv").read_bytes()
    assert b",first," in table
    run(tmp_path / "second", words, resume=True)
    assert (tmp_path / "second" / "parameters.csv").read_bytes() == table


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.pth", b"", "cannot be read as a file of weights: damaged: it is empty"),
        ("a.pth", b"hello", "as a file of weights: it was not written by torch.save"),
        ("a.pth", None, "no such file"),
        ("wieghts.pth", None, r"did you mean .*weights\.pth"),
        ("x" * 300, None, "xxx: File name too long"),
    ],
    ids=["empty", "text", "missing", "a near name", "a name that the system refuses"],
)
def test_a_file_that_is_none_is_told_in_one_line(
    tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    saved(tmp_path / "weights.pth")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=expected) as raised:
        read_weights(tmp_path / name)
    assert "\n" not in str(raised.value)


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "whole_model.pth")
    with pytest.raises(CheckpointError, match="objects other than plain tensors") as raised:
        read_weights(tmp_path / "whole_model.pth")
    kind = f"{type(small()).__module__}.{type(small()).__qualname__}"
    assert f"which are not loaded: 'all of it' is {kind!r}" in str(raised.value)
    assert "\x1b" not in str(raised.value)


def test_torchvisions_networks_take_a_file(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    torch.save(squeezenet1_1(num_classes=4).state_dict(), tmp_path / "net.pth")
    overrides = [
        "model={type: squeezenet1_1, args: {num_classes: 3}}",
        "data_loader.args.shape=[3, 32, 32]",
    ]
    fresh = make(*overrides, f"model.weights={{file: {tmp_path}/net.pth, skip: classifier.1.*}}")
    state = torch.load(tmp_path / "net.pth", weights_only=True)
    own = fresh.model.state_dict()
    assert all(own[n].equal(v) for n, v in state.items() if not n.startswith("classifier.1"))


NESTED = """
type: Networks
args:
  small: {type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3}, weights: WEIGHTS}
  other: {type: MLP, args: {n_inputs: 5, hidden: [6], n_outputs: 3}}
"""


def nested(weights_of_it: str) -> Any:
    text = NETWORKS[: NETWORKS.index("model:")] + NETWORKS[NETWORKS.index("data_loader:") :]
    text = text.replace("generator.*", "small.*").replace("critic.*", "other.*")
    indented = NESTED.replace("WEIGHTS", weights_of_it).replace("\n", "\n  ")
    return make(text=f"{text}\nmodel: {indented}\n")


def test_a_network_of_several_takes_weights_of_its_own(tmp_path: Path) -> None:
    trained = weights(run(tmp_path / "saved" / "toy" / "20260101-000000"))
    made = nested(str(tmp_path / "saved" / "toy"))  # the newest run of that name
    own = weights(made)
    assert all(own[f"small.{name}"].equal(value) for name, value in trained.items())
    assert not own["other.head.weight"].equal(trained["head.weight"])
    assert made.experiment.loaded["small"].loaded == list(trained)
    sources = {row.name: row.loaded_from for row in parameter_rows(made.experiment)}
    assert sources["small.head.weight"] == "toy"
    assert sources["other.head.weight"] is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("3", "small.weights: expected a file, or {file, strip, "),
        ("{fil: a}", "small.weights: fil: unknown key; did you mean 'file'"),
        ("nowhere.pth", r"model\.args\.small\.weights: nowhere\.pth: no such file"),
    ],
)
def test_a_slip_in_the_weights_of_a_network_has_its_place(given: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        nested(given)


# --- Rules ---------------------------------------------------------------------------------------


def save_as(path: Path, change: Any) -> dict[str, Tensor]:
    """Save a model's weights under changed names; return them under their own."""
    torch.manual_seed(1)
    state = small().state_dict()
    torch.save({change(name): value for name, value in state.items()}, path)
    return state


def assert_holds(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    assert all(own[name].equal(value) for name, value in state.items())


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (lambda n: f"module.{n}", {"strip": ["module."]}),
        (lambda n: f"module.{n}", {"strip": "module"}),
        (lambda n: f"module._orig_mod.{n}", {"strip": ["module.", "_orig_mod."]}),
        (lambda n: f"net.{n}", {"rename": {"net.*": "*"}}),
        (lambda n: f"net.{n}.x", {"rename": {"net.*.x": "*"}}),
        (lambda n: f"net.{n}", {"rename": {r"re:net\.(.*)": r"\1"}}),
        (lambda n: f"m.a.{n}", {"strip": "m.", "rename": {"a.*": "b.*", "b.*": "*"}}),
        (lambda n: n.replace(".weight", ".w"), {"rename": {"*.w": "*.weight"}}),
    ],
)
def test_names_of_a_file_are_made_those_of_the_model(
    tmp_path: Path, change: Any, rules: dict[str, Any]
) -> None:
    state, model = save_as(tmp_path / "a.pt", change), small()
    found = load_pretrained(model, section(tmp_path / "a.pt", **rules))
    assert_holds(model, state)
    assert found.renamed == {name: change(name) for name in state if change(name) != name}


def test_rules_choose_by_the_new_names(tmp_path: Path) -> None:
    state, model = save_as(tmp_path / "a.pt", lambda n: f"module.{n}"), small()
    rules = {"strip": ["module."], "skip": ["2.*"]}
    assert set(load_pretrained(model, section(tmp_path / "a.pt", **rules)).left_out) == {
        "2.weight",
        "2.bias",
    }
    assert_holds(model, {name: value for name, value in state.items() if name[0] != "2"})


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"strip": ["modul."]}, r"`strip`: no weight starts with 'modul\.'; did you mean 'module"),
        ({"rename": {"modul.*": "*"}}, r"`rename`: no weight matches 'modul\.\*'"),
        ({"only": ["zzz.*"]}, r"`only`: no weight matches 'zzz"),
        ({"skip": ["zzz.*"]}, r"`skip`: no weight matches 'zzz"),
        ({"rename": {"module.*": "*.*"}}, r"'module\.\*' has 1 `\*`, '\*\.\*' has 2"),
        ({"rename": {"re:module(": "a"}}, "is not a regular expression"),
        ({"rename": {"re:module.*": r"\2"}}, "invalid group reference"),
    ],
)
def test_a_rule_that_does_nothing_is_named(
    tmp_path: Path, rules: dict[str, Any], expected: str
) -> None:
    save_as(tmp_path / "a.pt", lambda n: f"module.{n}")
    with pytest.raises(NoMatch, match=expected):
        load_pretrained(small(), section(tmp_path / "a.pt", **rules))


def test_two_names_that_become_one_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"'0.weight' and '2.weight' .* both become 'w'"):
        load_pretrained(small(), section(tmp_path / "a.pt", rename={r"re:[02]\.weight": "w"}))


def test_another_shape_is_left_out_where_asked_and_all_is_counted(tmp_path: Path) -> None:
    state = saved(tmp_path / "a.pt")
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
    head = model[2].weight.clone()
    with pytest.raises(CheckpointError, match="`on_shape_mismatch: skip`"):
        load_pretrained(model, section(tmp_path / "a.pt"))
    found = load_pretrained(model, section(tmp_path / "a.pt", on_shape_mismatch="skip"))
    assert list(found.mismatched) == ["2.weight", "2.bias"]
    assert model[2].weight.equal(head)
    assert_holds(model, {name: state[name] for name in found.loaded})
    both = [*found.loaded, *found.left_out, *found.mismatched]
    assert sorted([*both, *found.missing]) == sorted(model.state_dict())
    assert sorted([*both, *found.unexpected]) == sorted(state)
    table = found.table()
    assert "loaded          7  0.weight, 0.bias, 1.weight, ..." in table
    assert "mismatched      2  2.weight (shape (2, 4) in the file, shape (10, 4) here)" in table


@pytest.mark.parametrize("rules", [{"skip": ["*"]}, {"on_shape_mismatch": "skip"}])
def test_to_load_nothing_is_an_error(tmp_path: Path, rules: dict[str, Any]) -> None:
    torch.save({"0.weight": torch.zeros(9), "0.bias": torch.zeros(9)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="no weight of the file would be loaded"):
        load_pretrained(nn.Sequential(nn.Linear(3, 4)), section(tmp_path / "a.pt", **rules))


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda n: f"encoder.{n}", "`strip: encoder.`"),
        (lambda n: n.removeprefix("net."), '`rename: {"*": "net.*"}`'),
    ],
)
def test_a_prefix_that_is_all_that_differs_is_advised(
    tmp_path: Path, change: Any, advice: str
) -> None:
    model = nn.ModuleDict({"net": small()})
    torch.save({change(n): v for n, v in model.state_dict().items()}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as raised:
        load_pretrained(model, section(tmp_path / "a.pt"))
    assert advice in str(raised.value)


def test_many_misfits_are_told_in_a_screen(tmp_path: Path) -> None:
    torch.save({f"a{i}": torch.zeros(1) for i in range(500)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as raised:
        load_pretrained(small(), section(tmp_path / "a.pt"))
    lines = str(raised.value).splitlines()
    assert len(lines) < 30
    assert lines[-2] == "  and 488 more"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({name: {"w": torch.zeros(1)} for name in "ab"}, "several sets of weights: 'a', 'b'"),
        ({1: torch.zeros(1)}, "a name of a weight must be printable text, not 1"),
        ({"a\x1b[31m": torch.zeros(1)}, r"must be printable text, not 'a\\x1b\[31m'"),
        ({}, "it holds no weights, but a dict, of nothing"),
        (torch.zeros(1), "it holds no weights, but a Tensor$"),
        ({"epoch": 3, "lr": 1.0}, "it holds no weights, but a dict, of 'epoch', 'lr'"),
    ],
)
def test_what_holds_no_one_set_of_weights_is_told(
    tmp_path: Path, content: Any, expected: str
) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=expected):
        read_weights(tmp_path / "a.pt")


def test_averages_are_taken_or_not(tmp_path: Path) -> None:
    trained = run(tmp_path / "run", "trainer.ema={decay: 0.9}")
    (newest,) = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1:]
    fresh = weights(make(f"model.weights={newest}"))
    assert all(fresh[name].equal(value) for name, value in trained.ema.averages.items())
    (tmp_path / "lone.pt").write_bytes((newest / "state.pt").read_bytes())  # without a manifest
    for path in (newest, newest / "state.pt", tmp_path / "lone.pt"):
        own, averaged = read_weights(path, ema=False), read_weights(path, ema=True)
        assert own["head.weight"].equal(weights(trained)["head.weight"])
        assert all(averaged[name].equal(value) for name, value in trained.ema.averages.items())
        assert averaged["head.weight"].equal(read_weights(path)["head.weight"])
        assert not averaged["head.weight"].equal(own["head.weight"])
    saved(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="has no averaged weights"):
        read_weights(tmp_path / "a.pt", ema=True)


@pytest.mark.parametrize("in_background", [False, True])
def test_a_shared_weight_has_its_average_under_each_name(
    tmp_path: Path, in_background: bool
) -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    averages = {name: torch.full_like(value, 5) for name, value in model.named_parameters()}
    averages.pop("c.weight")  # frozen
    store = CheckpointStore(tmp_path, in_background=in_background)
    state = {"model": model.state_dict(), "ema": {"n_updates": 1, "averages": averages}}
    facts: dict[str, Any] = {"epoch": 0, "metrics": {}, "is_best": True, "facts": {}}
    path = store.save(state, step=1, **facts)
    store.wait()
    own = model["c"].weight.clone()
    load_pretrained(model, section(path))
    assert all((value == 5).all() for name, value in model.state_dict().items() if name[0] != "c")
    assert model["c"].weight.equal(own)


def test_complex_numbers_do_not_lose_their_imaginary_part(tmp_path: Path) -> None:
    torch.save({"weight": torch.tensor([[1 + 2j]])}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"weight: complex shape \(1, 1\) in the file, shape"):
        load_pretrained(nn.Linear(1, 1, bias=False), section(tmp_path / "a.pt"))


def test_a_config_gives_the_rules_and_the_log_tells_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = weights(make())
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "a.pt")
    rules = '{file: FILE, strip: module., rename: {"head.*": "head.*"}, on_shape_mismatch: skip}'
    with caplog.at_level("INFO", logger="kindling"):
        made = run(
            tmp_path / "run",
            f"model.weights={rules.replace('FILE', str(tmp_path / 'a.pt'))}",
            "model.args.n_outputs=4",
            "data_loader.args.n_classes=4",
            stop_at=1,
        )
    assert list(made.experiment.loaded[""].mismatched) == ["head.weight", "head.bias"]
    assert "weights of the model from a.pt:\n  loaded " in caplog.text
    assert "module.head.weight -> head.weight" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_weights_go_from_any_device_to_any_other(tmp_path: Path) -> None:
    state = saved(tmp_path / "cpu.pt")
    torch.save({name: value.cuda() for name, value in state.items()}, tmp_path / "gpu.pt")
    for file in ("cpu.pt", "gpu.pt"):
        for device in ("cpu", "cuda"):
            model = small().to(device)
            load_pretrained(model, section(tmp_path / file))
            assert_holds(model.cpu(), state)


def test_a_checkpoint_of_another_large_model_is_refused_at_once() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(500)])
    state = {f"other.{name}": value for name, value in model.state_dict().items()}
    started = time.process_time()
    with pytest.raises(CheckpointError) as raised:
        load_weights(model, state)
    assert time.process_time() - started < 5  # 60 s where a near name is sought for each
    assert len(str(raised.value).splitlines()) == 1 + 2 * len(state)
