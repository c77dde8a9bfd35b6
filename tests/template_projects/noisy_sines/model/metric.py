import torch


def phase_error(output, target):
    phase = torch.atan2(output[:, 0], output[:, 1])
    difference = torch.remainder(phase - target + 3.14159265, 2 * 3.14159265) - 3.14159265
    return difference.abs().mean()
