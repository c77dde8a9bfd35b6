import json

import torch
from check__plain import end, same, trained

from data_loader.data_loaders import PriceDataLoader
from model.model import LSTMForecaster

args = json.load(open("config.json"))
valid = PriceDataLoader(**args["data_loader"]["args"]).split_validation()
model = trained(LSTMForecaster(**args["arch"]["args"]))
with torch.no_grad():
    moves, wanted = model(torch.from_numpy(valid.x)), torch.from_numpy(valid.y)
same("valid/loss", (moves - wanted).pow(2).mean())
same("valid/direction", (moves.sign() == wanted.sign()).float().mean())
same("lr", 0.01 * 0.9**4)
same("step", 5 * 8)
end()
