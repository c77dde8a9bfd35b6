import os
import numpy as np

rng = np.random.RandomState(8)
os.makedirs("data/brats", exist_ok=True)
z, y, x = np.mgrid[:8, :8, :8]
for case in range(16):
    c, r = rng.uniform(2.5, 5.5, 3), rng.uniform(2, 3.2)
    d = np.sqrt((z - c[0]) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2)
    seg = (d < r).astype("uint8") + (d < r / 2)  # oedema, core within it
    flair = (seg > 0) * 2.0 + rng.randn(8, 8, 8) * 0.5
    t1ce = (seg > 1) * 2.0 + rng.randn(8, 8, 8) * 0.5
    np.savez("data/brats/case_%02d.npz" % case, image=np.stack([flair, t1ce]), seg=seg)
