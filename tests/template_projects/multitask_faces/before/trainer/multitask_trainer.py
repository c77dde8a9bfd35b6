class MultiTaskTrainer(BaseTrainer):
    def _train_epoch(self, epoch):
        self.model.train()
        for batch_idx, sample in enumerate(self.data_loader):
            image = sample['image'].to(self.device)
            age, gender = sample['age'].to(self.device), sample['gender'].to(self.device)
            self.optimizer.zero_grad()
            outputs = self.model(image)
            losses = self.criterion(outputs, {'age': age, 'gender': gender},
                                    log_vars=self.model.log_vars, reduction='mean')
            loss = sum(losses.values())
            loss.backward()
            self.optimizer.step()
            for k, v in losses.items():
                self.train_metrics.update('loss_' + k, v.item())
