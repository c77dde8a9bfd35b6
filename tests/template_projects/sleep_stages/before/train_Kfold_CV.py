def weights_init_normal(m):
    if type(m) == nn.Conv2d:
        torch.nn.init.normal_(m.weight.data, 0.0, 0.02)
    elif type(m) == nn.Conv1d:
        torch.nn.init.normal_(m.weight.data, 0.0, 0.02)
    elif type(m) == nn.BatchNorm1d:
        torch.nn.init.normal_(m.weight.data, 1.0, 0.02)
        torch.nn.init.constant_(m.bias.data, 0.0)


def main(config, fold_id):
    batch_size = config["data_loader"]["args"]["batch_size"]
    model = config.init_obj('arch', module_arch)
    model.apply(weights_init_normal)
    criterion = getattr(module_loss, config['loss'])
    metrics = [getattr(module_metric, met) for met in config['metrics']]
    trainable_params = filter(lambda p: p.requires_grad, model.parameters())
    optimizer = config.init_obj('optimizer', torch.optim, trainable_params)
    data_loader, valid_data_loader, data_count = data_generator_np(
        folds_data[fold_id][0], folds_data[fold_id][1], batch_size)
    weights_for_each_class = calc_class_weight(data_count)
    trainer = Trainer(model, criterion, metrics, optimizer, config=config, data_loader=data_loader,
                      fold_id=fold_id, valid_data_loader=valid_data_loader, class_weights=weights_for_each_class)
    trainer.train()


if __name__ == '__main__':
    args.add_argument('-f', '--fold_id', type=str, help='fold_id')
    args.add_argument('-da', '--np_data_dir', type=str, help='Directory containing numpy files')
    folds_data = load_folds_data(args2.np_data_dir, config["data_loader"]["args"]["num_folds"])
    main(config, fold_id)
