from base import BaseTrainer


class SimCLRTrainer(BaseTrainer):
    def forward(self, batch):
        (xis, xjs), _ = batch
        return self.model(xis)[1], self.model(xjs)[1]

    def compute_losses(self, outputs, batch):
        zis, zjs = outputs
        return self.losses["NTXentLoss"](zis, zjs)
