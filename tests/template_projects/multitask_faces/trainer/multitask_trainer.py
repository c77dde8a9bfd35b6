from base import BaseTrainer


class MultiTaskTrainer(BaseTrainer):
    def forward(self, batch):
        return self.model(batch["image"])

    def compute_losses(self, outputs, batch):
        return self.losses["MultiTaskLoss"](
            outputs, batch, log_vars=self.model.log_vars, reduction="mean"
        )
