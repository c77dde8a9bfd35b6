class CycleTrainer(BaseTrainer):
    def _train_epoch(self, epoch):
        for i, (real_A, real_B) in enumerate(self.data_loader):
            real_A, real_B = real_A.to(self.device), real_B.to(self.device)
            # generators
            self.set_requires_grad([self.D_A, self.D_B], False)
            self.optimizer_G.zero_grad()
            fake_B, fake_A = self.G_AB(real_A), self.G_BA(real_B)
            rec_A, rec_B = self.G_BA(fake_B), self.G_AB(fake_A)
            loss_gan = self.gan_loss(self.D_B(fake_B), True) + self.gan_loss(self.D_A(fake_A), True)
            loss_cycle = self.l1(rec_A, real_A) + self.l1(rec_B, real_B)
            (loss_gan + self.lambda_cycle * loss_cycle).backward()
            self.optimizer_G.step()
            # discriminators
            self.set_requires_grad([self.D_A, self.D_B], True)
            self.optimizer_D.zero_grad()
            loss_D = 0.5 * (self.gan_loss(self.D_B(real_B), True)
                            + self.gan_loss(self.D_B(self.pool_B.query(fake_B.detach())), False)
                            + self.gan_loss(self.D_A(real_A), True)
                            + self.gan_loss(self.D_A(self.pool_A.query(fake_A.detach())), False))
            loss_D.backward()
            self.optimizer_D.step()
            self.train_metrics.update('loss_G', loss_gan.item())
            self.train_metrics.update('loss_cycle', loss_cycle.item())
            self.train_metrics.update('loss_D', loss_D.item())
        return self.train_metrics.result()
