"""Write files in MNIST's format: each digit is a bar at a place of its own, under noise."""

import os

import numpy as np


def write_idx(name, array):
    os.makedirs("data/MNIST/raw", exist_ok=True)
    with open(os.path.join("data/MNIST/raw", name), "wb") as f:
        f.write(bytes([0, 0, 8, array.ndim]))
        f.write(np.array(array.shape, dtype=">i4").tobytes())
        f.write(array.tobytes())


rng = np.random.RandomState(7)
for part, count in (("train", 400), ("t10k", 100)):
    labels = rng.randint(0, 10, size=count).astype(np.uint8)
    images = rng.randint(0, 60, size=(count, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels):
        row, column = divmod(label, 5)
        image[4 + 12 * row : 12 + 12 * row, 2 + 5 * column : 6 + 5 * column] += 180
    write_idx("%s-images-idx3-ubyte" % part, images)
    write_idx("%s-labels-idx1-ubyte" % part, labels)
