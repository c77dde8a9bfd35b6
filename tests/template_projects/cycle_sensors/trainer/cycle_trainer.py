from base import BaseTrainer
from utils.image_pool import ImagePool


class CycleTrainer(BaseTrainer):
    def __init__(self, experiment, lambda_cycle=10.0, pool_size=20):
        super().__init__(experiment)
        self.lambda_cycle = lambda_cycle
        self.pool_A, self.pool_B = ImagePool(pool_size), ImagePool(pool_size)
        self.register("pool", {"A": self.pool_A, "B": self.pool_B})

    def train_step(self, batch):
        net, gan_loss, l1 = self.model, self.losses["GANLoss"], self.losses["l1_loss"]
        real_A, real_B = batch

        fake_B, fake_A = net.G_AB(real_A), net.G_BA(real_B)
        rec_A, rec_B = net.G_BA(fake_B), net.G_AB(fake_A)
        loss_gan = gan_loss(net.D_B(fake_B), True) + gan_loss(net.D_A(fake_A), True)
        loss_cycle = l1(rec_A, real_A) + l1(rec_B, real_B)
        self.backward(loss_gan + self.lambda_cycle * loss_cycle, only="G")
        self.update("G")

        loss_D = 0.5 * (
            gan_loss(net.D_B(real_B), True)
            + gan_loss(net.D_B(self.pool_B.query(fake_B.detach())), False)
            + gan_loss(net.D_A(real_A), True)
            + gan_loss(net.D_A(self.pool_A.query(fake_A.detach())), False)
        )
        self.backward(loss_D, only="D")
        self.update("D")
        return {"loss_G": loss_gan, "loss_cycle": loss_cycle, "loss_D": loss_D}
