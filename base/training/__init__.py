"""What a step uses: losses, metrics, optimizers, schedules, precision, recovery, the state."""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.training.accumulation import Every as Every
    from base.training.accumulation import warn_of_batch_norm as warn_of_batch_norm
    from base.training.batch_arguments import DataParameters as DataParameters
    from base.training.batch_arguments import item_compared as item_compared
    from base.training.batch_arguments import takes_batch as takes_batch
    from base.training.denominators import SUM_REDUCTION as SUM_REDUCTION
    from base.training.denominators import denominator_of as denominator_of
    from base.training.denominators import mark_terms as mark_terms
    from base.training.denominators import same_denominator_as as same_denominator_as
    from base.training.denominators import terms_of as terms_of
    from base.training.epoch_rows import EpochRows as EpochRows
    from base.training.epoch_rows import repair_rows as repair_rows
    from base.training.epoch_start import EpochStart as EpochStart
    from base.training.epoch_start import owners_of_attributes as owners_of_attributes
    from base.training.epoch_time import Clock as Clock
    from base.training.epoch_time import speed_factors as speed_factors
    from base.training.experiment import CallbackProtocol as CallbackProtocol
    from base.training.experiment import Experiment as Experiment
    from base.training.experiment import choose_monitor as choose_monitor
    from base.training.loss_gradients import due_gradients as due_gradients
    from base.training.loss_terms import LossTerms as LossTerms
    from base.training.loss_terms import flatten_terms as flatten_terms
    from base.training.losses import Ramp as Ramp
    from base.training.losses import WeightedLoss as WeightedLoss
    from base.training.losses import build_losses as build_losses
    from base.training.losses import scale_loss as scale_loss
    from base.training.metric_defaults import compares_outputs as compares_outputs
    from base.training.metric_values import get_device as get_device
    from base.training.metrics import build_metrics as build_metrics
    from base.training.metrics import cannot_merge as cannot_merge
    from base.training.metrics import mean_of_counts as mean_of_counts
    from base.training.nonfinite import refuse_bad_optimizers as refuse_bad_optimizers
    from base.training.optimizer_memory import offload_state as offload_state
    from base.training.optimizer_step import choose_stepper as choose_stepper
    from base.training.optimizer_step import only as only
    from base.training.parameter_groups import build_optimizer as build_optimizer
    from base.training.parameter_groups import check_ownership as check_ownership
    from base.training.parameter_groups import learning_rates as learning_rates
    from base.training.parameter_groups import no_decay as no_decay
    from base.training.progress import Progress as Progress
    from base.training.progress import Stateful as Stateful
    from base.training.progress import check_monitored as check_monitored
    from base.training.recovery import SINGLE_VALUE as SINGLE_VALUE
    from base.training.recovery import Recovery as Recovery
    from base.training.results import StepValues as StepValues
    from base.training.results import backward_passes as backward_passes
    from base.training.results import means_of as means_of
    from base.training.results import record_sample_losses as record_sample_losses
    from base.training.results import results_of as results_of
    from base.training.results import summarise as summarise
    from base.training.results import with_total as with_total
    from base.training.run_log import Run as Run
    from base.training.run_log import RunLog as RunLog
    from base.training.run_log import write_config as write_config
    from base.training.schedules import build_schedule as build_schedule
    from base.training.schedules import resolve_monitor as resolve_monitor
    from base.training.shape_agreement import BroadcastError as BroadcastError
    from base.training.shape_agreement import ShapeAgreement as ShapeAgreement
    from base.training.shape_agreement import error_text as error_text
    from base.training.state import build_state as build_state
    from base.training.state import checked_parts as checked_parts
    from base.training.state import matches_name as matches_name
    from base.training.state import parts_with_state as parts_with_state
    from base.training.trials import SavedBytes as SavedBytes
    from base.training.trials import kept_weights as kept_weights
    from base.training.trials import trial as trial
else:
    __getattr__, __all__ = lazy_imports(__name__)
