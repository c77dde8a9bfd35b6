"""What several processes do not offer is refused with its place and reason, and only with them."""

from __future__ import annotations

import pytest
from toy import CONFIG, make

from base.config import load_config
from base.errors import ConfigError
from base.names.exclusions import ALONE_ONLY, WHOLE_ONLY, check_combinations, layout_wish

SET = {
    "optimizer: LBFGS": "optimizer={type: LBFGS, args: {lr: 0.5}}",
    "trainer.swa": "trainer.swa={start: 50%}",
    "trainer.loss_gradients": "trainer.loss_gradients=5 steps",
    "capture of gradients": "capture=[{match: 'layers*', of: gradients}]",
    "capture of parameters": "capture=[{match: '*.weight', of: parameters}]",
}
FSDP = "distributed.strategy=fsdp"


def texts(option: str) -> list[str]:
    default = option.replace(": ", "=") if ": " in option else f"{option}=true"
    return [SET.get(option, default)]


def problems(n_processes: int, *overrides: str) -> list[str]:
    try:
        check_combinations(load_config(None, overrides, text=CONFIG), n_processes)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.mark.parametrize("row", ALONE_ONLY, ids=lambda row: row[0])
def test_several_processes_refuse_what_one_offers(row: tuple[str, str]) -> None:
    option, why = row
    (problem,) = problems(2, *texts(option))
    assert f"cannot be used with 2 processes: {why}; leave it out, or train in one" in problem
    assert problem.startswith(f"--set {texts(option)[0]}"[:20])
    assert not problems(1, *texts(option))


@pytest.mark.parametrize("row", WHOLE_ONLY, ids=lambda row: row[0])
def test_weights_in_parts_refuse_what_whole_ones_offer(row: tuple[str, str]) -> None:
    option, why = row
    (problem,) = problems(4, FSDP, *texts(option))
    assert f"cannot be used with 4 processes and distributed.strategy: fsdp: {why}" in problem
    assert not problems(4, *texts(option))
    assert not problems(1, FSDP, *texts(option))


def test_modules_are_divided_by_fsdp_alone() -> None:
    for n_processes in (1, 2):
        (problem,) = problems(n_processes, "distributed.shard=['layers*']")
        assert "distributed.shard: only `strategy: fsdp` divides modules" in problem
        assert not problems(n_processes, "distributed.shard=['layers*']", FSDP)


def test_the_layout_is_not_chosen_for_weights_in_parts() -> None:
    plain, sharded = (load_config(None, more, text=CONFIG) for more in ([], [FSDP]))
    assert [layout_wish(plain, 2), layout_wish(sharded, 2)] == ["auto", False]
    assert layout_wish(sharded) == "auto"


def test_one_process_builds_with_every_key_of_the_section() -> None:
    keys = "shard: ['layers*'], timeout: 1.5, overlap: false, sync_batch_norm: true"
    make(f"distributed={{strategy: fsdp, {keys}, rank_logs: true}}")
