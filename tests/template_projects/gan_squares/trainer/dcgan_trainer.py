import torch

from base import BaseTrainer


class DCGANTrainer(BaseTrainer):
    def train_step(self, batch):
        real, _ = batch
        netG, netD, criterion = self.model.netG, self.model.netD, self.losses["bce_loss"]

        out_real = netD(real)
        fake = netG(torch.randn(real.size(0), netG.nz, 1, 1, device=self.device))
        out_fake = netD(fake.detach())
        errD_real = criterion(out_real, torch.full_like(out_real, 0.9))
        errD_fake = criterion(out_fake, torch.zeros_like(out_fake))
        self.backward([errD_real, errD_fake], only="D")
        self.update("D")

        out = netD(fake)
        errG = criterion(out, torch.ones_like(out))
        self.backward(errG, only="G")
        self.update("G")
        return {"loss_D": errD_real + errD_fake, "loss_G": errG, "D_x": out_real.sigmoid().mean()}
