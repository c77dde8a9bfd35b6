"""MixUp and CutMix: keyed like all that is random, right in sum and share, off where asked."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from base.base_trainer import BaseTrainer
from base.config import load_config
from base.config.durations import RunLength
from base.datasets.dataset_loader import DatasetLoader
from base.datasets.in_memory import InMemoryDataset, SyntheticDataset
from base.datasets.mixing import CutMix, MixUp
from base.datasets.transforms import RandomFlip
from base.errors import ConfigError, DataError, TrainingError
from base.run.build import build_experiment
from base.run.checks import check
from base.run.loaders import build_loaders
from tests.base.toy import train_in

N, C = 60, 6
# Sample i is i + 1 everywhere, so that each pixel says which sample it comes from.
IMAGES = torch.arange(1, N + 1, dtype=torch.uint8).view(N, 1, 1, 1).repeat(1, 3, 8, 10)
LABELS = torch.arange(N) % C
DATA = InMemoryDataset(IMAGES, LABELS, C)


class OneByOne(torch.utils.data.Dataset):
    targets, classes = LABELS, DATA.classes

    def __len__(self):
        return N

    def __getitem__(self, index):
        return IMAGES[index].clone(), int(LABELS[index])


def loader(transforms, source=DATA, n_workers=0, **more):
    made = DatasetLoader(source, 15, True, 0.2, n_workers, transforms=transforms, **more)
    made.set_seed(3)
    return made


def epochs(made, first=0, count=None):
    return list(made.batches(first, count or len(made)))


def test_mixup_adds_a_sample_of_the_batch_and_its_class_by_the_same_share():
    plain, mixed = epochs(loader([])), epochs(loader([MixUp(alpha=0.5)]))
    shares = []
    for (images, labels), (mixtures, targets) in zip(plain, mixed, strict=True):
        assert targets.shape == (len(labels), C)
        torch.testing.assert_close(targets.sum(1), torch.ones(len(labels)))
        values, mixture = images[:, 0, 0, 0], mixtures[:, 0, 0, 0]
        assert (mixtures == mixture.view(-1, 1, 1, 1)).all()
        hot = nn.functional.one_hot(labels, C).float()
        for number in range(len(labels)):
            # Of all partners in the batch, one explains image and target by one share.
            others = (values != values[number]).nonzero()[:, 0]
            share = (mixture[number] - values[others]) / (values[number] - values[others])
            expected = share[:, None] * hot[number] + (1 - share)[:, None] * hot[others]
            errors = (expected - targets[number]).abs().amax(1)
            errors[(share < -1e-4) | (share > 1 + 1e-4)] = 1
            assert errors.min() < 1e-4
            shares.append(share[errors.argmin()])
    shares = torch.stack(shares)
    assert 0.3 < shares.mean() < 0.7
    assert shares.std() > 0.2  # Beta(0.5, 0.5) is at its ends


def test_the_partners_of_a_batch_are_each_another_sample_once():
    seen = []

    class Spy(MixUp):
        def mix(self, inputs, partner, drawn):
            seen.append(partner)
            return super().mix(inputs, partner, drawn)

    epochs(loader([Spy()]))
    for partner in seen:
        assert sorted(partner.tolist()) == list(range(len(partner)))
        assert (partner != torch.arange(len(partner))).all()
    assert not torch.equal(seen[0], seen[1])


def test_cutmix_pastes_a_rectangle_whose_area_is_the_share():
    areas = []
    for (images, labels), (pasted, targets) in zip(
        epochs(loader([])), epochs(loader([CutMix()])), strict=True
    ):
        for number, label in enumerate(labels.tolist()):
            is_other = pasted[number, 0] != images[number, 0]
            area = is_other.float().mean()
            rows, columns = is_other.any(1).sum(), is_other.any(0).sum()
            assert rows * columns == is_other.sum()
            expected = (1 - area) * nn.functional.one_hot(torch.tensor(label), C).float()
            if is_other.any():
                value = pasted[number, 0][is_other][0]
                other = (images[:, 0, 0, 0] == value).nonzero()[0, 0]
                expected = expected + area * nn.functional.one_hot(labels[other], C).float()
            torch.testing.assert_close(targets[number], expected)
            areas.append(area)
    assert 0.1 < torch.stack(areas).mean() < 0.6


MIXERS = [
    [MixUp()],
    [RandomFlip(), CutMix(alpha=0.4)],
    [v2.RandomChoice([MixUp(), CutMix()])],
    [v2.ColorJitter(0.3), MixUp(), CutMix()],
]


@pytest.mark.parametrize("transforms", MIXERS)
@pytest.mark.parametrize("n_workers", [0, 2])
def test_every_path_and_a_resume_give_the_same_mixtures(transforms, n_workers):
    expected = epochs(loader(transforms))
    for found in (
        epochs(loader(transforms, n_workers=n_workers)),
        epochs(loader(transforms, OneByOne(), n_workers)),
        [*epochs(loader(transforms), 0, 1), *epochs(loader(transforms), 1, len(expected) - 1)],
    ):
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])
    later = epochs(loader(transforms), len(expected))
    assert not torch.equal(later[0][1], expected[0][1])


def test_torchvisions_own_are_taken_for_ours():
    ours, theirs = loader([MixUp(C, 0.3)]), loader([v2.MixUp(num_classes=C, alpha=0.3)])
    assert torch.equal(epochs(ours)[0][1], epochs(theirs)[0][1])


def test_a_choice_takes_each_and_only_one():
    both = loader([v2.RandomChoice([MixUp(), CutMix()])])
    alone = [loader([MixUp()]), loader([CutMix()])]
    counts = [0, 0]
    found = epochs(both, 0, 24)
    singles = [epochs(each, 0, 24) for each in alone]
    for number, batch in enumerate(found):
        hits = [torch.equal(batch[0], each[number][0]) for each in singles]
        assert sum(hits) == 1
        counts[hits.index(True)] += 1
    assert min(counts) > 3


def test_validation_is_never_mixed():
    made = loader([MixUp()], valid_dataset=None)
    _, labels = next(made.split_validation().batches(0, 1))
    assert labels.dtype == torch.int64
    test = DatasetLoader(DATA, 15, test_dataset=DATA, training=False, transforms=[MixUp()])
    assert next(test.batches(0, 1))[1].dtype == torch.int64
    with pytest.raises(DataError, match="valid_transforms: MixUp and CutMix are for training"):
        loader([], valid_transforms=[MixUp()])


@pytest.mark.parametrize(
    ("duration", "n_mixed"), [("2 epochs", 4), ("25%", 4), ("10 steps", 4), (None, 6)]
)
def test_it_is_off_for_the_last_epochs(duration, n_mixed):
    made = loader([MixUp(off_for_last=duration)])  # 48 samples: 4 batches of 15 in an epoch
    n_steps, n_epochs = len(made), 6
    made.set_training_length(RunLength(n_steps, n_epochs * n_steps), len(made))
    are_mixed = []
    for epoch in range(n_epochs):
        targets = torch.cat([each[1] for each in epochs(made, epoch * n_steps)])
        are_mixed.append(bool(((targets > 0) & (targets < 1)).any()))
        assert targets.shape[1] == C
    assert are_mixed == [epoch < (n_mixed if duration != "10 steps" else 3) for epoch in range(6)]


def test_the_length_of_the_training_comes_from_the_config(tmp_path):
    def mixed_passes(text):
        (tmp_path / "x.yaml").write_text(CONFIG + text)
        made, valid = build_loaders(load_config(tmp_path / "x.yaml"))
        assert next(valid.batches(0, 1))[1].dtype == torch.int64
        return made._pipelines[0].mixers[0].n_passes

    assert mixed_passes("trainer: {epochs: 10}") == 7
    assert mixed_passes("trainer: {epochs: 20}\nmemory: {accumulate: 3}") == 17
    assert mixed_passes("trainer: {epochs: 10, epoch_steps: 9}") == 12  # 63 of 5 a pass


CONFIG = """
name: x
model: {type: Linear, args: {in_features: 4, out_features: 10}}
optimizer: {type: SGD, args: {lr: 0.1}}
data_loader:
  type: DatasetLoader
  args:
    dataset: {type: SyntheticDataset, args: {n_samples: 90, shape: [3, 8, 8]}}
    batch_size: 16
    split: 0.2
    transforms: [{type: MixUp, args: {alpha: 0.2, off_for_last: 3 epochs}}]
