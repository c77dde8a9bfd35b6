from base import BaseTrainer


class Seq2SeqTrainer(BaseTrainer):
    def __init__(self, experiment, tf_decay=0.1, curriculum=(10,)):
        super().__init__(experiment)
        self.tf_decay, self.curriculum = tf_decay, curriculum

    def begin_epoch(self):
        epoch = self.progress.epoch + 1
        self.model.teacher_forcing = max(0.0, 1.0 - self.tf_decay * (epoch - 1))
        self.train_loader.dataset.set_max_len(self.curriculum[min(epoch, 3) - 1])

    def forward(self, batch):
        src, src_len, tgt = batch
        return self.model(src, src_len, tgt)
