"""Options that trade precision, time and memory: the ``memory:`` section of a config."""

from base.memory.activations import checkpoint_activations, offload_activations
from base.memory.allocator import keep_freed_memory
from base.memory.combinations import check_combinations
from base.memory.model import EmptyCache, prepare_model
from base.memory.optimizer import StepInBackward, offload_state
from base.memory.precision import NOTHING, FiniteWatch, Precision

__all__ = [
    "NOTHING",
    "EmptyCache",
    "FiniteWatch",
    "Precision",
    "StepInBackward",
    "check_combinations",
    "checkpoint_activations",
    "keep_freed_memory",
    "offload_activations",
    "offload_state",
    "prepare_model",
]
