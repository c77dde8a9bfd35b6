from base import BaseModel
from model.model import Discriminator, Generator


class DCGAN(BaseModel):
    def __init__(self, nz=8, ngf=8, ndf=8):
        super().__init__()
        self.netG, self.netD = Generator(nz, ngf), Discriminator(ndf)
