from base import BaseTrainer


class LongTailTrainer(BaseTrainer):
    def begin_epoch(self):
        self.losses["LDAMLoss"].function._hook_before_epoch(self.progress.epoch + 1)
