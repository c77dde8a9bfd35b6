import torch
from check__plain import STATE, end, mean, same, trained

from data_loader.data_loaders import Market
from model.model import Baseline

data, model = Market("data/market.npz", False), trained(Baseline(12, 12))
people, cameras = torch.tensor(data.pids), torch.tensor(data.camids)
with torch.no_grad():
    features = model(torch.from_numpy(data.images))[1]


def triplet(part):
    far = torch.cdist(features[part], features[part])
    same_person = people[part][:, None] == people[part][None]
    positive = torch.where(same_person, far, -1).amax(1)
    negative = torch.where(same_person, 1e6, far).amin(1)
    return (positive - negative + 0.3).clamp(min=0).mean()


same("valid/loss", mean((triplet(p), len(p)) for p in torch.arange(len(people)).split(30)), 1e-3)
unit = features / features.norm(dim=1, keepdim=True)
scores = (unit @ unit.T).masked_fill(cameras[:, None] == cameras[None], -2)
same("valid/rank1", (people[scores.argmax(1)] == people).float().mean())

# The rates of before/train.py: a tenth for the base, twice for biases, which are not decayed.
for group in STATE["optimizer.main"]["param_groups"]:
    for name in group["param_names"]:
        lr = 0.01 * (0.1 if "base" in name else 1) * (2 if "bias" in name else 1)
        decay = 0 if "bias" in name else 5e-4
        assert abs(group["lr"] - lr) < 1e-9, name
        assert group["weight_decay"] == decay, name
end()
