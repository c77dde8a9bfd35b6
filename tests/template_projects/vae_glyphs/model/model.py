import torch
from torch import nn
from base import BaseModel


class ConvVAE(BaseModel):
    def __init__(self, latent_dim, hidden_dims=None):
        super().__init__()
        modules, in_channels = [], 1
        for h_dim in hidden_dims or [32, 64]:
            modules.append(
                nn.Sequential(
                    nn.Conv2d(in_channels, h_dim, kernel_size=3, stride=2, padding=1),
                    nn.BatchNorm2d(h_dim),
                    nn.LeakyReLU(),
                )
            )
            in_channels = h_dim
        self.encoder = nn.Sequential(*modules)
        self.fc_mu = nn.Linear(hidden_dims[-1] * 9, latent_dim)
        self.fc_var = nn.Linear(hidden_dims[-1] * 9, latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 64), nn.LeakyReLU(), nn.Linear(64, 144), nn.Sigmoid()
        )

    def encode(self, x):
        h = torch.flatten(self.encoder(x), start_dim=1)
        return [self.fc_mu(h), self.fc_var(h)]

    def reparameterize(self, mu, logvar):
        std = torch.exp(0.5 * logvar)
        eps = torch.randn_like(std)
        return eps * std + mu

    def forward(self, input, **kwargs):
        mu, log_var = self.encode(input)
        z = self.reparameterize(mu, log_var)
        return [self.decoder(z).view(-1, 1, 12, 12), input, mu, log_var]

    def sample(self, num_samples, device):
        return self.decoder(torch.randn(num_samples, self.fc_mu.out_features).to(device))
