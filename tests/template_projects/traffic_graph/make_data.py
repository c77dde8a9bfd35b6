import os
import numpy as np

rng = np.random.RandomState(0)
n_nodes, n_steps = 6, 400
places = rng.rand(n_nodes, 2)
distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
adj = np.exp(-((distance / distance.std()) ** 2))
adj[adj < 0.1] = 0
rush = np.sin(np.arange(n_steps) / 12)[:, None]
speed = (
    55
    + adj @ rng.randn(n_nodes)
    - 15 * rush * (0.5 + rng.rand(n_nodes))
    + rng.randn(n_steps, n_nodes)
)
speed[rng.rand(n_steps, n_nodes) < 0.08] = 0  # the sensor said nothing
os.makedirs("data", exist_ok=True)
np.savez("data/metr.npz", speed=speed.astype("float32"), adj=adj.astype("float32"))
