def warmup_linear(step, t_total=32, warmup=3):
    return step / warmup if step < warmup else (t_total - step) / (t_total - warmup)
