import torch.nn as nn
from base import BaseModel


class LSTMForecaster(BaseModel):
    def __init__(self, config):
        super(LSTMForecaster, self).__init__()
        self.config = config
        opt = config["model"]
        self.lstm = nn.LSTM(len(opt["features"]), opt["hidden"], batch_first=True)
        self.out = nn.Linear(opt["hidden"], opt["horizon"])
        for p in self.parameters():
            nn.init.uniform_(p, -opt["init_range"], opt["init_range"])

    def forward(self, x):
        h, _ = self.lstm(x)
        return self.out(h[:, -1])
