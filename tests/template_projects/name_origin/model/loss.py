from torch.nn.functional import cross_entropy  # noqa: F401
