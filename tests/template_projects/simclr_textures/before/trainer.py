import torch
from base import BaseTrainer
from losses.nt_xent import NTXentLoss


class SimCLRTrainer(BaseTrainer):
    def __init__(self, model, criterion, metric_ftns, optimizer, config, data_loader, valid_data_loader):
        super().__init__(model, criterion, metric_ftns, optimizer, config)
        self.data_loader, self.valid_data_loader = data_loader, valid_data_loader
        self.nt_xent = NTXentLoss(config['loss']['temperature'], config['loss']['use_cosine_similarity'])

    def _step(self, xis, xjs):
        ris, zis = self.model(xis)
        rjs, zjs = self.model(xjs)
        return self.nt_xent(zis, zjs)

    def _train_epoch(self, epoch):
        self.model.train()
        total = 0
        for (xis, xjs), _ in self.data_loader:
            self.optimizer.zero_grad()
            loss = self._step(xis.to(self.device), xjs.to(self.device))
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        log = {'loss': total / len(self.data_loader)}
        self.model.eval()
        with torch.no_grad():
            losses = [self._step(xis.to(self.device), xjs.to(self.device)).item()
                      for (xis, xjs), _ in self.valid_data_loader]
        log['val_loss'] = sum(losses) / len(losses)
        return log
