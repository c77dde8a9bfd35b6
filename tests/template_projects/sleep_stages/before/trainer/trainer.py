class Trainer(BaseTrainer):
    def _train_epoch(self, epoch, total_epochs):
        for batch_idx, (data, target) in enumerate(self.data_loader):
            self.optimizer.zero_grad()
            output = self.model(data.to(self.device))
            loss = self.criterion(output, target.to(self.device), self.class_weights, self.device)
            loss.backward()
            self.optimizer.step()
            if epoch > 2 and batch_idx == 0:        # reduce the rate after the first epochs
                for g in self.lr_scheduler.param_groups:
                    g['lr'] = 0.0001
