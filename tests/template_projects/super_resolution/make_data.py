import numpy as np
from PIL import Image
from pathlib import Path

rng = np.random.RandomState(2)
for part, n in (("train", 20), ("val", 4)):
    folder = Path("data") / part
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        h, w = 24 + 2 * rng.randint(0, 5), 24 + 2 * rng.randint(0, 5)
        y, x = np.mgrid[:h, :w]
        image = (
            127 + 60 * np.sin(x * rng.uniform(0.2, 1) + y * rng.uniform(0.2, 1)) + 50 * (x > w / 2)
        )
        Image.fromarray(image.clip(0, 255).astype("uint8")).save(folder / ("%04d.png" % i))
