import numpy as np


def _peaks(maps):
    n, j, h, w = maps.shape
    flat = maps.reshape(n, j, -1).argmax(-1)
    return np.stack([flat // w, flat % w], -1)


def pck(output, target, target_weight, radius=1.5):
    """Share of visible joints whose peak lies within the radius"""
    output, target = output.detach().cpu().numpy(), target.detach().cpu().numpy()
    visible = target_weight.cpu().numpy()[..., 0] > 0
    far = np.linalg.norm(_peaks(output) - _peaks(target), axis=-1)
    return (far[visible] <= radius).mean()
