class ReIDTrainer(BaseTrainer):
    def _train_epoch(self, epoch):
        self.model.train()
        for batch_idx, (data, pids, camids) in enumerate(self.data_loader):
            data, pids = data.to(self.device), pids.to(self.device)
            self.optimizer.zero_grad()
            score, feat = self.model(data)
            loss_id = self.criterion_id(score, pids)
            loss_tri = self.criterion_triplet(feat, pids, margin=self.config['loss']['margin'])
            loss = loss_id + self.config['loss']['beta'] * loss_tri
            loss.backward()
            self.optimizer.step()
        return self._valid_epoch(epoch)

    def _valid_epoch(self, epoch):
        self.model.eval()
        feats, pids, camids = [], [], []
        with torch.no_grad():
            for data, pid, camid in self.valid_data_loader:
                feats.append(self.model(data.to(self.device)))
                pids.append(pid), camids.append(camid)
        return {'val_rank1': rank1(torch.cat(feats), torch.cat(pids), torch.cat(camids))}
