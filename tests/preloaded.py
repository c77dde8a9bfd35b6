"""What is imported before the processes of processes.py are forked: what every run imports.

`base` is among it, a user's folders are not: some tests bring a `model/` of their own.
"""

# ruff: noqa: F401
import faults.injections
import pytest
import torch._dynamo
import torchvision

import base.base_trainer
import base.first_step
import base.inspection
import base.label_check
import base.names
import base.run_log
import base.test_phase
from logger.writers import _tools_of_torch

_tools_of_torch()  # tensorboard, without TensorFlow
