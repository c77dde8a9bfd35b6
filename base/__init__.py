"""The engine that every project shares: what ``model/``, ``data_loader/`` and ``trainer/`` import.

Names are imported on first use, so that a check of a config does not wait for torch.
"""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.base_data_loader import BaseDataLoader as BaseDataLoader
    from base.base_model import BaseModel as BaseModel
    from base.base_trainer import BaseTrainer as BaseTrainer
    from base.callbacks import Callback as Callback
    from base.checkpoint.weights import load_pretrained as load_pretrained
    from base.checkpoint.weights import read_record as read_record
    from base.checkpoint.weights import read_weights as read_weights
    from base.checkpoint.weights import sections_with_weights as sections_with_weights
    from base.config import Config as Config
    from base.data.batch import Targets as Targets
    from base.data.batch import count_samples as count_samples
    from base.data.batch import ids_of as ids_of
    from base.data.batch import inputs_of as inputs_of
    from base.data.batch import map_tensors as map_tensors
    from base.data.batch import sample_weight_of as sample_weight_of
    from base.data.batch import target_of as target_of
    from base.data.batch import to_device as to_device
    from base.data.endless_batches import EndlessBatches as EndlessBatches
    from base.data.random_draws import Draws as Draws
    from base.data.splits import draw_weighted as draw_weighted
    from base.datasets import ArrayFileDataset as ArrayFileDataset
    from base.datasets import ConcatenatedDataset as ConcatenatedDataset
    from base.datasets import CsvDataset as CsvDataset
    from base.datasets import CutMix as CutMix
    from base.datasets import DatasetLoader as DatasetLoader
    from base.datasets import HardExampleSampler as HardExampleSampler
    from base.datasets import IdxDataset as IdxDataset
    from base.datasets import ImageCsvDataset as ImageCsvDataset
    from base.datasets import ImageFiles as ImageFiles
    from base.datasets import ImageFolderDataset as ImageFolderDataset
    from base.datasets import ImageListDataset as ImageListDataset
    from base.datasets import InMemoryDataset as InMemoryDataset
    from base.datasets import KeyedTransform as KeyedTransform
    from base.datasets import LmdbImageDataset as LmdbImageDataset
    from base.datasets import MaskFolderDataset as MaskFolderDataset
    from base.datasets import Mixer as Mixer
    from base.datasets import MixUp as MixUp
    from base.datasets import Pipeline as Pipeline
    from base.datasets import RandomCutout as RandomCutout
    from base.datasets import RandomFlip as RandomFlip
    from base.datasets import RandomShift as RandomShift
    from base.datasets import ShardDataset as ShardDataset
    from base.datasets import SubsetDataset as SubsetDataset
    from base.datasets import SyntheticDataset as SyntheticDataset
    from base.datasets import TransformedDataset as TransformedDataset
    from base.datasets import cached as cached
    from base.datasets import decode_image as decode_image
    from base.datasets import load_in_memory as load_in_memory
    from base.datasets import load_one_by_one as load_one_by_one
    from base.datasets import read_idx as read_idx
    from base.datasets import read_npz as read_npz
    from base.datasets import synthetic_images as synthetic_images
    from base.errors import BatchError as BatchError
    from base.errors import CheckpointError as CheckpointError
    from base.errors import ConfigError as ConfigError
    from base.errors import DataError as DataError
    from base.errors import KindlingError as KindlingError
    from base.errors import Problem as Problem
    from base.errors import TrainingError as TrainingError
    from base.errors import UsageError as UsageError
    from base.errors import nearest as nearest
    from base.names.registry import CALLBACKS as CALLBACKS
    from base.names.registry import DATA_LOADERS as DATA_LOADERS
    from base.names.registry import DATASETS as DATASETS
    from base.names.registry import INITS as INITS
    from base.names.registry import LOSSES as LOSSES
    from base.names.registry import LR_SCHEDULERS as LR_SCHEDULERS
    from base.names.registry import METRICS as METRICS
    from base.names.registry import MODELS as MODELS
    from base.names.registry import OPTIMIZERS as OPTIMIZERS
    from base.names.registry import SAMPLERS as SAMPLERS
    from base.names.registry import TRAINERS as TRAINERS
    from base.names.registry import TRANSFORMS as TRANSFORMS
    from base.names.registry import find as find
    from base.network.gradients import gradient_of as gradient_of
    from base.network.gradients import gradient_penalty as gradient_penalty
    from base.network.gradients import layer_gradient_norms as layer_gradient_norms
    from base.network.gradients import saliency as saliency
    from base.network.initialization import initialise as initialise
    from base.network.layers import Networks as Networks
    from base.network.layers import Residual as Residual
    from base.network.layers import Sequential as Sequential
    from base.network.output_sizes import conv_output_size as conv_output_size
    from base.network.output_sizes import conv_padding_for as conv_padding_for
    from base.network.output_sizes import conv_transpose_output_size as conv_transpose_output_size
    from base.network.output_sizes import conv_transpose_padding_for as conv_transpose_padding_for
    from base.network.output_sizes import pool_output_size as pool_output_size
    from base.network.output_sizes import pool_padding_for as pool_padding_for
    from base.network.patterns import Pattern as Pattern
    from base.network.patterns import match_modules as match_modules
    from base.network.patterns import match_parameters as match_parameters
    from base.network.summary import summarise_model as summarise_model
    from base.run.session import open_run as open_run
    from base.system.left_out import left_out_note as left_out_note
    from base.system.seeding import derive_generator as derive_generator
    from base.system.seeding import derive_seed as derive_seed
    from base.system.seeding import isolated_random_state as isolated_random_state
    from base.training.batch_arguments import DataParameters as DataParameters
    from base.training.denominators import SUM as SUM
    from base.training.denominators import counted_by as counted_by
    from base.training.denominators import mark_sum as mark_sum
    from base.training.denominators import same_denominator_as as same_denominator_as
    from base.training.denominators import terms_of as terms_of
    from base.training.experiment import Experiment as Experiment
    from base.training.loss_gradients import loss_gradients as loss_gradients
    from base.training.loss_terms import flat as flat
    from base.training.losses import WeightedLoss as WeightedLoss
    from base.training.losses import build_losses as build_losses
    from base.training.losses import scaled as scaled
    from base.training.metric_values import device_of as device_of
    from base.training.metrics import mean_of_counts as mean_of_counts
    from base.training.parameter_groups import no_decay as no_decay
    from base.training.results import with_total as with_total
    from logger.files import write_whole as write_whole
    from logger.writers import Writer as Writer
    from logger.writers import Writers as Writers
else:
    __getattr__, __all__ = lazy_imports(__name__)
