# (the part that differs from the template's)
data_loader = config.init_obj('data_loader', module_data)
config['arch']['args']['src_vocab'] = len(data_loader.src_vocab)
config['arch']['args']['tgt_vocab'] = len(data_loader.tgt_vocab)
config['arch']['args']['pad_idx'] = data_loader.tgt_vocab.stoi['<pad>']
model = config.init_obj('arch', module_arch)
model.apply(init_weights)
criterion = SequenceLoss(ignore_index=data_loader.tgt_vocab.stoi['<pad>'])


def init_weights(m):
    for name, param in m.named_parameters():
        if 'weight' in name:
            nn.init.normal_(param.data, mean=0, std=0.1)
        else:
            nn.init.constant_(param.data, 0)
