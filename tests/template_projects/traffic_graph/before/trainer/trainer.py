import torch
from base import BaseTrainer
from utils.losses import masked_mae


class GraphTrainer(BaseTrainer):
    def __init__(self, model, criterion, metric_ftns, optimizer, config, data_loader, scaler):
        super().__init__(model, criterion, metric_ftns, optimizer, config)
        self.data_loader, self.scaler = data_loader, scaler

    def _train_epoch(self, epoch):
        self.model.train()
        for x, y in self.data_loader:
            self.optimizer.zero_grad()
            output = self.model(x.to(self.device))
            predict = self.scaler.inverse_transform(output)
            loss = masked_mae(predict, y.to(self.device), null_val=0.0)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5)
            self.optimizer.step()
            self.train_metrics.update('loss', loss.item())
            for met in self.metric_ftns:
                self.train_metrics.update(met.__name__, met(predict, y, 0.0))
        return self.train_metrics.result()
