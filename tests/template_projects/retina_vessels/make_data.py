"""24 fundus photographs in small, DRIVE's layout: images/XX_training.png, 1st_manual/XX_manual1.png"""

import os

import numpy as np
from PIL import Image

rng = np.random.RandomState(21)
root = os.path.join("data", "DRIVE")
os.makedirs(os.path.join(root, "images"), exist_ok=True)
os.makedirs(os.path.join(root, "1st_manual"), exist_ok=True)

y, x = np.mgrid[:32, :32]
for i in range(24):
    vessel = np.zeros((32, 32), bool)
    for _ in range(3):
        slope, start, bend = rng.uniform(-1, 1), rng.uniform(0, 32), rng.uniform(-3, 3)
        path = start + slope * x + bend * np.sin(x / 5.0)
        vessel |= np.abs(y - path) < 1.5
    image = 120 - 50 * vessel + 25 * rng.rand(32, 32)
    Image.fromarray(image.astype("uint8")).save(
        os.path.join(root, "images", "%02d_training.png" % i)
    )
    Image.fromarray((vessel * 255).astype("uint8")).save(
        os.path.join(root, "1st_manual", "%02d_manual1.png" % i)
    )
