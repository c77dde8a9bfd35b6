import torch.nn as nn
import torch.nn.functional as F


class TinyEncoder(nn.Sequential):
    out_features = 16

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 5, stride=2, padding=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


class ResNetSimCLR(nn.Module):
    def __init__(self, base_model, out_dim):
        super(ResNetSimCLR, self).__init__()
        self.resnet_dict = {"tiny": TinyEncoder}
        self.features = self._get_basemodel(base_model)
        num_ftrs = self.features.out_features
        # projection MLP
        self.l1 = nn.Linear(num_ftrs, num_ftrs)
        self.l2 = nn.Linear(num_ftrs, out_dim)

    def _get_basemodel(self, model_name):
        try:
            return self.resnet_dict[model_name]()
        except KeyError:
            raise ValueError("Invalid model name")

    def forward(self, x):
        h = self.features(x)
        x = F.relu(self.l1(h))
        return h, self.l2(x)
