"""The names and parameters of the plain networks, and what the digits network learns."""

import pytest
import torch
from torch.nn import functional as F

from model.model import DigitsNet, MnistModel


def test_the_digits_networks_parts_are_named_as_the_configs_say():
    model = DigitsNet()
    assert list(dict(model.named_children())) == ["stem", "body", "dropout", "head"]
    assert model.find_parameters("*norm*").keys() >= {"stem.norm.weight", "body.1.norm.bias"}


def test_the_network_of_pytorch_template_gives_log_probabilities_and_has_its_parameters():
    model = MnistModel()
    sums = model.eval()(torch.randn(3, 1, 28, 28)).exp().sum(dim=1)
    torch.testing.assert_close(sums, torch.ones(3))
    # Counted by hand from the layers of the original: its checkpoints fit.
    assert model.n_parameters() == (25 * 10 + 10) + (250 * 20 + 20) + (320 * 50 + 50) + (510)
    assert list(dict(model.named_children())) == ["conv1", "conv2", "conv2_drop", "fc1", "fc2"]


@pytest.mark.slow
def test_the_digits_network_learns_real_digits():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    torch.manual_seed(0)
    digits = sklearn_datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels))
    train, test = order[360:], order[:360]

    model = DigitsNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    batches = [train[first : first + 128] for first in range(0, len(train), 128)] * 12
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=len(batches))
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        scheduler.step()
    right = model.eval()(images[test]).argmax(dim=1) == labels[test]
    assert right.float().mean() >= 0.975
