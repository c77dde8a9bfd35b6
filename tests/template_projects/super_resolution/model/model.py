import torch.nn as nn


class ESPCN(nn.Module):
    def __init__(self, upscale_factor, n_feats=12):
        super(ESPCN, self).__init__()
        self.head = nn.Conv2d(1, n_feats, (5, 5), (1, 1), (2, 2))
        self.act1 = nn.PReLU()
        self.body = nn.Conv2d(n_feats, n_feats, (3, 3), (1, 1), (1, 1))
        self.act2 = nn.PReLU(n_feats)
        self.tail = nn.Conv2d(n_feats, upscale_factor**2, (3, 3), (1, 1), (1, 1), bias=False)
        self.pixel_shuffle = nn.PixelShuffle(upscale_factor)

    def forward(self, x):
        x = self.act1(self.head(x))
        x = self.act2(self.body(x))
        return self.pixel_shuffle(self.tail(x))
