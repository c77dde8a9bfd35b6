import torch
from check__plain import end, held_out, mean, same, trained

from data_loader.data_loaders import VesselDataLoader
from model.loss import DiceBCELoss
from model.metric import dice_coef
from model.model import UNet

batches = held_out(VesselDataLoader("data/DRIVE", 4, True, 0.25, 0, image_size=32))
assert sum(len(image) for image, _ in batches) == 6
model, loss = trained(UNet(1, 1, True)), DiceBCELoss(smooth=1.0)
with torch.no_grad():
    outputs = [(model(image), mask) for image, mask in batches]
same("valid/dice_coef", mean((dice_coef(o, m), len(m)) for o, m in outputs))
same("valid/loss", mean((loss(o, m), len(m)) for o, m in outputs))
assert "bilinear" in vars(model)  # the project's own UNet, not the one that is shipped
end()
