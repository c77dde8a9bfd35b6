import torch
import torch.nn.functional as F


def vae_loss(output, target, kld_weight=0.005) -> dict:
    """KL(N(mu, sigma), N(0, 1)) = log 1/sigma + (sigma^2 + mu^2)/2 - 1/2"""
    recons, _, mu, log_var = output
    recons_loss = F.mse_loss(recons, target)
    kld_loss = torch.mean(-0.5 * torch.sum(1 + log_var - mu**2 - log_var.exp(), dim=1), dim=0)
    loss = recons_loss + kld_weight * kld_loss
    return {"loss": loss, "recon": recons_loss.detach(), "kld": -kld_loss.detach()}
