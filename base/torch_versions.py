"""What differs between the versions of torch that are supported, from 2.10 to the newest."""

from __future__ import annotations

import torch

TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])

AUTOCAST_CACHE = TORCH >= (2, 11)
"""Whether autocast may keep a weight's cast for its next use in a step: until 2.10 one that was made
in ``no_grad`` had no gradient there either, without a word."""
