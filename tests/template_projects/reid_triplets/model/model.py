import torch.nn as nn
from base import BaseModel


def weights_init_kaiming(m):
    classname = m.__class__.__name__
    if classname.find("Linear") != -1:
        nn.init.kaiming_normal_(m.weight, a=0, mode="fan_out")
        nn.init.constant_(m.bias, 0.0)
    elif classname.find("BatchNorm") != -1 and m.affine:
        nn.init.constant_(m.weight, 1.0)
        nn.init.constant_(m.bias, 0.0)


class Baseline(BaseModel):
    def __init__(self, num_classes, feat_dim):
        super(Baseline, self).__init__()
        self.base = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, feat_dim, 3, padding=1),
        )
        self.bottleneck = nn.BatchNorm1d(feat_dim * 2)
        self.bottleneck.bias.requires_grad_(False)  # no shift
        self.classifier = nn.Linear(feat_dim * 2, num_classes, bias=False)
        self.bottleneck.apply(weights_init_kaiming)

    def forward(self, x):
        x = self.base(x)
        global_feat = x.mean(3).view(x.size(0), -1, 2, x.size(2) // 2).mean(-1).flatten(1)
        feat = self.bottleneck(global_feat)
        if self.training:
            return self.classifier(feat), global_feat
        return None, feat
