"""What a step uses: losses, metrics, optimizers, schedules, precision, recovery, the state."""

from typing import TYPE_CHECKING

from base.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from base.training.accumulation import Every as Every
    from base.training.accumulation import Window as Window
    from base.training.batch_arguments import DataParameters as DataParameters
    from base.training.batch_arguments import item_compared as item_compared
    from base.training.batch_arguments import takes_batch as takes_batch
    from base.training.denominators import SUM as SUM
    from base.training.denominators import counted_by as counted_by
    from base.training.denominators import mark_sum as mark_sum
    from base.training.denominators import same_denominator_as as same_denominator_as
    from base.training.denominators import terms_of as terms_of
    from base.training.epoch_rows import EpochRows as EpochRows
    from base.training.epoch_rows import repair_rows as repair_rows
    from base.training.epoch_start import EpochStart as EpochStart
    from base.training.epoch_time import Clock as Clock
    from base.training.experiment import Experiment as Experiment
    from base.training.experiment import build_experiment as build_experiment
    from base.training.experiment import build_trainer as build_trainer
    from base.training.experiment import choose_device as choose_device
    from base.training.experiment import compares_outputs as compares_outputs
    from base.training.experiment import make_repeatable as make_repeatable
    from base.training.experiment import tested_data as tested_data
    from base.training.first_step import agreeing_shapes as agreeing_shapes
    from base.training.first_step import guard_first_step as guard_first_step
    from base.training.loss_terms import LossTerms as LossTerms
    from base.training.loss_terms import flat as flat
    from base.training.losses import WeightedLoss as WeightedLoss
    from base.training.losses import build_losses as build_losses
    from base.training.losses import scaled as scaled
    from base.training.metric_values import device_of as device_of
    from base.training.metrics import build_metrics as build_metrics
    from base.training.metrics import mean_of_counts as mean_of_counts
    from base.training.optimizer_step import build_steppers as build_steppers
    from base.training.optimizer_step import choose_stepper as choose_stepper
    from base.training.optimizer_step import only as only
    from base.training.optimizers import learning_rates as learning_rates
    from base.training.precision import NOTHING as NOTHING
    from base.training.precision import FiniteWatch as FiniteWatch
    from base.training.precision import Precision as Precision
    from base.training.progress import Monitor as Monitor
    from base.training.progress import Progress as Progress
    from base.training.progress import Stateful as Stateful
    from base.training.progress import build_average as build_average
    from base.training.progress import parts_with_state as parts_with_state
    from base.training.recovery import SINGLE_VALUE as SINGLE_VALUE
    from base.training.recovery import Recovery as Recovery
    from base.training.recovery import refuse_nonfinite as refuse_nonfinite
    from base.training.registration import checked_parts as checked_parts
    from base.training.registration import is_among as is_among
    from base.training.results import StepValues as StepValues
    from base.training.results import check_watched as check_watched
    from base.training.results import note_losses as note_losses
    from base.training.results import passes as passes
    from base.training.results import summarise as summarise
    from base.training.results import values_of as values_of
    from base.training.results import warn_unweighted as warn_unweighted
    from base.training.results import weigh as weigh
    from base.training.results import with_total as with_total
    from base.training.run_log import RunLog as RunLog
    from base.training.run_log import open_folder as open_folder
    from base.training.run_log import open_run as open_run
    from base.training.run_log import tell_end as tell_end
    from base.training.trials import SavedBytes as SavedBytes
    from base.training.trials import kept_weights as kept_weights
    from base.training.trials import trial as trial
    from base.training.trials import try_step as try_step
    from base.training.weight_use import reads_put_back as reads_put_back
else:
    __getattr__, __all__ = lazy_imports(__name__)
