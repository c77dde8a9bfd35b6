import os
import numpy as np

rng = np.random.RandomState(31)
people, cameras = rng.rand(18, 3, 6, 3), rng.randn(3, 3, 1, 1) * 0.15
pids, camids, images = [], [], []
for pid in range(18):
    for shot in range(8):
        camera = shot % 3
        pids.append(pid), camids.append(camera)
        images.append(people[pid] + cameras[camera] + 0.1 * rng.randn(3, 6, 3))
os.makedirs("data", exist_ok=True)
np.savez("data/market.npz", images=np.array(images, "float32"), pids=pids, camids=camids)
