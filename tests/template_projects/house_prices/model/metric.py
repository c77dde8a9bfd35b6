def mae(output, target):
    return (output[:, 0] - target).abs().mean().item()


def share_below(output, target):
    return (target < output[:, 1]).float().mean().item()
