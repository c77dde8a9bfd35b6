import pathlib

import numpy as np

rng = np.random.default_rng(3)
y, x = np.mgrid[:16, :16]
images = []
for _ in range(256):
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(3, 8), rng.uniform(0, 6)
    images.append(np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + phase))
pathlib.Path("data").mkdir(exist_ok=True)
np.savez("data/textures.npz", images=np.array(images, "float32"))
