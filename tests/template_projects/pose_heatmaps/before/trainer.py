class PoseTrainer(BaseTrainer):
    def _train_epoch(self, epoch):
        self.model.train()
        for i, (input, target, target_weight, meta) in enumerate(self.train_loader):
            output = self.model(input.to(self.device))
            target, target_weight = target.to(self.device), target_weight.to(self.device)
            loss = self.criterion(output, target, target_weight)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            acc = pck(output, target, target_weight)
            self.acc.update(acc)
