"""Turns samples into batches on the device: order, splits, workers, collation and copies."""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.data.bad_samples import BadSamples as BadSamples
    from base.data.batch import CONTAINERS as CONTAINERS
    from base.data.batch import DEFAULT_RULES as DEFAULT_RULES
    from base.data.batch import IDS as IDS
    from base.data.batch import WEIGHT as WEIGHT
    from base.data.batch import Rules as Rules
    from base.data.batch import SampleCount as SampleCount
    from base.data.batch import Targets as Targets
    from base.data.batch import count_samples as count_samples
    from base.data.batch import cut as cut
    from base.data.batch import extras_of as extras_of
    from base.data.batch import ids_of as ids_of
    from base.data.batch import in_full_precision as in_full_precision
    from base.data.batch import inputs_of as inputs_of
    from base.data.batch import leaves as leaves
    from base.data.batch import map_leaves as map_leaves
    from base.data.batch import map_tensors as map_tensors
    from base.data.batch import sample_weight_of as sample_weight_of
    from base.data.batch import target_of as target_of
    from base.data.batch import tensors_in as tensors_in
    from base.data.batch import to_device as to_device
    from base.data.batch import with_entries as with_entries
    from base.data.cut_parts import sharded as sharded
    from base.data.device_feed import feed as feed
    from base.data.endless_batches import EndlessBatches as EndlessBatches
    from base.data.fingerprint import Samples as Samples
    from base.data.fingerprint import hex_texts as hex_texts
    from base.data.fingerprint import is_unnamed as is_unnamed
    from base.data.fingerprint import samples_of as samples_of
    from base.data.protocols import Batch as Batch
    from base.data.protocols import Cacheable as Cacheable
    from base.data.protocols import HasClasses as HasClasses
    from base.data.protocols import HasIds as HasIds
    from base.data.protocols import HasImages as HasImages
    from base.data.protocols import HasPlaces as HasPlaces
    from base.data.protocols import HasTargets as HasTargets
    from base.data.protocols import SupportsOrder as SupportsOrder
    from base.data.protocols import SupportsPlacing as SupportsPlacing
    from base.data.protocols import members as members
    from base.data.protocols import name_of as name_of
    from base.data.protocols import offered as offered
    from base.data.protocols import underlying as underlying
    from base.data.random_draws import Draws as Draws
    from base.data.reading import BadSample as BadSample
    from base.data.reading import BatchReader as BatchReader
    from base.data.reading import Failure as Failure
    from base.data.reading import Key as Key
    from base.data.reading import NoteBad as NoteBad
    from base.data.reading import Skip as Skip
    from base.data.reading import find_get_batch as find_get_batch
    from base.data.reading import raise_failure as raise_failure
    from base.data.reading import without_bad_samples as without_bad_samples
    from base.data.replayed_loader import as_batches as as_batches
    from base.data.sample_items import SampleItems as SampleItems
    from base.data.sample_items import checked_weights as checked_weights
    from base.data.sample_items import sample_numbers as sample_numbers
    from base.data.sampler_state import SamplerState as SamplerState
    from base.data.sampler_state import has_state as has_state
    from base.data.shares import fault_of_batch_size as fault_of_batch_size
    from base.data.splits import divide as divide
    from base.data.splits import draw_weighted as draw_weighted
    from base.data.splits import number_repeats as number_repeats
    from base.data.splits import sample_weights as sample_weights
    from base.data.streams import refuse_stream as refuse_stream
    from base.data.streams import sharing_fault as sharing_fault
    from base.data.threads import pinned as pinned
    from base.data.threads import read_ahead as read_ahead
    from base.data.threads import read_each as read_each
    from base.data.workers import begin_worker as begin_worker
    from base.data.workers import identity as identity
    from base.data.workers import stop_workers as stop_workers
    from base.data.workers import watched as watched
else:
    __getattr__, __all__ = lazy_imports(__name__)
