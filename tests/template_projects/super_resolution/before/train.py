# ...
model = config.init_obj('arch', module_arch)
model.apply(weights_init)

# get function handles of loss and metrics
criterion = getattr(nn, config['loss'])()

# PReLU slopes are trained without decay and at another rate
prelu = [p for n, p in model.named_parameters() if 'act' in n]
rest = [p for n, p in model.named_parameters() if 'act' not in n]
optimizer = torch.optim.Adam([{'params': rest}, {'params': prelu, 'lr': 1e-4, 'weight_decay': 0}],
                             lr=config['lr'], weight_decay=1e-6)


def weights_init(m):
    classname = m.__class__.__name__
    if classname.find('Conv') != -1:
        nn.init.orthogonal_(m.weight)
        if m.bias is not None:
            m.bias.data.fill_(0)
    elif classname.find('PReLU') != -1:
        m.weight.data.fill_(0.2)
