import math

import torch
from check__plain import STATE, end, same, trained

from data_loader.data_loaders import SRDataset
from model.model import ESPCN

model = trained(ESPCN(2))
errors, psnrs = [], []
with torch.no_grad():
    images = SRDataset("data/val", 2)
    for small, large in (images[number] for number in range(len(images))):
        shown = model(small[None])[0]
        errors.append((shown - large).abs().mean().item())
        psnrs.append(-10 * math.log10((shown.clamp(0, 1) - large).pow(2).mean()))
same("valid/psnr", sum(psnrs) / 4)
groups = STATE["optimizer.main"]["param_groups"]
by_rate = {round(group["initial_lr"], 6): group for group in groups}
assert set(by_rate) == {0.003, 0.0001}
assert sorted(by_rate[0.0001]["param_names"]) == ["act1.weight", "act2.weight"]
assert by_rate[0.0001]["weight_decay"] == 0
end()
