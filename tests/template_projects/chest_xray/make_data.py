# patients.npy + labels.csv, the shape of ChestX-ray14's "Finding Labels" with bars in between
import os

import numpy as np

rng = np.random.RandomState(14)
names = ["Effusion", "Mass", "Nodule"]
if not os.path.isdir("data"):
    os.makedirs("data")
images = rng.rand(160, 16, 16) * 100
rows = ["Image Index,Finding Labels,Patient Age"]
for i in range(160):
    findings = rng.rand(3) < 0.4
    images[i, 10:, :] += 90 * findings[0]
    images[i, :6, :6] += 90 * findings[1]
    images[i, 2:5, 10:13] += 140 * findings[2]
    text = "|".join(n for n, f in zip(names, findings) if f) or "No Finding"
    rows.append("%05d.png,%s,%03dY" % (i, text, rng.randint(20, 90)))
np.save("data/images.npy", np.clip(images, 0, 255).astype("uint8"))
with open("data/labels.csv", "w") as f:
    f.write("\n".join(rows) + "\n")
