from losses.nt_xent import NTXentLoss
