def main(config):
    logger = config.get_logger('train')

    # setup data_loader instances
    data_loader = config.init_obj('data_loader', module_data)
    valid_data_loader = data_loader.split_validation()

    # build model architecture, then print to console
    config['arch']['args'].update(vocab=data_loader.dataset.vocab, n_classes=data_loader.dataset.n_classes)
    model = config.init_obj('arch', module_arch)
    logger.info(model)

    criterion = getattr(module_loss, config['loss'])
    metrics = [getattr(module_metric, met) for met in config['metrics']]

    # the embedding learns slower, norms and biases are not decayed
    no_decay = ['bias', 'norm']
    lr = config['optimizer']['args']['lr']
    params = [
        {'params': [p for n, p in model.named_parameters() if 'embed' in n], 'lr': lr * 0.1},
        {'params': [p for n, p in model.named_parameters()
                    if 'embed' not in n and not any(nd in n for nd in no_decay)]},
        {'params': [p for n, p in model.named_parameters()
                    if 'embed' not in n and any(nd in n for nd in no_decay)], 'weight_decay': 0.0},
    ]
    optimizer = config.init_obj('optimizer', torch.optim, params)

    t_total = len(data_loader) * config['trainer']['epochs']
    warmup = int(0.1 * t_total)
    lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: step / warmup if step < warmup else (t_total - step) / (t_total - warmup))

    trainer = Trainer(model, criterion, metrics, optimizer, config=config, data_loader=data_loader,
                      valid_data_loader=valid_data_loader, lr_scheduler=lr_scheduler)
    trainer.train()
