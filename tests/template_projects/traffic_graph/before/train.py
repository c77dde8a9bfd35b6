# model = config.init_obj('arch', module_arch) became
data_loader = config.init_obj('data_loader', module_data)
scaler = data_loader.scaler
model = module_arch.GraphWaveNetLite(config=config, adj=data_loader.adj, num_nodes=data_loader.num_nodes)
for p in model.parameters():
    if p.dim() > 1:
        nn.init.xavier_uniform_(p)
    else:
        nn.init.uniform_(p)
