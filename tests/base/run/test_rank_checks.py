"""Ranks with another config, code, data or model, and what several cannot train, are refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import make

from base.data.replayed_loader import ReplayedLoader
from base.distributed.agreement import MAX_LOSSES
from base.distributed.comparison import hash_of
from base.distributed.group import ALONE, World
from base.errors import ConfigError, DataError
from base.names import registry
from base.names.registry import LOSSES, MODELS
from base.run import rank_checks
from base.run.rank_checks import (
    check_ranks,
    hash_code,
    match_weights,
    warn_of_other_batches,
    warn_of_other_state,
    weights_of,
)

ROOT = Path(__file__).parents[3]
BN = "model={type: Normed}"


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(5), nn.Linear(5, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Sparse(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3, sparse=True)


def contrast(output: Tensor, target: Tensor) -> Tensor:
    return output.mean()


contrast.needs_whole_batches = True  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Normed, Sparse):
        monkeypatch.setitem(MODELS.registered, kind.__name__, kind)
    monkeypatch.setitem(LOSSES.registered, "contrast", contrast)


class TwoRanks(World):
    """Rank 0 of 2; rank 1 sends the same values, except for these."""

    def __init__(self, **others: Any) -> None:
        super().__init__(0, 2)
        self.others = others
        self.copied: list[Tensor] = []

    def all_gather(self, value: Any) -> list[Any]:
        return [value, {**value, **{k: v for k, v in self.others.items() if k in value}}]

    def gather(self, value: Any) -> list[Any]:
        return self.all_gather(value)

    def broadcast_tensors(self, tensors: Sequence[Tensor]) -> None:
        self.copied += tensors


def refused(world: World, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check_ranks(make(*overrides).experiment, world)
    assert str(caught.value).count("\n") == len(caught.value.problems) - 1, "a line each"
    return str(caught.value)


def test_equal_ranks_pass_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    experiment, world = make().experiment, TwoRanks()
    before = torch.get_rng_state()
    check_ranks(experiment, world)
    assert not caplog.records
    assert not world.copied
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "torch",
            "1.0",
            f"torch differs between ranks: it is {torch.__version__} on rank 0 and 1.0",
        ),
        ("device", "cuda", "device differs between ranks: it is cpu on rank 0 and cuda on rank 1"),
    ],
)
def test_another_version_or_device_is_refused(key: str, value: str, expected: str) -> None:
    assert expected in refused(TwoRanks(**{key: value}))


class LaterRank(TwoRanks):
    """Rank 1 has the files of now."""

    def all_gather(self, value: Any) -> list[Any]:
        code = hash_code()
        is_whole = isinstance(value["code"], dict)
        return [value, {**value, "code": code if is_whole else hash_of(code)}]


def test_a_file_that_changed_before_another_rank_started_is_named() -> None:
    code = {**hash_code(), "model/loss.py": "before"}
    with pytest.raises(
        ConfigError, match=r"model/loss\.py is another file on rank 1 than on rank 0"
    ):
        check_ranks(make().experiment, LaterRank(), code)


def test_other_data_are_a_fault_of_the_data() -> None:
    with pytest.raises(DataError, match="a stream of training samples on rank 1"):
        check_ranks(make().experiment, TwoRanks(train={"classes": None}))
    with pytest.raises(DataError, match="rank 0 alone has validation data"):
        check_ranks(make().experiment, TwoRanks(valid={}))


def test_data_and_versions_are_reported_together() -> None:
    text = refused(TwoRanks(torch="1.0", valid={}))
    assert "torch differs" in text
    assert "rank 0 alone has validation data" in text


def test_the_data_of_two_configs_have_other_hashes() -> None:
    parts = [rank_checks.describe_data(make(*more).train_loader) for more in CHANGED_DATA]
    assert len({json.dumps(each) for each in parts}) == len(CHANGED_DATA)


CHANGED_DATA: Mapping[tuple[str, ...], None] = dict.fromkeys((
    (), ("seed=4",), ("data_loader.args.n_samples=25",), ("data_loader.args.validation_split=5",),
))  # fmt: skip


def test_the_code_is_all_that_python_reads_and_nothing_hidden(tmp_path: Path) -> None:
    root = registry.project_root()
    for name in ("model/net.py", "own/part.py", "idle/part.py", "model/.old/net.py", "go.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    try:
        registry.set_project_root(tmp_path)
        import_module("own.part")
        hashed = hash_code()
    finally:
        registry.set_project_root(root)
    engine = {name for name in hashed if name.startswith(("base/", "logger/"))}
    assert {"base/run/rank_checks.py", "logger/files.py"} <= engine
    assert hashed.keys() - engine == {"model/net.py", "own/part.py", "go.py"}


def test_other_weights_are_replaced_by_those_of_rank_0(caplog: pytest.LogCaptureFixture) -> None:
    experiment, world = make(BN).experiment, TwoRanks(values="other")
    weights = weights_of(experiment)
    world.others["layers.2.weight"] = "other"
    assert match_weights(weights, world)
    assert "first layers.2.weight on rank 1: all continue with those of rank 0" in caplog.text
    assert {id(each) for each in world.copied} == {
        id(each) for each in (*experiment.model.parameters(), *experiment.model.buffers())
    }


def test_another_shape_is_refused() -> None:
    world = TwoRanks(shapes="other", **{"layers.2.bias": "(4,) torch.float32"})
    with pytest.raises(
        ConfigError,
        match=r"layers.2.bias is \(3,\) torch.float32 on rank 0 and \(4,\) .* on rank 1",
    ):
        match_weights(weights_of(make(BN).experiment), world)
    assert not world.copied


def test_the_weights_of_losses_are_compared_too() -> None:
    trainer = make("loss={type: CrossEntropyLoss, args: {weight: [1.0, 2.0, 3.0]}}")
    assert "loss.CrossEntropyLoss.weight" in weights_of(trainer.experiment)


def test_shards_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_checks, "hash_of_tensor", lambda _: 1 / 0)
    monkeypatch.setattr(rank_checks, "is_sharded", lambda _: True)
    check_ranks(make("distributed.strategy=fsdp").experiment, TwoRanks())


@pytest.mark.parametrize("kind", ["Adafactor", "Muon"])
def test_parts_of_weights_refuse_an_optimizer_that_reads_whole_ones(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make("freeze=['*bias']", f"optimizer={{type: {kind}}}").experiment
    check_ranks(experiment, TwoRanks())
    monkeypatch.setattr(rank_checks, "is_sharded", lambda _: True)
    with pytest.raises(ConfigError) as caught:
        check_ranks(experiment, TwoRanks())
    text = f"optimizer.type: {kind} cannot be used with 2 processes and distributed.strategy: fsdp"
    assert text in str(caught.value.problems[0])


def test_one_process_is_not_compared_and_has_no_use_for_shards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rank_checks, "hash_code", lambda: 1 / 0)
    experiment = make("data_loader.args.batch_size=1").experiment
    check_ranks(experiment, ALONE)
    assert not experiment.config.notes
    experiment = make("distributed.strategy=fsdp").experiment
    check_ranks(experiment, ALONE)
    assert "strategy: fsdp has no effect in one process" in experiment.config.notes[0]


# --- What several processes cannot train ----------------------------------------------------------


def test_a_batch_has_a_sample_for_each_process() -> None:
    text = refused(TwoRanks(), "data_loader.args.batch_size=1")
    assert text.startswith(
        "--set data_loader.args.batch_size=1: data_loader.args.batch_size: the batch_size"
    )
    assert "set it to 2 or more" in text
    check_ranks(make("data_loader.args.batch_size=2").experiment, TwoRanks())


def test_a_loss_of_whole_batches_is_refused() -> None:
    assert "the loss 'contrast' compares the samples of a batch" in refused(
        TwoRanks(), "loss=contrast"
    )


def test_more_losses_than_a_message_holds_are_refused() -> None:
    many = ", ".join(
        f"{{type: cross_entropy, name: l{number}}}" for number in range(MAX_LOSSES + 1)
    )
    text = refused(TwoRanks(), f"loss=[{many}]")
    assert f"2 processes train at most {MAX_LOSSES} losses, and here are {MAX_LOSSES + 1}" in text


def test_sparse_gradients_are_refused() -> None:
    text = refused(TwoRanks(), "model={type: Sparse}")
    assert "model: table: sparse gradients are not summed over 2 processes" in text


def test_state_that_differs_after_a_step_is_named(caplog: pytest.LogCaptureFixture) -> None:
    trainer = make("trainer.ema={decay: 0.9}")
    parts = {name: one for name, one in trainer.stateful.items() if name != "random"}
    warn_of_other_state(parts, TwoRanks(), is_sharded=False)
    assert not caplog.records
    warn_of_other_state(parts, TwoRanks(ema="other", meters="other"), is_sharded=False)
    assert "after a step, ema of rank 1 differs from that of rank 0, which is saved" in caplog.text
    caplog.clear()
    warn_of_other_state(parts, TwoRanks(ema="other", model="other"), is_sharded=True)
    assert not caplog.records


class Stream:
    """Two batches of four numbers; with a rank, those of this rank alone, as some libraries do."""

    def __init__(self, rank: int | None) -> None:
        self.rank, self.n_begun = rank, 0

    def __iter__(self) -> Iterator[list[Tensor]]:
        self.n_begun += 1
        for first in (0, 8):
            yield [torch.arange(8)[self.rank or 0 :: 1 if self.rank is None else 2][:4] + first]


class Recorded(TwoRanks):
    """A rank of 2 that keeps what it sends to rank 0, or receives what rank 1 has sent."""

    def __init__(self, rank: int, received: Any = None) -> None:
        World.__init__(self, rank, 2)
        self.received = received

    def gather(self, value: Any) -> Any:
        if self.rank == 0:
            return [value, self.received]
        self.received = value
        return None


@pytest.mark.parametrize("divides_itself", [False, True])
def test_a_loader_that_divides_its_samples_itself_is_noticed(
    divides_itself: bool, caplog: pytest.LogCaptureFixture
) -> None:
    world = Recorded(1)
    for rank in (1, 0):
        loader = ReplayedLoader(Stream(rank if divides_itself else None), 0)
        loader.shard(rank, 2)
        world = Recorded(rank, world.received)
        warn_of_other_batches(loader, "training", world)
        batch = next(iter(loader.batches(0, 1)))  # its share is back, and no batch is lost
        whole = next(iter(Stream(rank if divides_itself else None)))
        assert torch.equal(batch[0], whole[0][rank::2])
    assert ("divides the samples" in caplog.text) == divides_itself


def test_a_loader_that_reads_its_part_alone_is_not_read_for_this() -> None:
    loader = make().experiment.train_loader
    loader.batches = None
    warn_of_other_batches(loader, "training", Recorded(0))


def test_synchronized_statistics_need_cuda() -> None:
    text = refused(TwoRanks(), BN, "distributed.sync_batch_norm=true")
    assert "distributed.sync_batch_norm: torch's SyncBatchNorm works on CUDA only" in text


def test_all_reasons_are_given_together() -> None:
    text = refused(TwoRanks(), "loss=contrast", "data_loader.args.batch_size=1")
    assert text.count("2 processes") == 2


def test_batch_norm_over_a_part_of_the_batch_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    check_ranks(make(BN, "data_loader.args.batch_size=5").experiment, TwoRanks())
    assert "the 1 BatchNorm layers see 3 samples of one process" in caplog.text
    caplog.clear()
    experiment = make(BN).experiment
    experiment.model.layers[1] = nn.SyncBatchNorm(5)
    check_ranks(experiment, TwoRanks())
    assert not caplog.records


# --- Two processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[str]]:
    """What compared_ranks.py found on both ranks, and their logs."""
    folder = tmp_path_factory.mktemp("ranks")
    for rank in "01":
        for part in ("model", "data_loader", "trainer"):
            shutil.copytree(ROOT / part, folder / rank / part)
    with (folder / "1" / "model" / "loss.py").open("a") as file:
        file.write("# a comment\n")
    (folder / "1" / "trainer" / "own.py").write_text("")
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("compared_ranks.py")
    subprocess.run(
        [sys.executable, "-m", *launcher, script, folder],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
        check=True,
    )
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in "01"]
    return found, [(folder / f"log{rank}.txt").read_text() for rank in "01"]


@pytest.mark.parametrize("case", ["same", "weights"])
def test_two_ranks_start_with_the_same_weights(case: str, two_ranks: Any) -> None:
    first, second = (found[case] for found in two_ranks[0])
    assert first["weights"] == second["weights"]
    logged = "weights differ between ranks, first stem.conv.weight on rank 1"
    assert [log.count(logged) for log in two_ranks[1]] == [1, 0], "once, for the drawn weights"


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("config", "optimizer.args.lr is 0.001 on rank 0 and 0.5 on rank 1: start"),
        ("code", "model/loss.py is another file on rank 1 than on rank 0; trainer/own.py is on"),
    ],
)
def test_another_config_or_file_of_a_rank_ends_both(
    case: str, expected: str, two_ranks: Any
) -> None:
    first, second = (found[case] for found in two_ranks[0])
    assert f"{case} differs between ranks: {expected}" in first["error"]
    assert "\n" not in first["error"]
    assert second["error"].startswith("rank 0: ")
    assert first["exit_code"] == second["exit_code"] == 2
