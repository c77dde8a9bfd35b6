def warmup_then_drop(epoch, warmup=2, gamma=0.1):
    if epoch >= 5:
        return gamma
    return min(1, (epoch + 1) / warmup)
