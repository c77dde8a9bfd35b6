"""What differs between the versions of torch that are supported, from 2.10 to the newest.

- 2.11: autocast's cache keeps gradients (`AUTOCAST_CACHE`).
- After 2.10: the profiler no longer warns when it starts (`profiling.py`: ``acc_events``).
- After 2.10: ``linear_cross_entropy``, the ``bias`` of BatchNorm, GroupNorm and InstanceNorm, and
  ``maximize`` of LBFGS. A config that names them with 2.10 is told that they are unknown.
"""

from __future__ import annotations

import torch

TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])

AUTOCAST_CACHE = TORCH >= (2, 11)
"""Whether autocast may keep a weight's cast for its next use in a step.

In 2.10 a cast that was made in ``no_grad`` had no gradient in later uses either, without a word.
"""
