import os
import numpy as np

rng = np.random.RandomState(20)
os.makedirs("data", exist_ok=True)
t = np.arange(60) / 30.0
for subject in range(8):
    y = rng.choice(3, 40, p=[0.6, 0.3, 0.1])
    freq = np.array([2, 5, 9])[y][:, None] * rng.uniform(0.95, 1.05, (40, 1))
    x = np.sin(2 * np.pi * (freq * t + rng.rand(40, 1))) + 0.4 * rng.randn(40, 60)
    np.savez("data/SC%02d.npz" % subject, x=x.astype("float32")[:, :, None], y=y, fs=30)
