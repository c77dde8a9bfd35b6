from base import BaseTrainer


class GraphTrainer(BaseTrainer):
    def compute_losses(self, outputs, batch):
        predict = self.train_loader.scaler.inverse_transform(outputs)
        return {"loss": self.losses["masked_mae"](predict, batch[1], null_val=0.0)}

    def predict(self, outputs):
        return self.train_loader.scaler.inverse_transform(outputs)
