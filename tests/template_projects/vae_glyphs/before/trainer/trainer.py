import numpy as np
import torch
from base import BaseTrainer
from utils import MetricTracker, inf_loop


class VAETrainer(BaseTrainer):
    def __init__(self, model, criterion, metric_ftns, optimizer, config, device,
                 data_loader, valid_data_loader=None, lr_scheduler=None, len_epoch=None):
        super().__init__(model, criterion, metric_ftns, optimizer, config)
        self.config = config
        self.device = device
        self.data_loader = data_loader
        self.len_epoch = len(self.data_loader)
        self.valid_data_loader = valid_data_loader
        self.lr_scheduler = lr_scheduler
        self.train_metrics = MetricTracker('loss', 'recon', 'kld', writer=self.writer)
        self.valid_metrics = MetricTracker('loss', 'recon', 'kld', writer=self.writer)

    def _train_epoch(self, epoch):
        self.model.train()
        self.train_metrics.reset()
        for batch_idx, (data, _) in enumerate(self.data_loader):
            data = data.to(self.device)

            self.optimizer.zero_grad()
            output = self.model(data)
            losses = self.criterion(output, data)
            losses['loss'].backward()
            self.optimizer.step()

            for key, value in losses.items():
                self.train_metrics.update(key, value.item())
        log = self.train_metrics.result()
        val_log = self._valid_epoch(epoch)
        log.update(**{'val_' + k: v for k, v in val_log.items()})
        return log

    def _valid_epoch(self, epoch):
        self.model.eval()
        self.valid_metrics.reset()
        with torch.no_grad():
            for batch_idx, (data, _) in enumerate(self.valid_data_loader):
                data = data.to(self.device)
                losses = self.criterion(self.model(data), data)
                for key, value in losses.items():
                    self.valid_metrics.update(key, value.item())
        return self.valid_metrics.result()
