"""IterableDataset: each item is seen once, whoever reads it; a stream without a length trains."""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import ChainDataset, DataLoader, IterableDataset, get_worker_info
from toy import assert_resumes, make, run

from base.base_data_loader import BaseDataLoader
from base.data.replayed_loader import as_batches
from base.data.streams import SHARING, length_of_stream, sharing_fault
from base.datasets.dataset_loader import DatasetLoader
from base.errors import ConfigError, DataError
from base.run.checks import check
from base.run.dry_run_report import dry_run


class Items(IterableDataset):
    """The numbers below n."""

    def __init__(self, n: int = 9) -> None:
        self.n = n

    def items(self) -> Iterator[int]:
        return iter(range(self.n))

    def __iter__(self) -> Iterator[int]:
        return self.items()


class Counted(Items):
    def __len__(self) -> int:
        return self.n


class Shared(Counted):
    """What the error shows, word for word."""

    def __iter__(self) -> Iterator[int]:
        return as_shown(self)  # type: ignore[no-any-return]


_written: dict[str, Any] = {"torch": torch, "itertools": itertools}
exec(textwrap.dedent(SHARING), _written)
as_shown = _written["__iter__"]


def first_and_step() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


class SharedByAFunction(Counted):
    def __iter__(self) -> Iterator[int]:
        return iter(range(first_and_step()[0], self.n, first_and_step()[1]))


