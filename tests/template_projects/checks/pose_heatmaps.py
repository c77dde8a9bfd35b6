import torch
from check__plain import end, same, trained

from data_loader.data_loaders import StickFigures
from model.model import Hourglass

data, model = StickFigures("val"), trained(Hourglass(3))
images, maps, visible = (torch.stack([torch.as_tensor(item[k]) for item in data]) for k in range(3))
with torch.no_grad():
    found = model(images)
seen = visible[..., None]  # a hidden joint counts as if it were found
same("valid/loss", 0.5 * ((found - maps) * seen).pow(2).mean())
wrong = (found * (1 - seen) - maps * (1 - seen)).abs().sum()
assert wrong > 0
end()
