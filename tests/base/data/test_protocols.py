"""What a data set or a loader offers is found by its members, whatever it inherits."""

import torch
from torch.utils.data import TensorDataset

from base.base_data_loader import BaseDataLoader
from base.data.protocols import (
    Cacheable,
    HasIds,
    HasImages,
    HasSamples,
    SupportsBatches,
    SupportsClosing,
    SupportsOrder,
    SupportsPlacing,
    SupportsPositions,
    SupportsRandomBatches,
    SupportsSeeding,
    SupportsSkipping,
    members,
    offered,
    underlying,
)
from base.data.replayed_loader import ReplayedLoader
from base.datasets.image_files import ImageFiles
from base.datasets.in_memory import InMemoryDataset
from base.datasets.pipeline import Pipeline, TransformedDataset
from base.datasets.shards.reader import ShardDataset


class Forwarding:
    """A wrapper as users write them, which has what its data set has."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


def test_members_are_those_of_a_protocol_and_of_what_it_extends():
    assert members(SupportsBatches) == ("get_batch",)
    assert set(members(Cacheable)) == {"image", "image_shape", "fingerprint", "ids", "place"}


def test_what_the_engines_data_sets_offer_is_seen():
    images = InMemoryDataset(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4))
    transformed = TransformedDataset(images, Pipeline())
    assert offered(images, SupportsBatches) is images
    assert offered(images, SupportsRandomBatches) is None
    for ability in (SupportsRandomBatches, SupportsPlacing, HasIds):
        assert offered(transformed, ability) is transformed
    assert offered(transformed, SupportsOrder) is None
    assert underlying(transformed) is images
    for kind in (ImageFiles, ShardDataset):
        assert all(hasattr(kind, name) for name in members(HasImages))


def test_a_property_that_has_no_value_is_not_offered():
    nameless = TransformedDataset(TensorDataset(torch.zeros(3, 2)), Pipeline())
    assert offered(nameless, HasIds) is None


def test_a_wrapper_that_forwards_offers_what_is_in_it():
    data = InMemoryDataset(torch.zeros(4, 2), torch.arange(4))
    wrapper = Forwarding(data)
    assert offered(wrapper, SupportsBatches) is wrapper


def test_our_loaders_offer_what_is_asked_of_loaders():
    own = BaseDataLoader(TensorDataset(torch.zeros(8, 2)), 2, True, 0.25, 0)
    abilities = (SupportsPositions, SupportsClosing, SupportsSeeding, SupportsSkipping, HasSamples)
    for ability in abilities:
        assert offered(own, ability) is own
        assert offered(own.split_validation(), ability) is not None
    replayed = ReplayedLoader([1, 2], seed=0)
    assert offered(replayed, SupportsPositions) is replayed
    assert offered(replayed, SupportsSkipping) is None


def test_the_validation_loader_has_what_a_subclass_set_and_state_of_its_own():
    class Own(BaseDataLoader):
        def __init__(self):
            self.n_classes = 3
            dataset = TensorDataset(torch.arange(10.0))
            super().__init__(dataset, 2, True, 0.4, 0, drop_last=True, sampling=[1.0] * 10)

    loader = Own()
    list(loader)
    valid = loader.split_validation()
    assert type(valid) is Own
    assert valid.n_classes == 3
    assert (valid.shuffle, valid.drop_last, valid.n_samples, len(valid)) == (False, False, 4, 2)
    first, second = (torch.cat([x for (x,) in valid]).tolist() for _ in range(2))
    assert first == second == sorted(first)
    assert not set(first) & {x for batch in loader for x in batch[0].tolist()}
    assert valid.split_validation() is None
    loader.set_seed(5)
    assert loader.split_validation() is valid
    moved = torch.cat([x for (x,) in valid]).tolist()
    assert moved != first
    assert not set(moved) & {x for batch in loader for x in batch[0].tolist()}
