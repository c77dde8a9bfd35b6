netG = config.init_obj('arch_G', module_arch)
netD = config.init_obj('arch_D', module_arch)
netG.apply(weights_init)
netD.apply(weights_init)
optimizer_G = config.init_obj('optimizer_G', torch.optim, netG.parameters())
optimizer_D = config.init_obj('optimizer_D', torch.optim, netD.parameters())
lambda_rule = lambda epoch: 1.0 - max(0, epoch + 1 - config['lr_scheduler']['decay_start']) / 3.0
schedulers = [LambdaLR(opt, lr_lambda=lambda_rule) for opt in (optimizer_G, optimizer_D)]


def weights_init(m):
    classname = m.__class__.__name__
    if classname.find('Conv') != -1:
        nn.init.normal_(m.weight.data, 0.0, 0.02)
    elif classname.find('BatchNorm') != -1:
        nn.init.normal_(m.weight.data, 1.0, 0.02)
        nn.init.constant_(m.bias.data, 0)
