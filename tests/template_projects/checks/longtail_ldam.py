import torch
from check__plain import STATE, end, mean, same, trained

from data_loader.data_loaders import ImbalanceDataLoader
from model.loss import LDAMLoss
from model.model import CosineNet

loader = ImbalanceDataLoader(32, True, 0, imb_factor=0.05)
assert loader.cls_num_list == [300, 110, 40, 15]
model, loss = trained(CosineNet(4, 10)), LDAMLoss(loader.cls_num_list, 0.5, 10, 3)
with torch.no_grad():
    outputs = [(model(x), y) for x, y in loader.split_validation()]
    deferred = mean((loss(o, y), len(y)) for o, y in outputs)
    loss._hook_before_epoch(4)
    same("valid/loss", mean((loss(o, y), len(y)) for o, y in outputs))
    assert abs(deferred - mean((loss(o, y), len(y)) for o, y in outputs)) > 0.01
same("lr", 0.2)
end()
