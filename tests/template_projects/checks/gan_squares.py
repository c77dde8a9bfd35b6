import torch
from check__plain import LAST, ROWS, STATE, end, same

from model.model import Discriminator, Generator

same("lr/G", 0.002 * (1 - 2 / 3))
same("lr/D", 0.001 * (1 - 2 / 3))
weights = STATE["model"]
generator, discriminator = Generator(8, 8), Discriminator(8)
for net, name in ((generator, "netG."), (discriminator, "netD.")):
    own = {k.removeprefix(name): v for k, v in weights.items() if k.startswith(name)}
    net.load_state_dict(own)  # the names of before
assert sum(map(len, (generator.state_dict(), discriminator.state_dict()))) == len(weights)
# Of log(D) and log(1 - D) at D = 1/2: 2 log 2 for the critic, log 2 for the generator, roughly.
assert 0.5 < LAST["train/loss_D"] < 1.6
assert len({row["train/loss_G"] for row in ROWS}) == 4
end()
