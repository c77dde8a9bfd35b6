if __name__ == '__main__':
    args = argparse.ArgumentParser(description='PyTorch Template')
    args.add_argument('-c', '--config', default=None, type=str)
    args.add_argument('-f', '--fold', default=0, type=int)
    args.add_argument('-r', '--resume', default=None, type=str)
    CustomArgs = collections.namedtuple('CustomArgs', 'flags type target')
    options = [CustomArgs(['--lr'], type=float, target='optimizer;args;lr')]
    config = ConfigParser.from_args(args, options)

    for fold in range(config['n_folds']):
        config['data_loader']['args']['fold'] = fold
        config['name'] = 'BraTS_VNet_fold%d' % fold
        main(config)


def main(config):
    data_loader = config.init_obj('data_loader', module_data)
    valid_data_loader = data_loader.split_validation()
    model = config.init_obj('arch', module_arch)
    model.apply(InitWeights_He(1e-2))
    criterion = config.init_obj('loss', losses)
    optimizer = config.init_obj('optimizer', torch.optim, model.parameters())
    max_epoch = config['trainer']['epochs']
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: (1 - e / max_epoch) ** 0.9)
    Trainer(model, criterion, metrics, optimizer, config=config, data_loader=data_loader,
            valid_data_loader=valid_data_loader, lr_scheduler=scheduler).train()


class InitWeights_He(object):
    def __init__(self, neg_slope=1e-2):
        self.neg_slope = neg_slope

    def __call__(self, module):
        if isinstance(module, nn.Conv3d) or isinstance(module, nn.ConvTranspose3d):
            module.weight = nn.init.kaiming_normal_(module.weight, a=self.neg_slope)
            if module.bias is not None:
                module.bias = nn.init.constant_(module.bias, 0)
