"""State to disk and back, whole or not at all; files of weights."""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.checkpoint.__main__ import is_equal as is_equal
    from base.checkpoint.background import Snapshot as Snapshot
    from base.checkpoint.background import in_background as in_background
    from base.checkpoint.restoration import restore as restore
    from base.checkpoint.state_file import sync_folder as sync_folder
    from base.checkpoint.state_file import write_bytes as write_bytes
    from base.checkpoint.store import CheckpointStore as CheckpointStore
    from base.checkpoint.store import peek_manifest as peek_manifest
    from base.checkpoint.store import read as read
    from base.checkpoint.store import read_whole as read_whole
    from base.checkpoint.weight_rules import Fit as Fit
    from base.checkpoint.weights import load_from as load_from
    from base.checkpoint.weights import sections_with_weights as sections_with_weights
else:
    __getattr__, __all__ = lazy_imports(__name__)