class Blocks(Counted):
    """As in torch's own page: the last worker gets what is left."""

    def __iter__(self) -> Iterator[int]:
        worker, n_workers = first_and_step()
        size = -(-self.n // n_workers)
        return iter(range(worker * size, min(self.n, (worker + 1) * size)))


class Around(IterableDataset):
    def __init__(self, source: Any) -> None:
        self.source = source

    def __iter__(self) -> Iterator[int]:
        return (10 * item for item in self.source)


class Says(Counted):
    shards_itself = True


def set_range(worker: int) -> None:
    info = get_worker_info()
    info.dataset.n = 3


def first_worker_only(worker: int) -> None:
    """Seeds something, and does not ask which worker it is."""


class Points(Items):
    """Endless samples for the toy's model: inputs that follow from the item's number."""

    def items(self) -> Iterator[Any]:
        for number in itertools.count():
            generator = torch.Generator().manual_seed(number)
            yield torch.randn(1, 1, 5, generator=generator), number % 3


class Few(Points):
    def items(self) -> Iterator[Any]:
        return itertools.islice(super().items(), self.n)


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for data sets that a project defines."""

    from base.names import check, construction, registry

    own = {cls.__name__: cls for cls in (Items, Counted, Points, Few)}
    for module in (check, construction):
        monkeypatch.setattr(
            module, "find", lambda kind, name: own.get(name) or registry.find(kind, name)
        )


# --- Who reads what -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("n_workers", "n_items", "batch_size"),
    [(0, 7, 2), (1, 7, 2), (2, 9, 2), (2, 9, 10), (3, 16, 4)],
)
def test_a_pass_sees_each_item_once(n_workers: int, n_items: int, batch_size: int) -> None:
    stock = DataLoader(Shared(n_items), batch_size, num_workers=n_workers)
    assert sharing_fault(stock) == ""
    loader = as_batches(stock, 3)
    batches = [batch.tolist() for batch in loader.batches(0, 2 * len(loader))]
    loader.close()
    passes = batches[: len(loader)], batches[len(loader) :]
    for each in passes:
        assert Counter(itertools.chain(*each)) == Counter(range(n_items))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_length_is_that_of_what_comes(drop_last: bool) -> None:
    for n_items, n_workers, batch_size in itertools.product([7, 12], [1, 2, 3], [2, 3, None]):
        how = {} if batch_size is None else {"drop_last": drop_last}
        loader = DataLoader(Shared(n_items), batch_size, num_workers=n_workers, **how)
        shares = [len(range(worker, n_items, n_workers)) for worker in range(n_workers)]
        size = batch_size or 1
        whole = sum(share // size for share in shares)
        short = sum(share % size > 0 for share in shares)
        assert length_of_stream(loader) == (whole if drop_last and batch_size else whole + short)


@pytest.mark.filterwarnings("ignore:Length of Iterable")
@pytest.mark.parametrize(
    "dataset", [Items(), Counted(), Around(Items()), ChainDataset([Shared(), Items()])]
)
def test_workers_that_would_all_give_everything_are_refused(dataset: Any) -> None:
    loader = DataLoader(dataset, 2, num_workers=2)
    seen = Counter(itertools.chain(*(batch.tolist() for batch in loader)))
    assert min(seen.values()) >= 2, "torch gives items more than once"
    assert "each of the 2 workers would yield all items of" in sharing_fault(loader)
    assert "shards_itself = True" in sharing_fault(loader)
    assert sharing_fault(DataLoader(dataset, 2, num_workers=1)) == ""
    assert sharing_fault(DataLoader(dataset, 2)) == ""
    other = DataLoader(dataset, 2, num_workers=2, worker_init_fn=first_worker_only)
    assert sharing_fault(other) != ""


@pytest.mark.parametrize(
    "dataset",
    [Shared(), SharedByAFunction(), Blocks(), Around(Shared()), Says(), ChainDataset([Shared()])],
)
def test_workers_that_share_are_taken(dataset: Any) -> None:
    assert sharing_fault(DataLoader(dataset, 2, num_workers=2)) == ""
    by_init = DataLoader(Counted(), 2, num_workers=2, worker_init_fn=set_range)
    assert sharing_fault(by_init) == ""


def test_a_loader_inside_a_users_own_is_looked_at() -> None:
    class Own:
        def __init__(self) -> None:
            self.inner = DataLoader(Counted(), 2, num_workers=2)

        def __iter__(self) -> Iterator[Any]:
            return iter(self.inner)

    assert "items of Counted" in sharing_fault(Own())


@pytest.mark.parametrize("key", ["data_loader", "valid_data_loader"])
def test_the_error_has_its_place_and_comes_before_training(key: str) -> None:
    section = f"{key}={{type: DataLoader, args: {{dataset: {{type: Few}}, num_workers: 2}}}}"
    with pytest.raises(ConfigError, match=rf"{key}\.args\.num_workers: each of the 2 workers"):
        make(section, "trainer.epoch_steps=3", "trainer.valid_batches=3")


@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:Length of Iterable")
def test_shares_that_are_not_even_do_not_pass_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    """Ten items in blocks of 3, 3, 3 and 1 make seven batches of two; even shares make six."""
    loader = as_batches(DataLoader(Blocks(10), 2, num_workers=4), 3)
    assert len(loader) == 6
    list(loader.batches(0, 13))
    loader.close()
    (record,) = caplog.records
    assert "yields more batches per pass than its length, 6" in record.message
    short = as_batches(DataLoader(Blocks(5), 2, num_workers=4), 3)  # 2, 2, 1 and none
    with pytest.raises(DataError, match="do not share the items evenly"):
        list(short.batches(0, 4))
    short.close()


@pytest.mark.parametrize("loader", [BaseDataLoader, DatasetLoader])
def test_a_stream_is_not_read_by_index(loader: Any) -> None:
    how = {"validation_split": 0.0} if loader is BaseDataLoader else {}
    with pytest.raises(DataError, match=r"Counted is an IterableDataset.*\{type: DataLoader, args"):
        loader(Counted(), 2, shuffle=False, num_workers=0, **how)


# --- Training on a stream without a length --------------------------------------------------------

ENDLESS = (
    "data_loader={type: DataLoader, args: {dataset: {type: Points}, batch_size: 4}}",
    "trainer={epochs: 3, epoch_steps: 5}",
)
FEW = (
    "valid_data_loader={type: DataLoader, args: {dataset: {type: Few, args: {n: 9}}, "
    "batch_size: 4}}"
)


@pytest.mark.parametrize("of_validation", [(), (FEW, "trainer.valid_batches=2")])
def test_a_stream_without_a_length_trains(of_validation: tuple[str, ...], tmp_path: Path) -> None:
    trainer = make(*ENDLESS, *of_validation)
    check(trainer)
    assert "one training batch: loss" in dry_run(make(*ENDLESS, *of_validation))
    trainer = run(tmp_path, *ENDLESS, *of_validation)
    assert (trainer.progress.step, trainer.progress.samples) == (15, 60)


def test_a_stream_without_a_length_resumes_to_the_same_bits(tmp_path: Path) -> None:
    for stop_at in (5, 8):
        assert_resumes(tmp_path / str(stop_at), *ENDLESS, stop_at=stop_at)


def test_the_length_of_an_epoch_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"data_loader: DataLoader has no length: .*epoch_steps"):
        make(ENDLESS[0])


def test_validation_data_without_a_length_ask_how_many_batches() -> None:
    with pytest.raises(ConfigError, match=r"valid_data_loader: .*no length.*valid_batches: 50"):
        make(*ENDLESS, FEW)


@pytest.mark.parametrize(("most", "n_samples"), [(2, 8), (3, 9), (50, 9)])
def test_a_validation_sees_no_sample_twice(most: int, n_samples: int) -> None:
    """A pass of nine samples has three batches; a training would begin it again."""
    trainer = make(*ENDLESS, FEW, f"trainer.valid_batches={most}")
    seen: list[float] = []
    step = trainer.valid_step

    def noting(batch: Any) -> Any:
        seen.extend(batch[0][:, 0, 0, 0].tolist())
        return step(batch)

    trainer.valid_step = noting
    for _ in range(2):
        values = trainer.evaluate(trainer.valid_loader, "valid")
    assert len(seen) == 2 * n_samples
    assert seen[:n_samples] == seen[n_samples:]
    assert len(set(seen)) == n_samples
    inputs, targets = zip(*itertools.islice(Points().items(), n_samples), strict=True)
    with torch.no_grad():
        outputs = trainer.model.eval()(torch.stack(inputs))
    loss = torch.nn.functional.cross_entropy(outputs, torch.tensor(targets))
    assert values["valid/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_valid_batches_cut_a_validation_of_known_length_short_and_no_test() -> None:

    trainer = make("trainer.valid_batches=1", "data_loader.args.validation_split=8")
    assert len(trainer.valid_loader) == 2
    loader, experiment = trainer.valid_loader, trainer.experiment
    assert experiment.batches_to_evaluate(loader, "valid") == 1
    assert experiment.batches_to_evaluate(loader, "test") == 2
    more = make("trainer.valid_batches=7", "data_loader.args.validation_split=8")
    assert more.experiment.batches_to_evaluate(more.valid_loader, "valid") == 2
