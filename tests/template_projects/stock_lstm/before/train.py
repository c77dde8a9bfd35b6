import argparse
import json
import logging

import torch

from data_loader import PriceDataLoader
from logger import Logger
from model.loss import *
from model.metric import *
from model.model import *
from trainer import Trainer

logging.basicConfig(level=logging.INFO, format='')


def main(config, resume):
    train_logger = Logger()
    data_loader = PriceDataLoader(config)
    valid_data_loader = data_loader.split_validation()
    model = eval(config['arch'])(config)
    model.summary()
    loss = eval(config['loss'])
    metrics = [eval(metric) for metric in config['metrics']]
    trainer = Trainer(model, loss, metrics, resume=resume, config=config, data_loader=data_loader,
                      valid_data_loader=valid_data_loader, train_logger=train_logger)
    trainer.train()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='PyTorch Template')
    parser.add_argument('-c', '--config', default=None, type=str)
    parser.add_argument('-r', '--resume', default=None, type=str)
    args = parser.parse_args()
    main(json.load(open(args.config)), args.resume)
