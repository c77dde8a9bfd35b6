"""Saves and loads checkpoints, state dicts and weights.

`CheckpointStore` writes and prunes the checkpoints of a run, each of which is complete or absent,
and `read` loads one. A new format needs a migration in `store.py`. `load_pretrained` loads weights
from a file into a model.
"""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.checkpoint.background import Snapshot as Snapshot
    from base.checkpoint.background import saves_in_background as saves_in_background
    from base.checkpoint.comparison import is_equal as is_equal
    from base.checkpoint.data_record import check_classes as check_classes
    from base.checkpoint.data_record import class_names as class_names
    from base.checkpoint.data_record import data_of as data_of
    from base.checkpoint.data_record import offers_record as offers_record
    from base.checkpoint.data_record import record_of as record_of
    from base.checkpoint.data_record import source_of as source_of
    from base.checkpoint.data_record import use_record as use_record
    from base.checkpoint.object_state import get_object_state as get_object_state
    from base.checkpoint.object_state import set_object_state as set_object_state
    from base.checkpoint.state_dicts import load_state_dicts as load_state_dicts
    from base.checkpoint.state_file import sync_folder as sync_folder
    from base.checkpoint.state_file import write_bytes as write_bytes
    from base.checkpoint.store import CheckpointStore as CheckpointStore
    from base.checkpoint.store import find_manifest as find_manifest
    from base.checkpoint.store import read as read
    from base.checkpoint.store import read_manifest as read_manifest
    from base.checkpoint.store import read_with_manifest as read_with_manifest
    from base.checkpoint.weight_mapping import WeightsReport as WeightsReport
    from base.checkpoint.weights import load_pretrained as load_pretrained
    from base.checkpoint.weights import read_record as read_record
    from base.checkpoint.weights import read_weights as read_weights
    from base.checkpoint.weights import sections_with_weights as sections_with_weights
else:
    __getattr__, __all__ = lazy_imports(__name__)
