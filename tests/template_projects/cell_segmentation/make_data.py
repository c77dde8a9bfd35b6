"""Draw bright discs on a dark ground, and the mask of each."""

import os

import numpy as np
from PIL import Image

rng = np.random.RandomState(11)
for folder in ("images", "masks"):
    os.makedirs(os.path.join("data", folder), exist_ok=True)
y, x = np.mgrid[:24, :24]
for number in range(24):
    mask = np.zeros((24, 24), dtype=np.uint8)
    for _ in range(rng.randint(1, 4)):
        cy, cx, radius = rng.randint(4, 20), rng.randint(4, 20), rng.randint(2, 5)
        mask |= ((y - cy) ** 2 + (x - cx) ** 2 <= radius**2).astype(np.uint8)
    image = rng.randint(0, 80, size=(24, 24, 3)) + 130 * mask[..., None]
    Image.fromarray(image.astype(np.uint8)).save("data/images/%03d.png" % number)
    Image.fromarray(mask).save("data/masks/%03d.png" % number)
