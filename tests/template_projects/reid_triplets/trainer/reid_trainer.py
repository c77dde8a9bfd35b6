from base import BaseTrainer


class ReIDTrainer(BaseTrainer):
    def __init__(self, experiment, margin=0.3, beta=1.0):
        super().__init__(experiment)
        self.margin, self.beta = margin, beta

    def compute_losses(self, outputs, batch):
        score, feat = outputs
        _, pids, _ = batch
        if not self.model.training:  # the people of the test set are others: they have no score
            return {"triplet": self.losses["triplet_loss"](feat, pids, margin=self.margin)}
        return {
            "id": self.losses["cross_entropy_label_smooth"](score, pids),
            "triplet": self.beta * self.losses["triplet_loss"](feat, pids, margin=self.margin),
        }

    def predict(self, outputs):
        return outputs[1]