loss: cross_entropy
"""


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        ("nll_loss", "loss.0: nll_loss takes class indices, but targets mixed by MixUp are class"),
        ("{type: CrossEntropyLoss, args: {ignore_index: 3}}", "which have no ignore_index"),
    ],
)
def test_a_loss_that_takes_no_shares_is_an_error_of_the_config(tmp_path, loss, text):
    text_of_config = CONFIG.replace("loss: cross_entropy", f"loss: {loss}")
    (tmp_path / "x.yaml").write_text(text_of_config + "trainer: {epochs: 2}")
    config = load_config(tmp_path / "x.yaml")
    with config.placed(), pytest.raises(ConfigError, match=text) as error:
        build_loaders(config)
    assert "x.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: loader([MixUp(), RandomFlip()]), "list them last"),
        (lambda: loader([MixUp(alpha=0)]), "alpha must be a number above 0"),
        (lambda: loader([MixUp(off_for_last="2")]), "off_for_last: expected a duration"),
        (lambda: loader([MixUp()], InMemoryDataset(IMAGES, LABELS)), "give num_classes"),
        (lambda: loader([MixUp(4)]), "MixUp has classes 0 to 3, but targets are 0 to 5"),
        (lambda: loader([v2.RandomApply([MixUp()])]), "RandomApply cannot contain MixUp"),
        (
            lambda: loader([CutMix()], InMemoryDataset(IMAGES, IMAGES[:, 0].long() % 3, 3)),
            "MixUp and CutMix mix class numbers, but the targets are spatial",
        ),
        (lambda: epochs(loader([CutMix(C)], InMemoryDataset(torch.rand(N, 4), LABELS))), "images"),
    ],
)
def test_what_cannot_be_mixed_is_told(make, text):
    with pytest.raises(DataError, match=text):
        make()


def test_rows_of_numbers_are_mixed_too():
    rows, targets = torch.rand(N, 4), torch.rand(N, 2)
    made = loader([MixUp(alpha=2.0)], InMemoryDataset(torch.cat([rows, targets], 1), targets))
    for inputs, mixed in epochs(made):
        torch.testing.assert_close(inputs[:, 4:], mixed)


def test_cross_entropy_of_a_mixture_is_the_mixture_of_its_cross_entropies():
    images, targets = epochs(loader([MixUp()]))[0]
    scores = torch.randn(len(images), C)
    by_class = torch.stack(
        [nn.functional.cross_entropy(scores, torch.full((len(images),), c), reduction="none")
         for c in range(C)], 1,
    )  # fmt: skip
    found = nn.functional.cross_entropy(scores, targets)
    torch.testing.assert_close(found, (by_class * targets).sum(1).mean())


def test_shares_are_of_the_distribution_that_is_asked_for():
    made = DatasetLoader(SyntheticDataset(2000), 500, transforms=[MixUp(alpha=0.2)])
    made.set_seed(0)
    shares = torch.cat([targets for _, targets in made.batches(0, 4)]).amax(1)
    drawn = np.random.RandomState(0).beta(0.2, 0.2, 100_000)
    # The larger share, where the partner has another class, in nine of ten cases.
    expected = 0.9 * np.maximum(drawn, 1 - drawn).mean() + 0.1
    assert abs(float(shares.mean()) - expected) < 0.02


@pytest.mark.parametrize("is_told", [True, False])
def test_a_metric_that_takes_no_shares_is_told_before_training(tmp_path, is_told):
    text = (
        CONFIG.replace("shape: [3, 8, 8]", "shape: [4]")
        + "metrics: [{type: MeanLoss, args: {loss: nll_loss}}]\n"
    )
    switch = "true" if is_told else "false"
    text += f"trainer: {{epochs: 2, train_metrics: {switch}, monitor: min valid/loss}}"
    (tmp_path / "x.yaml").write_text(text)
    trainer = BaseTrainer(build_experiment(load_config(tmp_path / "x.yaml"), torch.device("cpu")))
    if is_told:
        with pytest.raises(TrainingError, match="targets mixed by MixUp are class probabilities"):
            check(trainer)
    else:
        check(trainer)
        assert trainer.training_state.valid_metrics
        train_in(trainer)
