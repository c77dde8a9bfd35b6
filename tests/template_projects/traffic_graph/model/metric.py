import torch
from utils.losses import masked_mse


def masked_rmse(preds, labels, null_val=0.0):
    return torch.sqrt(masked_mse(preds=preds, labels=labels, null_val=null_val))


def masked_mape(preds, labels, null_val=0.0):
    mask = labels != null_val
    return (torch.abs(preds - labels)[mask] / labels[mask]).mean()
