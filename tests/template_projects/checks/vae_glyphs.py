import torch
from check__plain import LAST, end, held_out, same, trained

from data_loader.data_loaders import GlyphDataLoader
from model.model import ConvVAE

model = trained(ConvVAE(4, [8, 16]))
images = torch.cat([image for image, _ in held_out(GlyphDataLoader(32, True, 0.2), 123)])
with torch.no_grad():
    mean, log_var = model.encode(images)
    normal = torch.distributions.Normal(mean, log_var.mul(0.5).exp())
    kld = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1)).sum(1).mean()
same("valid/kld", -kld)
same("valid/loss", LAST["valid/recon"] + 0.01 * kld)
end()
