import numpy as np


def agreement(output, target):
    left, right = (o.detach().cpu().numpy() for o in output)
    same = np.linalg.norm(left - right, axis=1) < 1
    return float(np.mean(same == (target.cpu().numpy() > 0.5)))
