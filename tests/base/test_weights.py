"""Weights of a file go into a model whole, or as far as they are asked for, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import NETWORKS, make, run, weights

from base.errors import CheckpointError, ConfigError
from base.match import NoMatch
from base.weights import load_from, read_weights


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def section(path: Path, **more: Any) -> dict[str, Any]:
    return {"file": str(path), "only": [], "skip": [], **more}


def saved(path: Path) -> dict[str, Tensor]:
    torch.manual_seed(1)
    state = small().state_dict()
    torch.save(state, path)
    return state


def test_all_of_a_file_is_loaded_and_told(tmp_path: Path) -> None:
    state, model = saved(tmp_path / "a.pth"), small()
    loaded = load_from(model, section(tmp_path / "a.pth"))
    assert all(model.state_dict()[name].equal(value) for name, value in state.items())
    assert loaded == dict.fromkeys(state, "a.pth")


@pytest.mark.parametrize("wrapped", ["state_dict", "model"])
def test_weights_beside_other_things_are_found(tmp_path: Path, wrapped: str) -> None:
    state = small().state_dict()
    torch.save({wrapped: state, "epoch": 3}, tmp_path / "b.pt")
    assert list(read_weights(tmp_path / "b.pt")) == list(state)


def test_what_is_skipped_stays_and_may_have_another_shape(tmp_path: Path) -> None:
    state = saved(tmp_path / "a.pth")
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
    head = model[2].weight.clone()
    loaded = load_from(model, section(tmp_path / "a.pth", skip=["2.*"]))
    assert model[2].weight.equal(head)
    assert model[0].weight.equal(state["0.weight"])
    assert model[1].running_var.equal(state["1.running_var"])
    assert not any(name.startswith("2.") for name in loaded)


def test_only_what_is_asked_for_is_loaded(tmp_path: Path) -> None:
    state, model = saved(tmp_path / "a.pth"), small()
    before = model[2].weight.clone()
    assert set(load_from(model, section(tmp_path / "a.pth", only=["0.*"]))) == {
        "0.weight",
        "0.bias",
    }
    assert model[0].weight.equal(state["0.weight"])
    assert model[2].weight.equal(before)


def test_what_does_not_fit_is_told_whole_and_nothing_changes(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 10))
    before = weights_of(model)
    with pytest.raises(CheckpointError) as raised:
        load_from(model, section(tmp_path / "a.pth"))
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
        assert fresh.experiment.loaded == dict.fromkeys(trained, path.name)
    assert all(weights(make(f"model.weights={newest}"))[n].equal(v) for n, v in trained.items())


def test_a_run_with_averages_gives_these(tmp_path: Path) -> None:
    trained = run(tmp_path / "run", "trainer.ema={decay: 0.9}")
    (newest,) = sorted((tmp_path / "run/checkpoints").glob("step-*"))[-1:]
    fresh = weights(make(f"model.weights={newest}"))
    assert all(fresh[name].equal(value) for name, value in trained.ema.averages.items())
    assert not fresh["head.weight"].equal(weights(trained)["head.weight"])


def test_a_resume_keeps_the_table_of_what_was_loaded(tmp_path: Path) -> None:
    run(tmp_path / "first")
    words = f"model.weights={tmp_path / 'first'}"
    run(tmp_path / "second", words, stop_at=3)
    table = (tmp_path / "second" / "parameters.csv").read_bytes()
    assert b",first," in table
    run(tmp_path / "second", words, resume=True)
    assert (tmp_path / "second" / "parameters.csv").read_bytes() == table


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a readable file of weights: EOFError"),
        (b"hello", "not a readable file of weights: KeyError: 101"),
        (None, "no such file"),
    ],
)
def test_a_file_that_is_none_is_told_in_one_line(
    tmp_path: Path, content: bytes | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=expected) as raised:
        read_weights(tmp_path / "a.pth")
    assert "\n" not in str(raised.value)


def test_a_near_name_is_told(tmp_path: Path) -> None:
    saved(tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"did you mean .*weights\.pth"):
        read_weights(tmp_path / "wieghts.pth")


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "whole_model.pth")
    with pytest.raises(CheckpointError, match="not a readable file of weights") as raised:
        read_weights(tmp_path / "whole_model.pth")
    kind = f"{type(small()).__module__}.{type(small()).__qualname__}"
    assert f"holds a {kind}, which is code, and no code is run: save the mod" in str(raised.value)
    assert "\x1b" not in str(raised.value)


def test_a_pattern_that_matches_no_weight_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth")
    with pytest.raises(NoMatch, match=r"no weight matches 'fc\.\*'"):
        load_from(small(), section(tmp_path / "a.pth", skip=["fc.*"]))


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
    trained = weights(run(tmp_path / "saved" / "toy" / "0101_000000"))
    made = nested(str(tmp_path / "saved" / "toy"))  # the newest run of that name
    own = weights(made)
    assert all(own[f"small.{name}"].equal(value) for name, value in trained.items())
    assert not own["other.head.weight"].equal(trained["head.weight"])
    assert made.experiment.loaded == {f"small.{name}": "toy" for name in trained}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("3", "small.weights: expected a file, or {file, only, skip}"),
        ("{fil: a}", "small.weights: expected a file, or {file, only, skip}"),
        ("nowhere.pth", r"model\.args\.small\.weights: nowhere\.pth: no such file"),
    ],
)
def test_a_slip_in_the_weights_of_a_network_has_its_place(given: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        nested(given)
