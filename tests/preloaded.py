"""What is imported before the processes of processes.py are forked: what every run imports.

`base` is among it, a user's folders are not: some tests bring a `model/` of their own.
"""

# ruff: noqa: F401
import faults.injections
import pytest
import torch._dynamo
import torchvision

import base.base_trainer
import base.run.build
import base.run.checks
import base.run.session
import base.run.testing
from logger.writers import _torch_functions

_torch_functions()  # without TensorFlow
