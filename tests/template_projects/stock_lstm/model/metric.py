import numpy as np


def direction(y_input, y_target):
    """How often the sign of the move is right"""
    y_input, y_target = y_input.detach().cpu().numpy(), y_target.cpu().numpy()
    return np.mean(np.sign(y_input) == np.sign(y_target))
