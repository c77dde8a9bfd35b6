def lambda_rule(epoch, decay_start=2):
    return 1.0 - max(0, epoch + 1 - decay_start) / 3.0
