from base import BaseTrainer


class ELRTrainer(BaseTrainer):
    def compute_losses(self, outputs, batch):
        data, label, index, gt = batch
        if not self.model.training:
            return {"loss": self.losses["cross_entropy"](outputs, gt)}
        return {"loss": self.losses["elr_loss"](outputs, label, index)}
