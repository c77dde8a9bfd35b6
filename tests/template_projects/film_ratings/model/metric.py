def within_one(output, target):
    return ((output - target).abs() < 1).float().mean()
