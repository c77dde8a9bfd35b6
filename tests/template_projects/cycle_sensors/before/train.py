G_AB = config.init_obj('generator', module_arch)
G_BA = config.init_obj('generator', module_arch)
D_A = config.init_obj('discriminator', module_arch)
D_B = config.init_obj('discriminator', module_arch)
for net in (G_AB, G_BA, D_A, D_B):
    init_weights(net, init_type='normal', init_gain=0.02)

optimizer_G = torch.optim.Adam(itertools.chain(G_AB.parameters(), G_BA.parameters()), lr=opt['lr'], betas=(0.5, 0.999))
optimizer_D = torch.optim.Adam(itertools.chain(D_A.parameters(), D_B.parameters()), lr=opt['lr'], betas=(0.5, 0.999))


def init_weights(net, init_type='normal', init_gain=0.02):
    def init_func(m):
        classname = m.__class__.__name__
        if hasattr(m, 'weight') and (classname.find('Conv') != -1 or classname.find('Linear') != -1):
            init.normal_(m.weight.data, 0.0, init_gain)
            if hasattr(m, 'bias') and m.bias is not None:
                init.constant_(m.bias.data, 0.0)
    net.apply(init_func)
