import math

import numpy as np


def psnr(sr, hr):
    """of images from 0 to 1"""
    sr, hr = sr.detach().cpu().numpy(), hr.detach().cpu().numpy()
    mse = np.mean((np.clip(sr, 0, 1) - hr) ** 2)
    return 100 if mse == 0 else 10 * math.log10(1.0 / mse)
