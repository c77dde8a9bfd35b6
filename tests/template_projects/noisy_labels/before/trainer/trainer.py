from base import BaseTrainer


class Trainer(BaseTrainer):
    def __init__(self, model, train_criterion, metrics, optimizer, config, data_loader, valid_data_loader, val_criterion):
        super().__init__(model, train_criterion, metrics, optimizer, config, val_criterion)
        self.data_loader, self.valid_data_loader = data_loader, valid_data_loader
        self.val_criterion = val_criterion

    def _train_epoch(self, epoch):
        self.model.train()
        total_loss = 0
        for batch_idx, (data, label, indexs, gt) in enumerate(self.data_loader):
            data, label = data.to(self.device), label.long().to(self.device)
            output = self.model(data)
            loss = self.train_criterion(indexs.cpu().detach().numpy().tolist(), output, label)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total_loss += loss.item()
            total_metrics_gt += self._eval_metrics(output, gt)
        return {'loss': total_loss / len(self.data_loader)}
