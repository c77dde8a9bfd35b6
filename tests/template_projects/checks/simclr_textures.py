import torch
import torch.nn.functional as F
from check__plain import end, held_out, mean, same, trained

from data_loader.data_loaders import TwoViewDataLoader
from model.resnet_simclr import ResNetSimCLR

model = trained(ResNetSimCLR("tiny", 16))


def nt_xent(left, right):  # as a loop over the images
    views, n = F.normalize(torch.cat([left, right]), dim=1), len(left)
    scores = views @ views.T / 0.5
    others = [scores[i][torch.arange(2 * n) != i].logsumexp(0) for i in range(2 * n)]
    return sum(others[i] - scores[i, (i + n) % (2 * n)] for i in range(2 * n)) / (2 * n)


with torch.no_grad():
    batches = held_out(TwoViewDataLoader("data/textures.npz", 32, True, 64), 0)
    same("valid/loss", mean((nt_xent(model(a)[1], model(b)[1]), len(a)) for (a, b), _ in batches))
end()
