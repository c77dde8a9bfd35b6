import argparse
import collections

import data_loader.data_loaders as module_data
import model.loss as module_loss
import model.metric as module_metric
import model.model as module_arch
import torch
from parse_config import ConfigParser
from trainer import Trainer


def main(config):
    logger = config.get_logger('train')
    data_loader = config.init_obj('data_loader', module_data)
    valid_data_loader = data_loader.split_validation()

    model = config.init_obj('arch', module_arch)
    logger.info(model)

    loss_class = getattr(module_loss, config["loss"]["type"])
    criterion = loss_class(cls_num_list=data_loader.cls_num_list, **config["loss"]["args"])
    metrics = [getattr(module_metric, met) for met in config['metrics']]

    optimizer = config.init_obj('optimizer', torch.optim, model.parameters())
    warmup, gamma = 2, 0.1

    def lr_lambda(epoch):
        if epoch >= 5:
            return gamma
        return min(1, (epoch + 1) / warmup)
    lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda)

    trainer = Trainer(model, criterion, metrics, optimizer, config=config, data_loader=data_loader,
                      valid_data_loader=valid_data_loader, lr_scheduler=lr_scheduler)
    trainer.train()
