from base import BaseTrainer


class Seq2SeqTrainer(BaseTrainer):
    """Teacher forcing falls from epoch to epoch, and sentences get longer."""

    def _train_epoch(self, epoch):
        self.model.train()
        self.model.teacher_forcing = max(0., 1. - self.config['trainer']['tf_decay'] * (epoch - 1))
        self.data_loader.dataset.set_max_len(self.config['trainer']['curriculum'][min(epoch, 3) - 1])
        self.train_metrics.reset()
        for batch_idx, (src, src_len, tgt) in enumerate(self.data_loader):
            src, tgt = src.to(self.device), tgt.to(self.device)
            self.optimizer.zero_grad()
            output = self.model(src, src_len, tgt)
            loss = self.criterion(output, tgt[:, 1:])
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config['trainer']['clip'])
            self.optimizer.step()
            self.train_metrics.update('loss', loss.item())
        return self.train_metrics.result()
