from utils.losses import masked_mae, masked_mse
