"""Networks. A config can name each class defined here, with its arguments."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from base import BaseModel, Pattern
from model.layers import ConvBlock, check_images


class SmallCNN(BaseModel):
    """Convolutions and global average pooling, for images of any size.

    Args:
        width: channels of the first layer; each stage halves the image and doubles them.
    """

    def __init__(
        self,
        in_channels: int = 3,
        n_classes: int = 10,
        width: int = 32,
        n_stages: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.stem = ConvBlock(in_channels, width)
        self.body = nn.Sequential()
        for n_out in (width * 2**stage for stage in range(1, n_stages + 1)):
            self.body.append(ConvBlock(n_out // 2, n_out, stride=2))
            self.body.append(ConvBlock(n_out, n_out))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width * 2**n_stages, n_classes)

    def forward(self, images: Tensor) -> Tensor:  # (batch, channel, h, w) -> (batch, n_classes)
        check_images(self, images, self.in_channels)
        features = self.body(self.stem(images))
        return self.head(self.dropout(features.mean(dim=(2, 3))))

    @property
    def layer_order(self) -> list[Pattern]:
        """All parameters from the input to the output, for ``optimizer.layer_decay``."""
        return ["stem.*", *(f"body.{number}.*" for number in range(len(self.body))), "head.*"]


class DigitsNet(SmallCNN):
    """A small network for 8x8 digits, with a validation accuracy of about 0.99."""

    def __init__(self, width: int = 32, n_classes: int = 10, dropout: float = 0.1) -> None:
        super().__init__(1, n_classes, width, n_stages=1, dropout=dropout)


class LeNet(BaseModel):
    """LeNet-5 (LeCun et al., 1998) with ReLU and max pooling, for 28x28 grayscale images."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = MLP(16 * 5 * 5, hidden=[120, 84], n_outputs=n_classes)

    def forward(self, images: Tensor) -> Tensor:  # (batch, 1, 28, 28) -> (batch, n_classes)
        check_images(self, images, 1, (28, 28))
        return self.head(self.features(images))


class MnistModel(BaseModel):
    """The example network of pytorch-template; returns log-probabilities, for ``nll_loss``."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.conv2_drop = nn.Dropout2d()
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, num_classes)

    def forward(self, images: Tensor) -> Tensor:  # (batch, 1, 28, 28) -> (batch, num_classes)
        x = F.relu(F.max_pool2d(self.conv1(images), 2))
        x = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.dropout(x, training=self.training)
        return F.log_softmax(self.fc2(x), dim=1)


class MLP(BaseModel):
    """Linear layers with ReLU between them; flattens each sample first.

    Args:
        n_inputs: size of a flattened sample; None infers it from the first batch.
    """

    def __init__(
        self, n_inputs: int | None, hidden: list[int], n_outputs: int, dropout: float = 0
    ) -> None:
        super().__init__()
        sizes: list[int | None] = [n_inputs, *hidden]
        layers: list[nn.Module] = []
        for n_in, n_out in zip(sizes, hidden, strict=False):
            layers += [_linear(n_in, n_out), nn.ReLU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*layers)
        self.head = _linear(sizes[-1], n_outputs)

    def forward(self, inputs: Tensor) -> Tensor:  # (batch, ...) -> (batch, n_outputs)
        return self.head(self.hidden(inputs.flatten(1)))


def _linear(n_in: int | None, n_out: int) -> nn.Module:
    return nn.LazyLinear(n_out) if n_in is None else nn.Linear(n_in, n_out)
