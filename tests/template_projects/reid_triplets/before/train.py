# backbone at a tenth of the rate, the bottleneck's bias is never trained
params = []
for key, value in model.named_parameters():
    if not value.requires_grad:
        continue
    lr = config['optimizer']['args']['lr']
    weight_decay = 5e-4
    if 'base' in key:
        lr = lr * 0.1
    if "bias" in key:
        lr = lr * 2
        weight_decay = 0
    params += [{"params": [value], "lr": lr, "weight_decay": weight_decay}]
optimizer = getattr(torch.optim, config['optimizer']['type'])(params)
