def age_mae(output, target):
    return (output - target).abs().mean().item()


def gender_acc(output, target):
    return ((output > 0) == (target > 0.5)).float().mean().item()
